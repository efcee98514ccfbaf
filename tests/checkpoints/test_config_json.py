import dataclasses
import json
import math
import re

import pytest

from fd_jax.architecture import (
    Architecture,
    CLIPTextConfig,
    CLIPVisionConfig,
    ConfigError,
    UNetConfig,
    VAEConfig,
)
from fd_jax.checkpoints.config_json import config_from_json, config_to_json
from fd_jax.errors import InputError
from fd_jax.files import read_json
from tests.helpers.untrained import CONFIGS

CLASSES = (UNetConfig, VAEConfig, CLIPTextConfig, CLIPVisionConfig)
WHERE = "base/x/config.json"
ODD_UNET = UNetConfig(
    block_out_channels=(6, 12, 12),
    has_attention=(False, True, False),
    layers_per_block=3,
    cross_attention_dim=5,
    num_heads=3,
    norm_num_groups=2,
    norm_eps=1e-4,
    sample_size=24,
)
ODD_VAE = VAEConfig(
    block_out_channels=(3, 9),
    layers_per_block=4,
    norm_num_groups=3,
    scaling_factor=0.5,
    sample_size=40,
)


def read(cls, config):
    return config_from_json(cls, config, WHERE)


def refused(cls, config) -> str:
    with pytest.raises(ConfigError) as error:
        read(cls, config)
    assert isinstance(error.value, InputError)
    return str(error.value)


# What is read.


@pytest.mark.parametrize("config", [*Architecture(), *CONFIGS, ODD_UNET, ODD_VAE], ids=repr)
def test_json_round_trip(config):
    through_text = json.loads(json.dumps(config_to_json(config)))

    assert config_from_json(type(config), config_to_json(config)) == config
    assert read(type(config), through_text) == config


@pytest.mark.golden
def test_files_of_stable_diffusion_give_the_defaults(goldens):
    configs = read_json(goldens / "configs.json")
    if "sd15" not in configs:
        pytest.skip("these goldens have no config of Stable Diffusion 1.5")
    names = ("unet", "vae", "text", "vision")
    for cls, name in zip(CLASSES, names, strict=True):
        assert read(cls, configs["sd15"][name]) == cls()
        assert read(cls, config_to_json(cls()) | configs["sd15"][name]) == cls()


@pytest.mark.parametrize("cls", CLASSES)
def test_what_diffusers_and_transformers_add_is_ignored(cls):
    added = {
        "_class_name": "Other",
        "_diffusers_version": "0.35.2",
        "_name_or_path": "/somewhere",
        "dropout": 0.1,
        "upcast_attention": True,
        "force_upcast": False,
        "torch_dtype": "float16",
        "attention_dropout": 0.0,
        "architectures": ["CLIPModel"],
    }
    assert read(cls, config_to_json(cls()) | added) == cls()


def test_numbers_without_a_point_are_floats():
    vae = read(VAEConfig, config_to_json(VAEConfig()) | {"scaling_factor": 1})
    assert (type(vae.scaling_factor), vae.scaling_factor) == (float, 1)


def test_downscale():
    assert (UNetConfig().downscale, VAEConfig().downscale) == (8, 8)
    assert (ODD_UNET.downscale, ODD_VAE.downscale) == (4, 2)


@pytest.mark.parametrize("cls", [UNetConfig, VAEConfig])
def test_optional_settings_have_defaults(cls):
    optional = ["norm_num_groups", "norm_eps", "scaling_factor", "sample_size"]
    config = {key: value for key, value in config_to_json(cls()).items() if key not in optional}
    assert read(cls, config) == cls()


@pytest.mark.parametrize("cls", [CLIPTextConfig, CLIPVisionConfig])
def test_transformers_leaves_its_defaults_out(cls):
    """Its defaults are the sizes of CLIP ViT-B/32."""
    sizes = {
        CLIPTextConfig: CLIPTextConfig(hidden_size=512, intermediate_size=2048, num_heads=8),
        CLIPVisionConfig: CLIPVisionConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_layers=12,
            num_heads=12,
            patch_size=32,
            projection_dim=512,
        ),
    }
    tower = "text" if cls is CLIPTextConfig else "vision"
    assert read(cls, {}) == sizes[cls]
    assert read(cls, {"model_type": f"clip_{tower}_model"}) == sizes[cls]
    assert read(cls, {f"{tower}_config": {}, "model_type": "clip"}) == sizes[cls]
    assert read(cls, config_to_json(cls())) == cls()


