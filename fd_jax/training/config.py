"""The settings of a training run, from a file and the command line."""

import dataclasses
import inspect
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from fd_jax import distributed, sharding
from fd_jax.architecture import CLIPTextConfig, CLIPVisionConfig, UNetConfig, VAEConfig
from fd_jax.config import Config, differences, nearest, to_json
from fd_jax.data.config import DataConfig
from fd_jax.errors import InputError
from fd_jax.ops.attention import AttentionKind
from fd_jax.ops.layers import Remat, as_dtype
from fd_jax.schedule import ScheduleConfig
from fd_jax.training.objective import ObjectiveConfig
from fd_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Sizes of networks that are trained from scratch."""

    unet: UNetConfig = dataclasses.field(default_factory=UNetConfig)
    vae: VAEConfig = dataclasses.field(default_factory=VAEConfig)
    text_encoder: CLIPTextConfig = dataclasses.field(default_factory=CLIPTextConfig)
    image_encoder: CLIPVisionConfig = dataclasses.field(default_factory=CLIPVisionConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig(Config):
    """What training begins with. What nothing here gives begins at random."""

    base: Path | None = None
    """Stable Diffusion 1.5, a folder in the layout of diffusers."""
    image_encoder: Path | None = None
    """CLIP ViT-L/14, a folder in the layout of transformers (sdm)."""
    checkpoint: Path | None = None
    """An earlier run, or a file of the released layout, whose parts come before those of base:
    the SDM may begin as the TDM, the TDM with the autoencoder of a run that trained it alone. An
    autoencoder that files give stays as it is, unless it alone trains: TDM and SDM share it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig(Config):
    """How the same numbers are computed."""

    dtype: str = "bfloat16"
    """Of the computation, bfloat16 or float32. Parameters and moments are float32."""
    attention: AttentionKind = "auto"
    """How attention is computed; auto takes what suits the machine."""
    remat: Remat = "none"
    """What is computed again on the way back to save memory: none, all but the products of
    matrices (dots), or whole blocks."""
    accumulation: int = 1
    """In how many parts, one after another, the gradient of a batch is computed."""

    def __post_init__(self):
        super().__post_init__()
        self.require("accumulation", 1)
        as_dtype(self.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig(Config):
    """How long, and what happens on the way."""

    num_steps: int = 150_000
    """Steps in all, those of earlier parts of the run included."""
    seed: int = 42
    """Of initial parameters, order of the data, augmentation and noise."""
    checkpoint_every: int = 1000
    """Steps from one checkpoint to the next. There is one at the end, and on SIGTERM, too."""
    keep_latest: int = 2
    """Checkpoints that are kept besides the best."""
    keep_every: int | None = None
    """Steps whose multiples are kept for good."""
    log_every: int = 10
    """Steps that a line of metrics is the mean of."""
    eval_every: int = 1000
    """Steps from one measurement on held-out images to the next; 0 never measures."""
    eval_batches: int = 8
    """Batches of held-out images that are measured."""
    preview_every: int = 1000
    """Steps from one set of pictures to the next; 0 makes none."""
    profile: tuple[int, int] | None = None
    """First and last step of a trace for TensorBoard's profiler, written to WORKDIR/profile."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_steps", "checkpoint_every", "keep_latest", "keep_every", "log_every"):
            self.require(name, 1)
        self.require("eval_batches", 1)
        for name in ("eval_every", "preview_every"):
            self.require(name, 0)
        self.require("seed", 0, 2**32 - 1)
        if self.profile is not None and not 1 <= self.profile[0] <= self.profile[1]:
            raise InputError(f"profile is {self.profile}, expected 1 <= first <= last step")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig(Config):
    """Where metrics go besides WORKDIR/metrics.jsonl."""

    tensorboard: bool = False
    """Write to WORKDIR/tensorboard; needs the package tensorboardX."""
    wandb: str | None = None
    """Project of Weights & Biases; needs the package wandb."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewConfig(Config):
    """Pictures that are made at intervals, always from the same noise."""

    prompts: tuple[str, ...] = ()
    """Without markers for a tdm, with them for an sdm; none for a vae."""
    references: tuple[Path, ...] = ()
    """Photographs for the markers of all prompts, one after another (sdm), or to be seen beside
    their reconstructions (vae)."""
    num_steps: int = 25
    """Of DPM-Solver++."""
    guidance_scale: float = 5.0
    """Strength of classifier-free guidance."""

    def __post_init__(self):
        super().__post_init__()
        self.require("num_steps", 1)
        self.require("guidance_scale", 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """A training run."""

    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    model: Annotated[ModelConfig | None, tyro.conf.AvoidSubcommands] = None
    """Sizes to train from scratch; without them, those of what the run begins with."""
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    compute: ComputeConfig = dataclasses.field(default_factory=ComputeConfig)
    mesh: sharding.MeshConfig = dataclasses.field(default_factory=sharding.MeshConfig)
    loop: LoopConfig = dataclasses.field(default_factory=LoopConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    preview: PreviewConfig = dataclasses.field(default_factory=PreviewConfig)
    processes: distributed.Processes = dataclasses.field(default_factory=distributed.Processes)


# What may change from one part of a run to the next: it changes no number of any step but by
# rounding. The data may move; that it is the same is checked by its ids.
_FREE = (
    r"compute\.(attention|remat|accumulation)|mesh\..*|log\..*|preview\..*|processes\..*|"
    r"loop\.(?!seed).*|data\.(root|num_workers|num_threads|prefetch|latent_cache|encodings)(\..*)?"
)


def check_same(stored: dict[str, Any], config: TrainConfig, where: str) -> None:
    """Raises InputError if the run in a folder was started with other settings."""
    changed = differences(stored, to_json(config))
    changed = {name: pair for name, pair in changed.items() if not re.fullmatch(_FREE, name)}
    if config.optimizer.schedule != "constant":
        both = stored.get("loop", {}).get("num_steps"), config.loop.num_steps
        if both[0] != both[1]:  # at which the learning rate ends
            changed["loop.num_steps"] = both
    if changed:
        lines = [f"  {name}: {old!r} there, {new!r} here" for name, (old, new) in changed.items()]
        raise InputError(
            "\n".join([f"{where} holds a run with other settings:", *lines])
            + "\nexpected the same settings, or a new --workdir"
        )


def read_config_file(path: Path) -> tuple[TrainConfig, str]:
    """Executes a config file and returns its CONFIG and its docstring.

    Raises:
        InputError: The file is missing, fails, or has no CONFIG of type TrainConfig.
    """
    if not path.is_file():
        there = sorted(entry.name for entry in path.parent.glob("*.py")) if path.parent else []
        raise InputError(
            f"config {path} does not exist, expected a Python file{nearest(path.name, there)}"
        )
    try:
        found = runpy.run_path(str(path))
    except (TypeError, SyntaxError, ImportError, NameError, AttributeError) as error:
        raise InputError(f"config {path}: {error}{_nearest_field(str(error))}") from error
    config = found.get("CONFIG")
    if not isinstance(config, TrainConfig):
        raise InputError(f"config {path}: CONFIG is {config!r:.80}, expected a TrainConfig")
    return config, inspect.cleandoc(found.get("__doc__") or "")


def _nearest_field(message: str) -> str:
    """Completes Python's complaint about a keyword that a dataclass does not have."""
    match = re.search(r"unexpected keyword argument '(\w+)'", message)
    if not match:
        return ""
    names = {field.name for cls in _dataclasses(TrainConfig) for field in dataclasses.fields(cls)}
    return nearest(match[1], sorted(names))


def _dataclasses(cls: type) -> list[type]:
    """A dataclass and those of its fields."""
    found = [cls]
    for field in dataclasses.fields(cls):
        for inner in (field.type, *getattr(field.type, "__args__", ())):
            for kind in (inner, *getattr(inner, "__args__", ())):
                if dataclasses.is_dataclass(kind):
                    found += _dataclasses(kind)
    return found


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What `train.py` takes besides the settings of a run."""

    config: Path
    """A file of configs/."""
    workdir: Path
    """Folder of the run: checkpoints, metrics, pictures. The same again resumes."""


def parse(arguments: Sequence[str], description: str) -> tuple[CommandLine, TrainConfig]:
    """Reads the command line: a config file, a folder, and any setting by its dotted name.

    Raises:
        InputError: The config file cannot be used, or a setting is out of range.
        SystemExit: The command line is wrong, which tyro explains; or help was asked for.
    """
    default = TrainConfig()
    path = _value_of("--config", arguments)
    if path is not None:
        default, docstring = read_config_file(Path(path))
        description = f"{description}\n\n{path}: {docstring}"

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        line: Annotated[CommandLine, tyro.conf.arg(name="")]
        settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = default

    found = tyro.cli(Arguments, args=list(arguments), description=description)
    return found.line, found.settings


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return None
