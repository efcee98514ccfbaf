"""LoRAs of every naming change the weights as they say, and those that do not fit are named."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from fd_jax import FaceDiffuser, sharding
from fd_jax.checkpoints.lora import open_lora, parse_lora, with_loras
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch import names
from fd_jax.checkpoints.torch.files import write_safetensors
from fd_jax.checkpoints.torch.names import flatten
from fd_jax.checkpoints.torch.writer import write_torch
from fd_jax.checkpoints.weights import open_weights
from fd_jax.errors import CheckpointError, InputError
from fd_jax.networks import make_networks
from tests.helpers.networks import TINY

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
# Modules of the tiny UNet of each kind, matrices and convolutions; and of the text encoder.
UNET = (
    f"{ATTENTION}.to_k",
    f"{ATTENTION}.to_out.0",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "mid_block.attentions.0.proj_in",
    "down_blocks.1.resnets.0.conv1",
    "down_blocks.0.downsamplers.0.conv",
)
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.0.mlp.fc1")
RANK = 3
ALPHA = 2.0


@pytest.fixture(scope="module")
def abstract():
    return make_networks(TINY).shapes()


@pytest.fixture(scope="module")
def weights(checkpoints):
    return open_weights(checkpoints["sdm"])


def place(dtype="float32"):
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    return Placement(dtype, lambda path, shape: where)


def in_torch(params, part):
    """Weights in PyTorch's names and layout."""
    layout = {"unet": names.UNET, "text_encoder": names.TEXT_ENCODER}[part]
    exported = names.export(params, names.Part(layout))
    return {name.removesuffix(".weight"): data for name, data in exported}


@pytest.fixture(scope="module")
def before(weights, abstract):
    params = weights.load(["unet", "text_encoder"], place(), abstract).params
    return {part: in_torch(params[part], part) for part in params}


@pytest.fixture(scope="module")
def factors(before):
    """The factors of each module's change: (down, up)."""
    rng = np.random.default_rng(0)
    found = {}
    for part, modules in (("unet", UNET), ("text_encoder", TEXT)):
        for module in modules:
            shape = before[part][module].shape
            down, up = (RANK, *shape[1:]), (shape[0], RANK, *(1 for _ in shape[2:]))
            found[part, module] = tuple(rng.normal(size=s).astype("f4") for s in (down, up))
    return found


def kohya(factors, alpha=ALPHA):
    tensors = {}
    for (part, module), (down, up) in factors.items():
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part]
        key = prefix + module.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{key}.alpha"] = np.array(alpha, "f4")
    return tensors


def peft(factors, down="lora_A", up="lora_B"):
    tensors = {}
    for (part, module), (a, b) in factors.items():
        key = {"unet": "unet.", "text_encoder": "text_encoder.text_model."}[part] + module
        tensors |= {f"{key}.{down}.weight": a, f"{key}.{up}.weight": b}
    return tensors


def of_processors(factors):
    """The older form of diffusers, which knows attention alone."""
    tensors = {}
    for (_, module), (down, up) in factors.items():
        if ".attn2." in module:
            owner, layer = module.removesuffix(".0").rsplit(".", 1)
            key = f"unet.{owner}.processor.{layer}_lora"
            tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return tensors


def change(down, up, factor):
    """The product by its definition, in float64."""
    product = np.einsum("or,r...->o...", up.reshape(len(up), -1).astype("f8"), down.astype("f8"))
    return factor * product


def merged(weights, abstract, loras, dtype="float32"):
    changed = with_loras(weights, loras, abstract)
    params = changed.load(["unet", "text_encoder"], place(dtype), abstract).params
    return {part: in_torch(params[part], part) for part in params}


def check(found, before, expected):
    """`expected` has the change of each module; all else is as it was, to the bit."""
    for part, tensors in before.items():
        for module, tensor in tensors.items():
            if (part, module) in expected:
                wanted = tensor.astype("f8") + expected[part, module]
                assert np.abs(wanted - tensor).max() > 0.1
                np.testing.assert_allclose(found[part][module], wanted, atol=3e-6, err_msg=module)
            else:
                np.testing.assert_array_equal(found[part][module], tensor)