def make_clip(**top):
    """The config of a whole CLIP."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "vision_config": config_to_json(CLIPVisionConfig()),
        "text_config": config_to_json(CLIPTextConfig()),
        **top,
    }


def test_towers_of_a_whole_clip():
    assert read(CLIPVisionConfig, make_clip()) == CLIPVisionConfig()
    assert read(CLIPTextConfig, make_clip()) == CLIPTextConfig()


def test_the_whole_clip_knows_the_width_of_its_projection():
    """transformers builds both projections with it, and gives its default for a tower's."""
    config = make_clip(projection_dim=640)
    config["vision_config"]["projection_dim"] = 512
    assert read(CLIPVisionConfig, config).projection_dim == 640
    del config["vision_config"]["projection_dim"]
    assert read(CLIPVisionConfig, config).projection_dim == 640
    assert read(CLIPVisionConfig, make_clip()).projection_dim == 768


# What is refused.


UNSUPPORTED = (
    (UNetConfig, "use_linear_projection", True, False),
    (UNetConfig, "addition_embed_type", "text_time", None),
    (UNetConfig, "class_embed_type", "projection", None),
    (UNetConfig, "mid_block_type", None, "UNetMidBlock2DCrossAttn"),
    (UNetConfig, "in_channels", 9, 4),
    (UNetConfig, "transformer_layers_per_block", [1, 2, 10], 1),
    (UNetConfig, "resnet_time_scale_shift", "scale_shift", "default"),
    (UNetConfig, "time_embedding_type", "fourier", "positional"),
    (UNetConfig, "resnet_skip_time_act", True, False),
    (UNetConfig, "timestep_post_act", "silu", None),
    (UNetConfig, "flip_sin_to_cos", False, True),
    (UNetConfig, "freq_shift", 1, 0),
    (UNetConfig, "act_fn", "gelu", "silu"),
    (UNetConfig, "num_attention_heads", 8, None),
    (VAEConfig, "latent_channels", 16, 4),
    (VAEConfig, "shift_factor", 0.1159, None),
    (VAEConfig, "use_quant_conv", False, True),
    (VAEConfig, "mid_block_add_attention", False, True),
    (CLIPTextConfig, "hidden_act", "gelu", "quick_gelu"),
    (CLIPTextConfig, "layer_norm_eps", 1e-6, 1e-5),
    (CLIPVisionConfig, "hidden_act", "gelu", "quick_gelu"),
    (CLIPVisionConfig, "num_channels", 4, 3),
)


@pytest.mark.parametrize(("cls", "key", "found", "supported"), UNSUPPORTED)
def test_unsupported_settings(cls, key, found, supported):
    message = refused(cls, config_to_json(cls()) | {key: found})
    assert message == f"{WHERE}: {key} is {found!r}, supported is {supported!r}"


@pytest.mark.parametrize(("cls", "key", "found", "supported"), UNSUPPORTED)
def test_supported_settings_may_be_given(cls, key, found, supported):
    assert read(cls, config_to_json(cls()) | {key: supported}) == cls()


def test_stable_diffusion_2_is_refused():
    sd2 = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024}
    config = config_to_json(UNetConfig()) | sd2
    assert "use_linear_projection is True" in refused(
        UNetConfig, config | {"use_linear_projection": True}
    )
    message = f"{WHERE}: attention_head_dim is (5, 10, 20, 20), expected a whole number in 1.."
    assert refused(UNetConfig, config).startswith(message)


