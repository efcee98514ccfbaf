"""Single files in LDM's names: there and back, strict both ways, relatives named."""

import jax
import numpy as np
import pytest

from fd_jax import FaceDiffuser, sharding
from fd_jax.architecture import Architecture
from fd_jax.checkpoints import diffusers
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.single_file import single_file_tensors, write_single_file
from fd_jax.checkpoints.torch import ldm_names
from fd_jax.checkpoints.torch.files import open_tensors, write_safetensors
from fd_jax.checkpoints.torch.names import flatten, torch_names
from fd_jax.checkpoints.torch.writer import write_torch
from fd_jax.checkpoints.weights import open_weights
from fd_jax.errors import CheckpointError
from fd_jax.networks import make_networks
from fd_jax.schedule import ScheduleConfig
from tests.helpers.networks import TINY
from tests.helpers.untrained import random_params

PARTS = ("unet", "vae", "text_encoder")
UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."
IDS = f"{TEXT}text_model.embeddings.position_ids"
FIRST = f"{UNET}input_blocks.0.0.weight"
CONTEXT = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
# Some of Stable Diffusion 1.5's own names and shapes, of each kind.
KNOWN = {
    FIRST: (320, 4, 3, 3),
    f"{UNET}time_embed.0.weight": (1280, 320),
    f"{UNET}time_embed.2.bias": (1280,),
    f"{UNET}input_blocks.1.0.in_layers.0.weight": (320,),
    f"{UNET}input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    CONTEXT: (320, 768),
    f"{UNET}input_blocks.3.0.op.weight": (320, 320, 3, 3),
    f"{UNET}input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    f"{UNET}input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
    f"{UNET}middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
    f"{UNET}middle_block.2.emb_layers.1.weight": (1280, 1280),
    f"{UNET}output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
    f"{UNET}output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
    f"{UNET}output_blocks.8.2.conv.bias": (640,),
    f"{UNET}output_blocks.11.1.transformer_blocks.0.attn1.to_out.0.weight": (320, 320),
    f"{UNET}out.2.weight": (4, 320, 3, 3),
    f"{VAE}encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    f"{VAE}encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
    f"{VAE}encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    f"{VAE}decoder.mid.block_2.conv2.weight": (512, 512, 3, 3),
    f"{VAE}decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
    f"{VAE}decoder.up.1.upsample.conv.weight": (256, 256, 3, 3),
    f"{VAE}decoder.norm_out.weight": (128,),
    f"{VAE}post_quant_conv.weight": (4, 4, 1, 1),
    f"{TEXT}text_model.embeddings.token_embedding.weight": (49408, 768),
    f"{TEXT}text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
    f"{TEXT}text_model.final_layer_norm.bias": (768,),
    IDS: (1, 77),
}


@pytest.fixture(scope="module")
def abstract():
    networks = make_networks(TINY)
    return {part: getattr(networks, part).abstract for part in PARTS}


@pytest.fixture(scope="module")
def params(abstract):
    return {part: random_params(abstract[part], 5, part) for part in PARTS}


@pytest.fixture(scope="module")
def tensors(params):
    """The tensors of the tiny networks in a single file. Tests copy what they change."""
    return dict(single_file_tensors(params))


@pytest.fixture(scope="module")
def average(abstract):
    """The tensors of another UNet, as LDM's average of the weights."""
    params = random_params(abstract["unet"], 6, "unet")
    named = single_file_tensors({"unet": params})
    short = {name.removeprefix("model.").replace(".", ""): data for name, data in named}
    counters = {"model_ema.decay": np.array(0.9999, "f4"), "model_ema.num_updates": np.array(7)}
    return params, {f"model_ema.{name}": data for name, data in short.items()} | counters


def load(path, abstract, wanted=PARTS, **options):
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    placement = Placement("float32", lambda path, shape: where)
    return open_weights(path, **options).load(wanted, placement, abstract)


def assert_same(found, expected):
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(array), str(path))


@pytest.mark.slow
def test_full_size_names_and_shapes(monkeypatch):
    monkeypatch.setattr(np, "ascontiguousarray", lambda array: array)  # they are hollow
    networks = make_networks(Architecture())
    shapes = {part: getattr(networks, part).abstract for part in PARTS}
    hollow = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    shapes = {name: data.shape for name, data in single_file_tensors(hollow)}
    assert len(shapes) == 686 + 248 + 196 + 1
    assert {name: shapes.get(name) for name in KNOWN} == KNOWN
    ema = ldm_names.unet_part(hollow["unet"], ema=True)
    found = {ema.prefix + torch_names(path, ema.names)[0] for path in flatten(hollow["unet"])}
    expected = (name.removeprefix("model.") for name in shapes if name.startswith(UNET))
    assert found == {"model_ema." + name.replace(".", "") for name in expected}


