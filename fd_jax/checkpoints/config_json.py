"""JSON of architectures and noise schedules, as diffusers and transformers store it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fd_jax.architecture import (
    CLIPTextConfig,
    CLIPVisionConfig,
    ConfigError,
    UNetConfig,
    VAEConfig,
)
from fd_jax.config import check_value, field_types
from fd_jax.errors import InputError
from fd_jax.schedule import ScheduleConfig

# Fields that change what a network computes, and the only values that are supported.
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
    types = field_types(cls)
    for field in dataclasses.fields(cls):  # pyright: ignore[reportArgumentType]
        theirs = names.get(field.name, field.name)
        if theirs in config and (field.name in names or theirs in optional):
            value: Any = config[theirs]
            if isinstance(value, list):
                value = tuple(value)
            check_value(f"{where}: {theirs}", value, types[field.name], ConfigError)
            known[field.name] = float(value) if isinstance(field.default, float) else value
    try:
        return cls(**known)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _with_defaults(config: Any, where: str, defaults: Mapping[str, Any], tower: str) -> Any:
    """Completes the config of a CLIP encoder, which may be part of a whole CLIP's config."""
    if not isinstance(config, Mapping):
        return config
    if tower in config:
        # The whole CLIP's projection_dim counts, whatever the encoder's own config says.
        width = {key: config[key] for key in ("projection_dim",) if key in config}
        config = config[tower]
        if not isinstance(config, Mapping):
            raise ConfigError(f"{where}: {tower} is {config!r}, expected a JSON object")
        config = {**config, **width}
    elif (kind := config.get("model_type")) not in (None, f"clip_{tower.split('_')[0]}_model"):
        raise ConfigError(f"{where}: model_type is {kind!r}, expected a CLIP or its {tower}")
    return {**defaults, **config}


def _read_unet(config: Mapping[str, Any], where: str) -> UNetConfig:
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
        UNetConfig, config, where, _UNET_FIXED, names, optional=optional, has_attention=attends
    )


def _unet_json(config: UNetConfig) -> dict[str, Any]:
    """Returns the `config.json` for diffusers."""
    down = [
        "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.has_attention
    ]
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "sample_size": config.sample_size,
        "down_block_types": down,
        "up_block_types": [block.replace("Down", "Up") for block in reversed(down)],
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "cross_attention_dim": config.cross_attention_dim,
        "attention_head_dim": config.num_heads,
        "norm_num_groups": config.norm_num_groups,
        "norm_eps": config.norm_eps,
        "act_fn": "silu",
        "center_input_sample": False,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
    }


def _read_vae(config: Mapping[str, Any], where: str) -> VAEConfig:
    """Reads the `config.json` of a diffusers AutoencoderKL. Raises ConfigError."""
    names = {name: name for name in ("block_out_channels", "layers_per_block")}
    optional = ("norm_num_groups", "scaling_factor", "sample_size")
    read = _read(VAEConfig, config, where, _VAE_FIXED, names, optional=optional)
    for key, kind in (("down_block_types", "DownEncoder"), ("up_block_types", "UpDecoder")):
        expected = [f"{kind}Block2D"] * len(read.block_out_channels)
        if (blocks := config.get(key, expected)) != expected:
            raise ConfigError(f"{where}: {key} is {blocks!r}, supported is {expected}")
    return read


def _vae_json(config: VAEConfig) -> dict[str, Any]:
    """Returns the `config.json` for diffusers."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        **dataclasses.asdict(config),
        "block_out_channels": list(config.block_out_channels),
    }


def _read_text_encoder(config: Mapping[str, Any], where: str) -> CLIPTextConfig:
    """Reads the `config.json` of a CLIPTextModel, or a CLIP's `text_config`."""
    names = {"max_length": "max_position_embeddings", "vocab_size": "vocab_size"}
    config = _with_defaults(config, where, _CLIP_TEXT_DEFAULTS, "text_config")
    return _read(CLIPTextConfig, config, where, _CLIP_FIXED, _CLIP_NAMES | names)