def test_stable_diffusion_xl_is_refused():
    sdxl = {
        "addition_embed_type": "text_time",
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
    }
    assert "supported is" in refused(UNetConfig, config_to_json(UNetConfig()) | sdxl)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("down_block_types", None),
        ("down_block_types", 4),
        ("down_block_types", "DownBlock2D"),
        ("down_block_types", ["DownBlock2D", ["DownBlock2D"]]),
        ("down_block_types", ["SimpleCrossAttnDownBlock2D"] * 4),
        ("down_block_types", {"DownBlock2D": 1}),
        ("up_block_types", None),
        ("up_block_types", 4),
        ("up_block_types", ["UpBlock2D"] * 4),
        ("up_block_types", config_to_json(UNetConfig())["up_block_types"][::-1]),
    ],
)
def test_blocks_of_the_unet(key, found):
    message = refused(UNetConfig, config_to_json(UNetConfig()) | {key: found})
    assert message.startswith(f"{WHERE}: {key} is {found!r}, supported ")


@pytest.mark.parametrize("key", ["down_block_types", "up_block_types"])
@pytest.mark.parametrize(
    "found", [None, 4, [], ["DownEncoderBlock2D"], ["AttnDownEncoderBlock2D"] * 4, [[1]]]
)
def test_blocks_of_the_vae(key, found):
    message = refused(VAEConfig, config_to_json(VAEConfig()) | {key: found})
    assert message.startswith(f"{WHERE}: {key} is {found!r}, supported is [")


def test_as_many_blocks_as_widths():
    config = config_to_json(UNetConfig()) | {"block_out_channels": [320, 640]}
    assert refused(UNetConfig, config).startswith(f"{WHERE}: UNetConfig: 4 kinds of block")


SIZES = {
    UNetConfig: ("layers_per_block", "cross_attention_dim", "attention_head_dim", "sample_size"),
    VAEConfig: ("layers_per_block", "norm_num_groups", "sample_size"),
    CLIPTextConfig: ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"),
    CLIPVisionConfig: ("intermediate_size", "num_attention_heads", "image_size", "projection_dim"),
}
NO_SIZES = (None, True, False, 0, -1, 8.0, "8", "", math.nan, 10**400, {}, {"a": 1}, [], [8], [[8]])


@pytest.mark.parametrize(
    ("cls", "key"), [(cls, key) for cls, keys in SIZES.items() for key in keys]
)
def test_sizes_are_whole_numbers_above_0(cls, key):
    for value in NO_SIZES:
        message = refused(cls, config_to_json(cls()) | {key: value})
        shown = tuple(value) if isinstance(value, list) else value
        assert message == f"{WHERE}: {key} is {shown!r}, expected a whole number in 1..2147483647"


@pytest.mark.parametrize("cls", [UNetConfig, VAEConfig])
def test_widths_are_lists_of_whole_numbers_above_0(cls):
    for value in (None, True, 320, "320", [], {}, [[320] * 4], [320, None], [320, "640"], [0, 32]):
        message = refused(cls, config_to_json(cls()) | {"block_out_channels": value})
        assert message.startswith(f"{WHERE}: block_out_channels is ")
        assert message.endswith(", expected a list of whole numbers in 1..2147483647, 1 or more")


@pytest.mark.parametrize(("cls", "key"), [(UNetConfig, "norm_eps"), (VAEConfig, "scaling_factor")])
def test_floats_are_finite_and_above_0(cls, key):
    bad = (None, True, 0, 0.0, -1e-5, math.nan, math.inf, -math.inf, 10**400, "1e-5", [1e-5], {})
    for value in bad:
        message = refused(cls, config_to_json(cls()) | {key: value})
        assert message.startswith(f"{WHERE}: {key} is ")
        assert message.endswith(", expected a finite number above 0")


NEEDED = {
    UNetConfig: {
        "block_out_channels",
        "layers_per_block",
        "cross_attention_dim",
        "attention_head_dim",
        "down_block_types",
        "up_block_types",
    },
    VAEConfig: {"block_out_channels", "layers_per_block"},
}


@pytest.mark.parametrize("cls", NEEDED)
def test_needed_settings(cls):
    """All but those that have the same default in diffusers."""
    for key in config_to_json(cls()):
        rest = {other: value for other, value in config_to_json(cls()).items() if other != key}
        if key in NEEDED[cls]:
            assert re.search(rf"lacks \['{key}'\]|: {key} is None", refused(cls, rest))
        else:
            assert read(cls, rest) == cls()