@pytest.mark.parametrize(
    ("make", "alpha"),
    [
        (kohya, ALPHA),
        (lambda f: kohya(f, None), RANK),
        (peft, RANK),
        (lambda f: peft(f, "lora.down", "lora.up"), RANK),
        (lambda f: peft(f, "lora_linear_layer.down", "lora_linear_layer.up"), RANK),
        (of_processors, RANK),
    ],
)
def test_every_naming(weights, abstract, before, factors, tmp_path, make, alpha):
    write_safetensors(tmp_path / "x.safetensors", make(factors))
    found = merged(weights, abstract, [open_lora(tmp_path / "x.safetensors", 0.8)])
    changed = {k: v for k, v in factors.items() if make is not of_processors or "attn2" in k[1]}
    expected = {k: change(*pair, 0.8 * alpha / RANK) for k, pair in changed.items()}
    check(found, before, expected)


def test_a_pickle_and_a_folder(weights, abstract, before, factors, tmp_path):
    write_torch(tmp_path / "pytorch_lora_weights.bin", kohya(factors).items())
    expected = {k: change(*pair, ALPHA / RANK) for k, pair in factors.items()}
    for path in (tmp_path, tmp_path / "pytorch_lora_weights.bin"):
        check(merged(weights, abstract, [open_lora(path)]), before, expected)


def test_alpha_of_newer_headers(weights, abstract, before, factors, tmp_path):
    """diffusers writes it into the header, for all modules and for some."""
    adapter = {"unet.lora_alpha": 6, "text_encoder.lora_alpha": 1.5, "unet.use_dora": False}
    adapter["unet.alpha_pattern"] = {UNET[0]: 9}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(adapter)}
    safetensors.numpy.save_file(peft(factors), tmp_path / "x", header)
    alphas = {"unet": 6, "text_encoder": 1.5}
    expected = {
        (part, module): change(*pair, (9 if module == UNET[0] else alphas[part]) / RANK)
        for (part, module), pair in factors.items()
    }
    check(merged(weights, abstract, [open_lora(tmp_path / "x")]), before, expected)
    header["lora_adapter_metadata"] = json.dumps({"unet.use_rslora": True})
    safetensors.numpy.save_file(peft(factors), tmp_path / "x", header)
    with pytest.raises(CheckpointError, match=r"unet.use_rslora is True, supported is False"):
        open_lora(tmp_path / "x")


