"""Options of commands that sample: which models, in which dtype."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from jax.sharding import Mesh

from fd_jax.config import Config
from fd_jax.errors import InputError
from fd_jax.inference.pictures import readable
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.inference.sources import LoraOn, check_sources

LIMITS = (
    "bundled models: 64 px, portraits in front of the painted scenes of fd_jax/demo/painters.py; "
    "other prompts still give a picture; fd_jax/assets/demo/README.md says more"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions(Config):
    """The models that sample."""

    sdm: Path | None = None
    """Subject-augmented model: folder of a training run; or the released model's file, or the
    folder it is in. Without --sdm and --tdm: the small models of the package."""
    tdm: Path | None = None
    """Text-driven model, likewise; or any Stable Diffusion 1.5 or UNet of one, as a folder of
    diffusers or a file."""
    base: Path | None = None
    """Stable Diffusion 1.5: a folder of diffusers, or a single file. Needed with an SDM that is no
    training run."""
    image_encoder: Path | None = None
    """Folder of the CLIP that the image encoder was tuned from. Needed with an SDM that is no
    training run."""
    loras: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="lora")] = ()
    """LoRA to merge into the models, with its scale: FILE or FILE:0.8. May be given several
    times."""
    lora_on: tyro.conf.UseAppendAction[tuple[LoraOn, ...]] = ()
    """Models that the LoRAs change, one for all or one each; by default both. The text encoder is
    the SDM's."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the computation; by default float32 on a CPU, else bfloat16."""

    def __post_init__(self):
        super().__post_init__()
        check_sources(self.sdm, self.tdm, self.base, self.image_encoder)
        if self.lora_on and not self.loras:
            raise InputError("--lora-on goes with --lora")

    @property
    def is_bundled(self) -> bool:
        """Whether the models are those of the package."""
        return self.sdm is None

    def models(self) -> dict[str, str]:
        """Returns the paths of the models, as PNG files hold them."""
        names = "base", "sdm", "tdm", "image_encoder"
        paths = {name: getattr(self, name) for name in names}
        given = {name: readable(str(path)) for name, path in paths.items() if path is not None}
        if self.loras:
            given["loras"] = readable(", ".join(self.loras))
            given["lora_on"] = ", ".join(self.lora_on or ("both",))
        return ({"models": "bundled"} if self.is_bundled else {}) | given

    def load(self, mesh: Mesh | None = None) -> FaceDiffuser:
        """Reads the models; the first of several processes shows progress."""
        is_first = jax.process_index() == 0
        if self.is_bundled and is_first:
            print(LIMITS)
        return FaceDiffuser.from_pretrained(
            sdm=self.sdm,
            tdm=self.tdm,
            base=self.base,
            image_encoder=self.image_encoder,
            loras=self.loras,
            lora_on=self.lora_on,
            dtype=self.dtype,
            mesh=mesh,
            progress=is_first,
        )