@pytest.mark.parametrize(
    ("cls", "tower"), [(CLIPTextConfig, "text_config"), (CLIPVisionConfig, "vision_config")]
)
def test_towers_are_objects(cls, tower):
    for value in (None, 5, "text", [], [1]):
        message = refused(cls, {tower: value})
        assert message == f"{WHERE}: {tower} is {value!r}, expected a JSON object"


@pytest.mark.parametrize("cls", [CLIPTextConfig, CLIPVisionConfig])
def test_other_models_than_clip(cls):
    other = {CLIPTextConfig: "clip_vision_model", CLIPVisionConfig: "clip_text_model"}
    for kind in (other[cls], "bert", "siglip_vision_model", 5, []):
        message = refused(cls, config_to_json(cls()) | {"model_type": kind})
        assert message.startswith(f"{WHERE}: model_type is {kind!r}, expected a CLIP")


@pytest.mark.parametrize(
    ("cls", "change", "message"),
    [
        (UNetConfig, {"attention_head_dim": 7}, "num_heads is 7, expected a divisor of block_out"),
        (UNetConfig, {"norm_num_groups": 7}, "norm_num_groups is 7, expected a divisor of block"),
        (VAEConfig, {"norm_num_groups": 7}, "norm_num_groups is 7, expected a divisor of block_o"),
        (CLIPTextConfig, {"num_attention_heads": 7}, "num_heads is 7, expected a divisor of hidde"),
        (CLIPVisionConfig, {"num_attention_heads": 7}, "num_heads is 7, expected a divisor of hid"),
        (CLIPVisionConfig, {"patch_size": 15}, "patch_size is 15, expected a divisor of image_si"),
        (
            UNetConfig,
            {"block_out_channels": [5, 10, 10, 10], "attention_head_dim": 5, "norm_num_groups": 5},
            "block_out_channels is (5, 10, 10, 10), expected an even number first",
        ),
    ],
)
def test_sizes_that_do_not_divide(cls, change, message):
    found = refused(cls, config_to_json(cls()) | change)
    assert found.startswith(f"{WHERE}: {cls.__name__}: {message}")


@pytest.mark.parametrize("cls", CLASSES)
def test_any_value_gives_a_config_or_a_config_error(cls):
    odd = (
        *NO_SIZES,
        0.5,
        math.inf,
        [None],
        [8, "x"],
        [True, False],
        ["DownBlock2D"],
        [{}],
        "x" * 9,
    )
    for key, usual in config_to_json(cls()).items():
        for value in odd + ((usual * 2,) if isinstance(usual, list) else ([usual] * 4,)):
            try:
                config = read(cls, config_to_json(cls()) | {key: value})
            except ConfigError as error:
                message = str(error)
                assert message.startswith(WHERE)
            else:
                assert read(cls, config_to_json(config)) == config


@pytest.mark.parametrize("cls", CLASSES)
def test_fields_are_checked_however_they_are_set(cls):
    """As when tests and scripts make configs by hand."""
    for field in dataclasses.fields(cls):
        if field.name == "has_attention":
            continue
        default = getattr(cls(), field.name)
        wrong = (0, *default[1:]) if isinstance(default, tuple) else -default
        with pytest.raises(ConfigError, match=f"^{cls.__name__}: {field.name} is "):
            cls(**{field.name: wrong})


# Do they fit together?


def test_real_and_demo_networks_fit():
    Architecture().check()
    CONFIGS.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unet": UNetConfig(cross_attention_dim=1024)}, "cross_attention_dim of the UNet is 1024"),
        (
            {"image_encoder": CLIPVisionConfig(projection_dim=512)},
            "projection_dim of the image encoder is 512",
        ),
    ],
)
def test_networks_that_do_not_fit(change, message):
    with pytest.raises(ConfigError, match=f"^{message}, expected 768, the hidden_size of the text"):
        Architecture(**change).check()
