"""Sizes of the models, read from the json configs of their checkpoints."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from fd_jax.errors import InputError

# Settings that change what a model computes, and the values that are computed here.
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
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "time_cond_proj_dim": None,
    "resnet_time_scale_shift": "default",
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


def _read(config: Mapping[str, Any], where: str, fixed: Mapping[str, Any], names: Mapping) -> dict:
    """Returns the settings `names` (ours -> theirs), after a check of those that are `fixed`."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where} is a {type(config).__name__}, expected a JSON object")
    for name, expected in fixed.items():
        if (found := config.get(name, expected)) != expected:
            raise ConfigError(f"{where}: {name} is {found!r}, supported is {expected!r}")
    if missing := sorted(theirs for theirs in names.values() if theirs not in config):
        raise ConfigError(f"{where} lacks {missing}")
    found = {ours: config[theirs] for ours, theirs in names.items()}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def _with_defaults(config: Any, where: str, defaults: Mapping[str, Any], tower: str) -> Any:
    """Completes the config of a CLIP tower, taken out of that of a whole CLIP if need be."""
    if not isinstance(config, Mapping):
        return config
    if tower in config:
        # The towers are projected to one width, which old files give at the top alone.
        width = {key: config[key] for key in ("projection_dim",) if key in config}
        config = config[tower]
        if not isinstance(config, Mapping):
            raise ConfigError(f"{where}: {tower} is {config!r}, expected a JSON object")
        config = width | config
    elif (kind := config.get("model_type")) not in (None, f"clip_{tower.split('_')[0]}_model"):
        raise ConfigError(f"{where}: model_type is {kind!r}, expected a CLIP or its {tower}")
    return {**defaults, **config}


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is not int or number < 1:
                raise ConfigError(
                    f"{type(config).__name__}: {name} is {value!r}, expected whole numbers above 0"
                )
        if value == ():
            raise ConfigError(f"{type(config).__name__}: {name} is empty")


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
        sizes = "block_out_channels", "layers_per_block", "cross_attention_dim", "num_heads"
        _check_positive(self, *sizes, "norm_num_groups", "sample_size")
        _check_divides(self, "num_heads", "block_out_channels")
        _check_divides(self, "norm_num_groups", "block_out_channels")
        if len(self.has_attention) != len(self.block_out_channels):
            raise ConfigError(
                f"UNetConfig: {len(self.has_attention)} kinds of block, expected as many as "
                f"block_out_channels, {self.block_out_channels}"
            )

    @property
    def downscale(self) -> int:
        """How many times smaller the lowest level is than the latents, per side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str = "UNet config") -> "UNetConfig":
        """Reads the `config.json` of a diffusers UNet. Raises ConfigError."""
        names = {
            "block_out_channels": "block_out_channels",
            "has_attention": "down_block_types",
            "layers_per_block": "layers_per_block",
            "cross_attention_dim": "cross_attention_dim",
            # diffusers' name is a mistake of old: it holds the number of heads.
            "num_heads": "attention_head_dim",
        }
        found = _read(config, where, _UNET_FIXED, names)
        blocks = found["has_attention"]
        kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
        mirrored = tuple(str(block).replace("Down", "Up") for block in reversed(blocks))
        if not set(blocks) <= kinds.keys() or mirrored != tuple(config.get("up_block_types", ())):
            raise ConfigError(
                f"{where}: blocks {blocks} down and {config.get('up_block_types')} up, supported "
                f"are {sorted(kinds)} and their mirror image"
            )
        found["has_attention"] = tuple(kinds[block] for block in blocks)
        if isinstance(found["num_heads"], tuple):
            raise ConfigError(f"{where}: attention_head_dim differs by level, supported is one")
        optional = ("norm_num_groups", "norm_eps", "sample_size")
        return cls(**found, **{name: config[name] for name in optional if name in config})

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
        sizes = ("block_out_channels", "layers_per_block", "norm_num_groups", "sample_size")
        _check_positive(self, *sizes)
        _check_divides(self, "norm_num_groups", "block_out_channels")

    @property
    def downscale(self) -> int:
        """How many times smaller the latents are than the image, per side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, config: Mapping[str, Any], where: str = "VAE config") -> "VAEConfig":
        """Reads the `config.json` of a diffusers AutoencoderKL. Raises ConfigError."""
        names = {name: name for name in ("block_out_channels", "layers_per_block")}
        found = _read(config, where, _VAE_FIXED, names)
        optional = ("norm_num_groups", "scaling_factor", "sample_size")
        found |= {name: config[name] for name in optional if name in config}
        for key, kind in (("down_block_types", "DownEncoder"), ("up_block_types", "UpDecoder")):
            expected = [f"{kind}Block2D"] * len(found["block_out_channels"])
            if (blocks := config.get(key, expected)) != expected:
                raise ConfigError(f"{where}: {key} is {blocks}, supported is {expected}")
        return cls(**found)

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
        _check_positive(self, *(field.name for field in dataclasses.fields(self)))
        _check_divides(self, "num_heads", "hidden_size")

    @classmethod
    def from_json(
        cls, config: Mapping[str, Any], where: str = "CLIP text config"
    ) -> "CLIPTextConfig":
        """Reads the `config.json` of a CLIPTextModel, or a CLIP's `text_config`."""
        names = {"max_length": "max_position_embeddings", "vocab_size": "vocab_size"}
        config = _with_defaults(config, where, _CLIP_TEXT_DEFAULTS, "text_config")
        return cls(**_read(config, where, _CLIP_FIXED, _CLIP_NAMES | names))

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
        _check_positive(self, *(field.name for field in dataclasses.fields(self)))
        _check_divides(self, "num_heads", "hidden_size")
        _check_divides(self, "patch_size", "image_size")

    @classmethod
    def from_json(
        cls, config: Mapping[str, Any], where: str = "CLIP vision config"
    ) -> "CLIPVisionConfig":
        """Reads the `config.json` of a CLIP, a CLIPVisionModel, or a CLIP's `vision_config`."""
        config = _with_defaults(config, where, _CLIP_VISION_DEFAULTS, "vision_config")
        names = {name: name for name in ("image_size", "patch_size", "projection_dim")}
        return cls(**_read(config, where, _CLIP_FIXED, _CLIP_NAMES | names))

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


class Configs(NamedTuple):
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
