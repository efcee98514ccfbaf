"""Architecture of the networks: frozen configs, checked on construction."""

import dataclasses
import sys
from typing import Any, NamedTuple, get_args, get_origin

from fd_jax.errors import InputError


class ConfigError(InputError):
    """A model's config is damaged, or describes an architecture that is not supported."""


def check_numbers(name: str, value: Any, declared: Any) -> None:
    """Raises ConfigError unless `value` has numbers above 0, as they are `declared`."""
    is_tuple = get_origin(declared) is tuple
    kinds = (int, float) if declared is float else (int,)
    numbers: tuple[Any, ...] = value if is_tuple else (value,)
    if not isinstance(numbers, tuple) or not all(
        # NaN fails the comparisons, and so does an integer that no float can hold.
        type(number) in kinds and 0 < (number or 0) <= sys.float_info.max
        for number in numbers or (None,)
    ):
        wanted = "a list of whole numbers" if is_tuple else "a whole number"
        wanted = "a finite number" if declared is float else wanted
        raise ConfigError(f"{name} is {value!r}, expected {wanted} above 0")


def _check_fields(config: Any) -> None:
    for field in dataclasses.fields(config):
        if bool not in get_args(field.type):
            name = f"{type(config).__name__}: {field.name}"
            check_numbers(name, getattr(config, field.name), field.type)


def _check_divides(config: Any, divisor: str, dividend: str) -> None:
    numbers = getattr(config, dividend)
    for number in numbers if isinstance(numbers, tuple) else (numbers,):
        if number % getattr(config, divisor):
            raise ConfigError(
                f"{type(config).__name__}: {divisor} is {getattr(config, divisor)}, expected a "
                f"divisor of {dividend}, {numbers}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of a Stable Diffusion 1.x UNet. Level 0 has the resolution of the latents."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    has_attention: tuple[bool, ...] = (True, True, True, False)  # by level, as the channels
    layers_per_block: int = 2
    cross_attention_dim: int = 768
    num_heads: int = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    in_channels: int = 4
    out_channels: int = 4
    sample_size: int = 64

    def __post_init__(self):
        _check_fields(self)
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
class VAEConfig:
    """Sizes of an AutoencoderKL."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # latents = scaling_factor * what the encoder gives
    sample_size: int = 512

    def __post_init__(self):
        _check_fields(self)
        _check_divides(self, "norm_num_groups", "block_out_channels")

    @property
    def downscale(self) -> int:
        """How many times smaller the latents are than the image, per side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Sizes of CLIP's text tower."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    vocab_size: int = 49408
    max_length: int = 77

    def __post_init__(self):
        _check_fields(self)
        _check_divides(self, "num_heads", "hidden_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """Sizes of CLIP's vision tower."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    projection_dim: int = 768

    def __post_init__(self):
        _check_fields(self)
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
