"""CLIP's cosines, against the formulas of CLIP on the tensors of a file as transformers has it."""

import json
import zlib

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fd_jax import sharding
from fd_jax.assets import TOKENIZER
from fd_jax.conditioning.clip_vision import MEAN, STD
from fd_jax.data.captions import load_tokenizer, tokenize
from fd_jax.errors import InputError
from fd_jax.evaluation.cases import Case
from fd_jax.evaluation.clip import Clip
from fd_jax.evaluation.judges import PromptJudge

DIM, HEADS, LAYERS, SIDE, PATCH, PROJECTION = 8, 2, 2, 16, 8, 6


def shapes():
    names = {"logit_scale": ()}
    for tower in ("text_model", "vision_model"):
        for i in range(LAYERS):
            layer = f"{tower}.encoder.layers.{i}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                names[f"{layer}.self_attn.{part}.weight"] = (DIM, DIM)
                names[f"{layer}.self_attn.{part}.bias"] = (DIM,)
            names |= {f"{layer}.mlp.fc1.weight": (16, DIM), f"{layer}.mlp.fc1.bias": (16,)}
            names |= {f"{layer}.mlp.fc2.weight": (DIM, 16), f"{layer}.mlp.fc2.bias": (DIM,)}
            for norm in ("layer_norm1", "layer_norm2"):
                names |= {f"{layer}.{norm}.{end}": (DIM,) for end in ("weight", "bias")}
    norms = "text_model.final_layer_norm", "vision_model.pre_layrnorm"
    for norm in (*norms, "vision_model.post_layernorm"):
        names |= {f"{norm}.{end}": (DIM,) for end in ("weight", "bias")}
    return names | {
        "text_model.embeddings.token_embedding.weight": (49408, DIM),
        "text_model.embeddings.position_embedding.weight": (77, DIM),
        "vision_model.embeddings.class_embedding": (DIM,),
        "vision_model.embeddings.patch_embedding.weight": (DIM, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": ((SIDE // PATCH) ** 2 + 1, DIM),
        "text_projection.weight": (PROJECTION, DIM),
        "visual_projection.weight": (PROJECTION, DIM),
    }


@pytest.fixture(scope="module")
def tensors():
    return {
        name: np.random.default_rng(zlib.crc32(name.encode())).normal(0, 0.5, shape)
        for name, shape in shapes().items()
    }


@pytest.fixture(scope="module")
def folder(tensors, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tower = {
        **{"hidden_size": DIM, "intermediate_size": 16, "num_hidden_layers": LAYERS},
        **{"num_attention_heads": HEADS, "projection_dim": PROJECTION},
    }
    vision = tower | {"image_size": SIDE, "patch_size": PATCH}
    config = {"model_type": "clip", "text_config": tower, "vision_config": vision}
    config["projection_dim"] = PROJECTION
    (folder / "config.json").write_text(json.dumps(config))
    saved = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    save_file(saved, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return Clip(folder, sharding.make_mesh(jax.devices()[:2]), batch_size=4)


def normed(x, t, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * t[f"{name}.weight"] + t[f"{name}.bias"]


def linear(x, t, name):
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def transformed(x, t, tower, *, causal):
    for i in range(LAYERS):
        layer = f"{tower}.encoder.layers.{i}"
        h = normed(x, t, f"{layer}.layer_norm1")
        heads = [
            linear(h, t, f"{layer}.self_attn.{part}_proj").reshape(len(x), HEADS, -1)
            for part in "qkv"
        ]
        logits = np.einsum("nhd,mhd->hnm", heads[0], heads[1]) / np.sqrt(DIM / HEADS)
        if causal:
            logits = np.where(np.tri(len(x), dtype=bool), logits, -np.inf)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = np.einsum("hnm,mhd->nhd", shares, heads[2]).reshape(len(x), DIM)
        x = x + linear(mixed, t, f"{layer}.self_attn.out_proj")
        h = linear(normed(x, t, f"{layer}.layer_norm2"), t, f"{layer}.mlp.fc1")
        x = x + linear(h / (1 + np.exp(-1.702 * h)), t, f"{layer}.mlp.fc2")
    return x


def expected_text(prompt, t):
    ids = tokenize(load_tokenizer(TOKENIZER), prompt).input_ids
    ids = ids[: list(ids).index(49407) + 1]  # what follows the end is not seen
    x = t["text_model.embeddings.token_embedding.weight"][ids]
    x = x + t["text_model.embeddings.position_embedding.weight"][: len(ids)]
    x = normed(transformed(x, t, "text_model", causal=True), t, "text_model.final_layer_norm")
    found = t["text_projection.weight"] @ x[-1]
    return found / np.linalg.norm(found)


def expected_image(pixels, t):
    """Of an image of the input's size."""
    x = (pixels / 255 - MEAN) / STD
    kernel = t["vision_model.embeddings.patch_embedding.weight"]
    count = SIDE // PATCH
    blocks = x.reshape(count, PATCH, count, PATCH, 3)
    patches = np.einsum("aibjc,dcij->abd", blocks, kernel).reshape(-1, DIM)
    x = np.concatenate([t["vision_model.embeddings.class_embedding"][None], patches])
    x = x + t["vision_model.embeddings.position_embedding.weight"]
    x = transformed(normed(x, t, "vision_model.pre_layrnorm"), t, "vision_model", causal=False)
    found = t["visual_projection.weight"] @ normed(x[0], t, "vision_model.post_layernorm")
    return found / np.linalg.norm(found)


PROMPTS = ["a man <|image|> in the snow", "two women", "a painting of " + "very " * 80 + "old men"]


@pytest.mark.filterwarnings("ignore:the prompt is longer")
def test_cosines_are_those_of_the_formulas(clip, tensors):
    pictures = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    stripped = [prompt.replace(" <|image|>", "") for prompt in PROMPTS]
    cases = [Case("kind", 0, i, 0, (0,), prompt, 0) for i, prompt in enumerate(PROMPTS)]

    found = PromptJudge(clip)(list(pictures), cases)["prompt"]

    texts = np.stack([expected_text(prompt, tensors) for prompt in stripped])
    images = np.stack([expected_image(picture, tensors) for picture in pictures])
    np.testing.assert_allclose(found, (images * texts).sum(axis=1), atol=1e-5)
    np.testing.assert_allclose(clip.texts(PROMPTS), texts, atol=1e-5)
    np.testing.assert_allclose(clip.images(list(pictures)), images, atol=1e-5)


def test_pictures_are_scaled_and_cut_to_the_middle(clip):
    square = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    wide = np.concatenate([square[:, :4] * 0, square, square[:, :4] * 0], axis=1)
    large = np.array(Image.fromarray(square).resize((64, 64), Image.Resampling.NEAREST))

    found = clip.images([square, wide])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert clip.images([large]).shape == (1, PROJECTION)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projection_dim": 7}, "another shape"),
        ({"vision_config": {"hidden_size": 16, "num_attention_heads": 2}}, "another shape|lacks"),
    ],
)
def test_a_clip_of_another_size_is_refused(folder, tmp_path, change, message):
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
        if key == "projection_dim":
            config["vision_config"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")

    with pytest.raises(InputError, match=message):
        Clip(tmp_path, sharding.make_mesh(jax.devices()[:1]))


def test_a_folder_without_a_clip_is_refused(tmp_path):
    mesh = sharding.make_mesh(jax.devices()[:1])
    with pytest.raises(InputError, match="is no folder"):
        Clip(tmp_path / "nowhere", mesh)
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        Clip(tmp_path, mesh)
