"""Sizes of the models, read from the json configs of their checkpoints."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from fd_jax.errors import InputError

# Config that change what a model computes, and the values that are computed here.
_UNET_FIXED = {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "num_attention_heads": None,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "attention_type": "default",
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "in_channels": 4,
    "out_channels": 4,
}
_VAE_FIXED = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
_CLIP_FIXED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}

_CLIP_NAMES = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}
# transformers leaves out of its files what equals these, its defaults.
_CLIP_TEXT_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
_CLIP_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 512,
}


class ConfigError(InputError):
    """A model's config is damaged, or describes an architecture that is not supported."""


_Config = TypeVar("_Config")


def _read(
    cls: type[_Config],
    config: Mapping[str, Any],
    where: str,
    fixed: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    optional: Sequence[str] = (),
    **known: Any,
) -> _Config:
    """Makes a config of the settings `names` (ours -> theirs), those `optional`, and `known`."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where} is a {type(config).__name__}, expected a JSON object")
    for name, expected in fixed.items():
        if (found := config.get(name, expected)) != expected:
            raise ConfigError(f"{where}: {name} is {found!r}, supported is {expected!r}")
    if missing := sorted(theirs for theirs in names.values() if theirs not in config):
        raise ConfigError(f"{where} lacks {missing}")
    for field in dataclasses.fields(cls):
        theirs = names.get(field.name, field.name)
        if theirs in config and (field.name in names or theirs in optional):
            value = config[theirs]
            value = tuple(value) if isinstance(value, list) else value
            _check_numbers(f"{where}: {theirs}", value, field.type)
            known[field.name] = float(value) if field.type is float else value
    try:
        return cls(**known)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _with_defaults(config: Any, where: str, defaults: Mapping[str, Any], tower: str) -> Any:
    """Completes the config of a CLIP tower, taken out of that of a whole CLIP if need be."""
    if not isinstance(config, Mapping):
        return config
    if tower in config:
        # The width that both towers are projected to is the whole's, whatever a tower says.
        width = {key: config[key] for key in ("projection_dim",) if key in config}
        config = config[tower]
        if not isinstance(config, Mapping):
            raise ConfigError(f"{where}: {tower} is {config!r}, expected a JSON object")
        config = {**config, **width}
    elif (kind := config.get("model_type")) not in (None, f"clip_{tower.split('_')[0]}_model"):
        raise ConfigError(f"{where}: model_type is {kind!r}, expected a CLIP or its {tower}")
    return {**defaults, **config}


def _check_numbers(name: str, value: Any, declared: Any) -> None:
    """Raises ConfigError unless `value` has numbers above 0, as they are `declared`."""
    is_tuple = get_origin(declared) is tuple
    kinds = (int, float) if declared is float else (int,)
    numbers = value if is_tuple else (value,)
    if not isinstance(numbers, tuple) or not all(
        # NaN fails the comparisons, and so does an integer that no float can hold.
        type(number) in kinds and 0 < number <= sys.float_info.max
        for number in numbers or (None,)
    ):
        wanted = "a list of whole numbers" if is_tuple else "a whole number"
        wanted = "a finite number" if declared is float else wanted
        raise ConfigError(f"{name} is {value!r}, expected {wanted} above 0")


def _check_fields(config: Any) -> None:
    for field in dataclasses.fields(config):
        if bool not in get_args(field.type):
            name = f"{type(config).__name__}: {field.name}"
            _check_numbers(name, getattr(config, field.name), field.type)


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

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str = "UNet config") -> "UNetConfig":
        """Reads the `config.json` of a diffusers UNet. Raises ConfigError."""
        names = {
            "block_out_channels": "block_out_channels",
            "layers_per_block": "layers_per_block",
            "cross_attention_dim": "cross_attention_dim",
            # diffusers' name is a mistake of old: it holds the number of heads.
            "num_heads": "attention_head_dim",
        }
        optional = ("norm_num_groups", "norm_eps", "sample_size")
        kinds = ("DownBlock2D", "CrossAttnDownBlock2D")
        down, up = config.get("down_block_types"), config.get("up_block_types")
        if not isinstance(down, list) or not all(block in kinds for block in down):
            raise ConfigError(f"{where}: down_block_types is {down!r}, supported are {kinds}")
        if up != (mirrored := [block.replace("Down", "Up") for block in reversed(down)]):
            raise ConfigError(f"{where}: up_block_types is {up!r}, supported is {mirrored}")
        attends = tuple(block == kinds[1] for block in down)
        return _read(
            cls, config, where, _UNET_FIXED, names, optional=optional, has_attention=attends
        )

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads and diffusers too."""
        down = [
            "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in self.has_attention
        ]
        return {
            "_class_name": "UNet2DConditionModel",
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "sample_size": self.sample_size,
            "down_block_types": down,
            "up_block_types": [block.replace("Down", "Up") for block in reversed(down)],
            "block_out_channels": list(self.block_out_channels),
            "layers_per_block": self.layers_per_block,
            "cross_attention_dim": self.cross_attention_dim,
            "attention_head_dim": self.num_heads,
            "norm_num_groups": self.norm_num_groups,
            "norm_eps": self.norm_eps,
            "act_fn": "silu",
            "center_input_sample": False,
            "downsample_padding": 1,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "mid_block_scale_factor": 1,
        }


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

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str = "VAE config") -> "VAEConfig":
        """Reads the `config.json` of a diffusers AutoencoderKL. Raises ConfigError."""
        names = {name: name for name in ("block_out_channels", "layers_per_block")}
        optional = ("norm_num_groups", "scaling_factor", "sample_size")
        read = _read(cls, config, where, _VAE_FIXED, names, optional=optional)
        for key, kind in (("down_block_types", "DownEncoder"), ("up_block_types", "UpDecoder")):
            expected = [f"{kind}Block2D"] * len(read.block_out_channels)
            if (blocks := config.get(key, expected)) != expected:
                raise ConfigError(f"{where}: {key} is {blocks!r}, supported is {expected}")
        return read

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads and diffusers too."""
        levels = len(self.block_out_channels)
        return {
            "_class_name": "AutoencoderKL",
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "act_fn": "silu",
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            **dataclasses.asdict(self),
            "block_out_channels": list(self.block_out_channels),
        }


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

    @classmethod
    def from_json(
        cls, config: Mapping[str, Any], where: str = "CLIP text config"
    ) -> "CLIPTextConfig":
        """Reads the `config.json` of a CLIPTextModel, or a CLIP's `text_config`."""
        names = {"max_length": "max_position_embeddings", "vocab_size": "vocab_size"}
        config = _with_defaults(config, where, _CLIP_TEXT_DEFAULTS, "text_config")
        return _read(cls, config, where, _CLIP_FIXED, _CLIP_NAMES | names)

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads and transformers too."""
        return {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            **{theirs: getattr(self, ours) for ours, theirs in _CLIP_NAMES.items()},
            **_CLIP_FIXED,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_length,
            "projection_dim": self.hidden_size,
            "bos_token_id": self.vocab_size - 2,
            "eos_token_id": self.vocab_size - 1,
            "pad_token_id": 1,
        }


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

    @classmethod
    def from_json(
        cls, config: Mapping[str, Any], where: str = "CLIP vision config"
    ) -> "CLIPVisionConfig":
        """Reads the `config.json` of a CLIP, a CLIPVisionModel, or a CLIP's `vision_config`."""
        config = _with_defaults(config, where, _CLIP_VISION_DEFAULTS, "vision_config")
        names = {name: name for name in ("image_size", "patch_size", "projection_dim")}
        fixed = {**_CLIP_FIXED, "num_channels": 3}
        return _read(cls, config, where, fixed, _CLIP_NAMES | names)

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` reads and transformers too."""
        return {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            **{theirs: getattr(self, ours) for ours, theirs in _CLIP_NAMES.items()},
            **_CLIP_FIXED,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "projection_dim": self.projection_dim,
        }


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
