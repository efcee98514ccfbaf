"""Architecture of the networks: frozen configs, checked on construction."""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

from fd_jax.config import Config, Range
from fd_jax.errors import InputError

Size = Annotated[int, Range(1, 2**31 - 1)]


class ConfigError(InputError):
    """A model's config is damaged, or describes an architecture that is not supported."""


class _NetworkConfig(Config):
    error: ClassVar[type[InputError]] = ConfigError


def _check_divides(config: Any, divisor: str, dividend: str) -> None:
    numbers = getattr(config, dividend)
    for number in numbers if isinstance(numbers, tuple) else (numbers,):
        if number % getattr(config, divisor):
            raise ConfigError(
                f"{type(config).__name__}: {divisor} is {getattr(config, divisor)}, expected a "
                f"divisor of {dividend}, {numbers}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig(_NetworkConfig):
    """Sizes of a Stable Diffusion 1.x UNet. Level 0 has the resolution of the latents."""

    block_out_channels: Annotated[tuple[Size, ...], Range(1)] = (320, 640, 1280, 1280)
    has_attention: tuple[bool, ...] = (True, True, True, False)  # by level, as the channels
    layers_per_block: Size = 2
    cross_attention_dim: Size = 768
    num_heads: Size = 8
    norm_num_groups: Size = 32
    norm_eps: Annotated[float, Range(above=0)] = 1e-5
    in_channels: Size = 4
    out_channels: Size = 4
    sample_size: Size = 64

    def __post_init__(self):
        super().__post_init__()
        _check_divides(self, "num_heads", "block_out_channels")
        _check_divides(self, "norm_num_groups", "block_out_channels")
        if self.block_out_channels[0] % 2:
            raise ConfigError(
                f"UNetConfig: block_out_channels is {self.block_out_channels}, expected an even "
                "number first: half of it are sines and half cosines of the timestep"
            )
        if len(self.has_attention) != len(self.block_out_channels):
            raise ConfigError(
                f"UNetConfig: {len(self.has_attention)} kinds of block, expected as many as "
                f"block_out_channels, {self.block_out_channels}"
            )

    @property
    def downscale(self) -> int:
        """How many times smaller the lowest level is than the latents, per side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def attending_levels(self) -> tuple[str, ...]:
        """Names of the levels with cross-attention."""
        down = [f"down_blocks.{i}" for i, attends in enumerate(self.has_attention) if attends]
        mirrored = enumerate(reversed(self.has_attention))
        return (*down, "mid_block", *(f"up_blocks.{i}" for i, attends in mirrored if attends))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig(_NetworkConfig):
    """Sizes of an AutoencoderKL."""

    block_out_channels: Annotated[tuple[Size, ...], Range(1)] = (128, 256, 512, 512)
    layers_per_block: Size = 2
    norm_num_groups: Size = 32
    scaling_factor: Annotated[float, Range(above=0)] = 0.18215
    """Factor of the encoder's results, as latents are scaled to unit variance."""
    sample_size: Size = 512

    def __post_init__(self):
        super().__post_init__()
        _check_divides(self, "norm_num_groups", "block_out_channels")

    @property
    def downscale(self) -> int:
        """How many times smaller the latents are than the image, per side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(_NetworkConfig):
    """Sizes of CLIP's text encoder."""

    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_layers: Size = 12
    num_heads: Size = 12
    vocab_size: Size = 49408
    max_length: Size = 77

    def __post_init__(self):
        super().__post_init__()
        _check_divides(self, "num_heads", "hidden_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(_NetworkConfig):
    """Sizes of CLIP's image encoder."""

    hidden_size: Size = 1024
    intermediate_size: Size = 4096
    num_layers: Size = 24
    num_heads: Size = 16
    image_size: Size = 224
    patch_size: Size = 14
    projection_dim: Size = 768

    def __post_init__(self):
        super().__post_init__()
        _check_divides(self, "num_heads", "hidden_size")
        _check_divides(self, "patch_size", "image_size")


class Architecture(NamedTuple):
    """Sizes of all networks."""

    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()
    text_encoder: CLIPTextConfig = CLIPTextConfig()
    image_encoder: CLIPVisionConfig = CLIPVisionConfig()

    def check(self) -> None:
        """Raises ConfigError if the networks do not fit together."""
        width = self.text_encoder.hidden_size
        for name, found in (
            ("cross_attention_dim of the UNet", self.unet.cross_attention_dim),
            ("projection_dim of the image encoder", self.image_encoder.projection_dim),
        ):
            if found != width:
                raise ConfigError(
                    f"{name} is {found}, expected {width}, the hidden_size of the text encoder"
                )