def _text_encoder_json(config: CLIPTextConfig) -> dict[str, Any]:
    """Returns the `config.json` for transformers."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **{theirs: getattr(config, ours) for ours, theirs in _CLIP_NAMES.items()},
        **_CLIP_FIXED,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "projection_dim": config.hidden_size,
        "bos_token_id": config.vocab_size - 2,
        "eos_token_id": config.vocab_size - 1,
        "pad_token_id": 1,
    }


def _read_image_encoder(config: Mapping[str, Any], where: str) -> CLIPVisionConfig:
    """Reads the `config.json` of a CLIP, a CLIPVisionModel, or a CLIP's `vision_config`."""
    config = _with_defaults(config, where, _CLIP_VISION_DEFAULTS, "vision_config")
    names = {name: name for name in ("image_size", "patch_size", "projection_dim")}
    fixed = {**_CLIP_FIXED, "num_channels": 3}
    return _read(CLIPVisionConfig, config, where, fixed, _CLIP_NAMES | names)


def _image_encoder_json(config: CLIPVisionConfig) -> dict[str, Any]:
    """Returns the `config.json` for transformers."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        **{theirs: getattr(config, ours) for ours, theirs in _CLIP_NAMES.items()},
        **_CLIP_FIXED,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "projection_dim": config.projection_dim,
    }


# Fields of a diffusers scheduler that change its results and are not supported.
_UNSUPPORTED = ("trained_betas", "clip_sample", "thresholding", "rescale_betas_zero_snr")


def schedule_from_json(config: Mapping[str, Any]) -> ScheduleConfig:
    """Reads the contents of a diffusers `scheduler_config.json`.

    Fields that the file lacks keep their defaults. Fields that do not belong to the noise
    schedule are ignored: the file's solver and its spacing of the timesteps are not followed.

    Raises:
        InputError: A field is of the wrong type or out of range, or the file asks for something
            that changes the result and is not supported, such as clipped predictions.
    """
    for name in _UNSUPPORTED:
        if name in config and config[name] not in (None, False):
            raise InputError(f"{name} is {config[name]!r}, expected null or false")
    known = {}
    types = field_types(ScheduleConfig)
    for field in dataclasses.fields(ScheduleConfig):
        if field.name in config:
            value = config[field.name]
            check_value(field.name, value, types[field.name])
            known[field.name] = float(value) if isinstance(field.default, float) else value
    return ScheduleConfig(**known)


def schedule_to_json(config: ScheduleConfig) -> dict[str, Any]:
    """Returns the config for diffusers, with Stable Diffusion 1.5's keys.

    Schedulers of diffusers differ in the defaults of missing keys: DDIM would clip to -1..1.
    """
    return {
        "_class_name": "PNDMScheduler",
        "clip_sample": False,
        "skip_prk_steps": True,
        "trained_betas": None,
        **dataclasses.asdict(config),
    }


_READERS: dict[type, Callable[[Mapping[str, Any], str], Any]] = {
    UNetConfig: _read_unet,
    VAEConfig: _read_vae,
    CLIPTextConfig: _read_text_encoder,
    CLIPVisionConfig: _read_image_encoder,
}
_WRITERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    UNetConfig: _unet_json,
    VAEConfig: _vae_json,
    CLIPTextConfig: _text_encoder_json,
    CLIPVisionConfig: _image_encoder_json,
}


def config_from_json(
    cls: type[_Config], config: Mapping[str, Any], where: str = "config.json"
) -> _Config:
    """Reads the content of a network's `config.json`.

    Args:
        cls: Config to read, such as `UNetConfig`.
        config: Content of the file; for an encoder of CLIP it may be that of a whole CLIP.
        where: Name of the file, for messages.

    Raises:
        ConfigError: The config is damaged, or describes an architecture that is not supported.
    """
    return _READERS[cls](config, where)


def config_to_json(config: Any) -> dict[str, Any]:
    """Returns the `config.json` of a network for diffusers or transformers."""
    return _WRITERS[type(config)](config)