def test_several_add_up_in_float32(weights, abstract, before, factors, tmp_path):
    write_safetensors(tmp_path / "a", kohya(factors))
    write_safetensors(tmp_path / "b", peft(factors))
    loras = [open_lora(tmp_path / "a", 0.5), open_lora(tmp_path / "b", -0.25)]
    sums = {k: change(*pair, 0.5 * ALPHA / RANK - 0.25) for k, pair in factors.items()}
    exact = merged(weights, abstract, loras)
    check(exact, before, sums)
    half = merged(weights, abstract, loras, "bfloat16")
    for part, module in factors:
        rounded = exact[part][module].astype(half[part][module].dtype)
        assert rounded.dtype.name == "bfloat16"
        np.testing.assert_array_equal(half[part][module], rounded)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_te1_x.lora_down.weight": (3, 4)}, "is a LoRA of SDXL, expected one of Stable D"),
        ({"lora_te2_x.lora_down.weight": (3, 4)}, "is a LoRA of SDXL"),
        ({"lora_unet_input_blocks_4_1_proj_in.alpha": ()}, "is a LoRA of SDXL"),
        ({f"unet.{ATTENTION}.to_k.lora_A.weight": (3, 2048)}, "is a LoRA of SDXL"),
        (
            {f"unet.{ATTENTION}.processor.to_k_lora.down.weight": (3, 1024)},
            "of Stable Diffusio",
        ),
        ({"lora_unet_double_blocks_0_x.lora_down.weight": (3, 4)}, "LoRA of Flux or Stable Diff"),
        ({"lora_unet_x.hada_w1_a": (3, 4)}, "is LoHa, expected a LoRA"),
        ({"lora_unet_x.lokr_w1": (3, 4)}, "is LoKr, expected a LoRA"),
        ({"lora_unet_x.dora_scale": (3, 4)}, "is DoRA, expected a LoRA"),
        ({"lora_unet_x.lora_mid.weight": (3, 4)}, "is a LoCon in Tucker's form"),
        ({"control_model.x": (3, 4)}, "is a ControlNet, expected a LoRA"),
        ({"unet.conv_in.weight": (3, 4)}, "holds unet.conv_in.weight, expected a LoRA in"),
        ({"lora_unet_x.lora_up.weight": (3, 4)}, "unet x lacks its down matrix"),
        ({"lora_unet_x.alpha": ()}, "unet x lacks its down matrix"),
        (
            {"lora_unet_x.lora_down.weight": (3, 4), "lora_unet_x.lora_up.weight": (4, 2)},
            r"down.weight is \(3, 4\) and .*up.weight \(4, 2\), expected \(rank, in\)",
        ),
        (
            {"lora_unet_x.lora_down.weight": (3, 4), "lora_unet_x.lora_up.weight": (4, 3)},
            "changes unknown modules: lora_unet_x.lora_down.weight",
        ),
        (
            {
                "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (3, 4, 1, 1),
                "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": (4, 3, 1, 1),
            },
            r"is of another size: .* is for \(4, 4, 1, 1\), expected \(16, 16, 1, 1\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(weights, abstract, tmp_path, tensors, message):
    write_safetensors(tmp_path / "x", {k: np.ones(s, "f4") for k, s in tensors.items()})
    with pytest.raises(CheckpointError, match=message):
        with_loras(weights, [open_lora(tmp_path / "x")], abstract)


def test_numbers_that_are_not_finite_are_named(weights, abstract, factors, tmp_path):
    tensors = kohya(factors)
    name = next(name for name in tensors if name.endswith("up.weight"))
    write_safetensors(tmp_path / "x", tensors | {name: np.full_like(tensors[name], np.nan)})
    changed = with_loras(weights, [open_lora(tmp_path / "x")], abstract)
    with pytest.raises(CheckpointError, match="or its pair has values that are not finite"):
        changed.load(["unet"], place(), abstract)


def test_files_and_scales(tmp_path):
    assert parse_lora("a/b.safetensors") == ("a/b.safetensors", 1.0)
    assert parse_lora("a/b.safetensors:0.8") == ("a/b.safetensors", 0.8)
    assert parse_lora("a:b") == ("a:b", 1.0)
    assert parse_lora("a:-1e-1") == ("a", -0.1)
    (tmp_path / "x:2").touch()
    assert parse_lora(tmp_path / "x:2") == (str(tmp_path / "x:2"), 1.0)
    with pytest.raises(InputError, match="scale of the LoRA a is nan, expected a finite number"):
        parse_lora("a:nan")


@pytest.mark.slow
def test_the_models_of_a_pipeline(checkpoints, pipe, factors, tmp_path):
    """Each LoRA changes the models that it is for; the text encoder is the SDM's."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, kohya(factors))
    mesh = sharding.make_mesh(jax.devices()[:1])
    parts = ("sdm", "tdm", "text_encoder", "vae")
    for on, changed in (("tdm", {"tdm"}), ("sdm", {"sdm", "text_encoder"}), ("both", {*parts[:3]})):
        found = FaceDiffuser.from_pretrained(
            **checkpoints, mesh=mesh, loras=[f"{path}:0.5"], lora_on=on
        )
        for part in parts:
            new, old = (flatten(getattr(p.compiled.params, part)) for p in (found, pipe))
            is_same = all(np.array_equal(new[path], old[path]) for path in old)
            assert is_same == (part not in changed)
    options = {"mesh": mesh, "loras": [path, path]}
    with pytest.raises(InputError, match="lora_on has 3 values for 2 LoRAs, expected one or one"):
        FaceDiffuser.from_pretrained(**checkpoints, **options, lora_on=["tdm"] * 3)