def test_the_architecture_is_known_by_its_sizes(tmp_path):
    """The configs are those of Stable Diffusion 1.5, of which no file of this layout holds any."""
    first = {FIRST: np.zeros((320, 4, 3, 3), "f4")}
    write_safetensors(tmp_path / "x", first)
    opened = open_weights(tmp_path / "x")
    assert opened.parts == ("unet",)
    assert opened.architecture == {"unet": Architecture().unet}
    assert opened.schedule == ScheduleConfig()
    write_safetensors(tmp_path / "x", {k: v[:64] for k, v in first.items()})
    opened = open_weights(tmp_path / "x")
    assert opened.architecture == {}
    assert opened.schedule is None


def test_written_and_read_again(params, abstract, tmp_path):
    write_single_file(tmp_path / "x.safetensors", params)
    loaded = load(tmp_path / "x.safetensors", abstract)
    assert_same(loaded.params, params)
    assert loaded.ignored_tensors == [IDS]


def test_a_ckpt_of_a_trainer(params, tensors, abstract, tmp_path, write_torch_zip):
    """With the schedule that LDM keeps beside the weights, and what Lightning adds."""
    beside = {
        "betas": np.zeros(4, "f4"),
        "alphas_cumprod_prev": np.zeros(4, "f4"),
        "posterior_mean_coef2": np.zeros(4, "f4"),
        "cond_stage_model.logit_scale": np.zeros((), "f4"),
        "first_stage_model.loss.logvar": np.zeros((), "f4"),
    }
    callback = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n"
    score = (
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00f8I0\nI1\ntR"
        b"(J\x03\x00\x00\x00X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffJ\x00\x00\x00\x00tb"
        b"c_codecs\nencode\n(X\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00X\x06\x00\x00\x00latin1tRtR"
    ).replace(b"I0\nI1\n", b"\x89\x88")
    content = {
        "epoch": 3,
        "state_dict": tensors | beside,
        "callbacks": {callback: {"monitor": "loss", "best": score}},
    }
    loaded = load(write_torch_zip(tmp_path / "x.ckpt", content), abstract)
    assert_same(loaded.params, params)
    assert loaded.ignored_tensors == sorted([*beside, IDS])


@pytest.mark.parametrize(
    "attention", [("query", "key", "value", "proj_attn"), ("to_q", "to_k", "to_v", "to_out.0")]
)
@pytest.mark.parametrize("convolutions", [False, True])
def test_every_naming_of_the_autoencoders_attention(
    params, tensors, abstract, tmp_path, attention, convolutions
):
    renamed = {}
    for name, data in tensors.items():
        if ".attn_1." in name:
            for new, old in zip(attention, ("q", "k", "v", "proj_out"), strict=True):
                name = name.replace(f".attn_1.{old}.", f".attn_1.{new}.")
            data = data if convolutions or data.ndim < 4 else data[:, :, 0, 0]
        renamed[name] = data
    assert renamed.keys() != tensors.keys()
    write_safetensors(tmp_path / "x", renamed)
    assert_same(load(tmp_path / "x", abstract).params, params)


def test_a_folder_of_diffusers_may_have_the_third_naming(params, abstract, tmp_path):
    diffusers.write_folder("vae", tmp_path, params["vae"], TINY.vae)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    renamed = {}
    for name, tensor in open_tensors(path).items():
        for new, old in (("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "proj_attn")):
            name = name.replace(f".{old}.", f".{new}.")
        renamed[name] = tensor.read()
    assert any(name.endswith("attentions.0.q.weight") for name in renamed)
    write_safetensors(path, renamed)
    assert_same(load(tmp_path, abstract, ["vae"]).params["vae"], params["vae"])


def test_a_text_encoder_without_its_level(params, tensors, abstract, tmp_path):
    renamed = {name.replace(".text_model.", "."): data for name, data in tensors.items()}
    write_safetensors(tmp_path / "x", renamed)
    assert_same(load(tmp_path / "x", abstract).params, params)


def test_the_average_counts_where_there_is_one(params, tensors, average, abstract, tmp_path):
    averaged, more = average
    write_safetensors(tmp_path / "x", tensors | more)
    assert_same(load(tmp_path / "x", abstract).params, params | {"unet": averaged})
    assert_same(load(tmp_path / "x", abstract, ema=False).params, params)
    incomplete = dict(tensors | more)
    del incomplete["model_ema.diffusion_modelout2bias"]
    write_safetensors(tmp_path / "x", incomplete)
    for ema in (True, False):
        with pytest.raises(CheckpointError, match="lacks the tensors model_ema"):
            load(tmp_path / "x", abstract, ema=ema)


def test_some_of_the_networks(params, abstract, tmp_path):
    write_single_file(tmp_path / "x", {"unet": params["unet"]})
    assert_same(load(tmp_path / "x", abstract, ["unet"]).params["unet"], params["unet"])
    with pytest.raises(CheckpointError, match=r"x holds \['unet'\], expected \['vae'\] too"):
        load(tmp_path / "x", abstract, ["unet", "vae"])


def lacking(tensors):
    return {name: data for name, data in tensors.items() if name != f"{UNET}out.2.bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lacking, "lacks the tensors model.diffusion_model.out.2.bias"),
        (lambda x: x | {"y": np.zeros(2, "f4")}, "has unknown tensors y"),
        (lambda x: x | {f"{VAE}y": np.zeros(2, "f4")}, "has unknown tensors first_stage_model.y"),
        (lambda x: x | {f"{UNET}out.2.bias": np.zeros(3, "f4")}, r"out.2.bias is \(3,\), expected"),
        (lambda x: x | {f"{VAE}quant_conv.bias": np.full(8, np.nan, "f4")}, "8 values of 8 that a"),
    ],
)
def test_it_is_strict_both_ways(tensors, abstract, tmp_path, change, message):
    write_safetensors(tmp_path / "x", change(tensors))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "x", abstract)


@pytest.mark.parametrize(
    ("name", "shape", "found"),
    [
        ("conditioner.embedders.1.model.ln_final.weight", (4,), "SDXL"),
        ("conditioner.embedders.0.model.ln_final.weight", (4,), "the refiner of SDXL"),
        (f"{UNET}label_emb.0.0.weight", (4, 4), "SDXL"),
        (f"{UNET}joint_blocks.0.x", (4, 4), "Stable Diffusion 3"),
        ("double_blocks.0.img_mod.lin.weight", (4, 4), "Flux"),
        ("cond_stage_model.model.ln_final.weight", (4,), "Stable Diffusion 2"),
        ("control_model.input_blocks.0.0.weight", (4, 4), "a ControlNet"),
        (CONTEXT, (320, 1024), "Stable Diffusion 2"),
        (CONTEXT, (320, 2048), "SDXL"),
        (FIRST, (320, 9, 3, 3), "an inpainting model"),
        (FIRST, (320, 8, 3, 3), "InstructPix2Pix"),
    ],
)
def test_relatives_are_named(tmp_path, name, shape, found):
    write_safetensors(tmp_path / "x", {name: np.zeros(shape, "f4")})
    with pytest.raises(CheckpointError, match=f"x is {found}, expected a model of Stable Diff"):
        open_weights(tmp_path / "x")


@pytest.fixture(scope="module")
def scenes(checkpoints, abstract, tmp_path_factory):
    """The TDM of the tiny pair in every layout that a plain text-to-image UNet comes in."""
    folder = tmp_path_factory.mktemp("scenes")
    unet = {"unet": load(checkpoints["tdm"], abstract, ["unet"]).params["unet"]}
    write_single_file(folder / "ldm.safetensors", unet)
    write_torch(folder / "ldm.ckpt", single_file_tensors(unet))
    diffusers.write_folder("unet", folder / "folder", unet["unet"], TINY.unet)
    diffusers.write_folder("unet", folder / "whole" / "unet", unet["unet"], TINY.unet)
    diffusers.write_schedule(
        folder / "whole" / "scheduler", ScheduleConfig(steps_offset=0, set_alpha_to_one=True)
    )
    diffusers.write_folder("unet", folder / "v" / "unet", unet["unet"], TINY.unet)
    diffusers.write_schedule(
        folder / "v" / "scheduler", ScheduleConfig(prediction_type="v_prediction")
    )
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("ldm.safetensors", "ldm.ckpt", "folder", "whole"),
        "folder/diffusion_pytorch_model.safetensors",
    ],
)
def test_any_unet_may_be_the_tdm(checkpoints, pipe, scenes, name):
    mesh = sharding.make_mesh(jax.devices()[:1])
    found = FaceDiffuser.from_pretrained(**checkpoints | {"tdm": scenes / name}, mesh=mesh)
    assert_same(found.compiled.params.tdm, pipe.compiled.params.tdm)
    assert_same(found.compiled.params.sdm, pipe.compiled.params.sdm)
    assert found.schedule == pipe.schedule


def test_a_tdm_that_does_not_fit_is_named(checkpoints, scenes):
    with pytest.raises(CheckpointError, match=r"v does not fit .*prediction_type is 'v_predict"):
        FaceDiffuser.from_pretrained(**checkpoints | {"tdm": scenes / "v"})
    with pytest.raises(CheckpointError, match=r"clip holds \['image_encoder'\], expected a TDM wi"):
        FaceDiffuser.from_pretrained(**checkpoints | {"tdm": checkpoints["image_encoder"]})
    with pytest.raises(CheckpointError, match=r"ldm.ckpt holds \['unet'\], expected \['text_enc"):
        FaceDiffuser.from_pretrained(**checkpoints | {"sdm": scenes / "ldm.ckpt"})
