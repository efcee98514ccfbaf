"""One door for weights: every layout opens, says what it holds, and is merged with others."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from fd_jax import assets, sharding
from fd_jax.architecture import CLIPVisionConfig, ConfigError
from fd_jax.checkpoints.config_json import config_to_json
from fd_jax.checkpoints.export import export
from fd_jax.checkpoints.merge import find_parts, find_tokenizer, merge
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch.files import open_tensors, write_safetensors
from fd_jax.checkpoints.weights import Weights, open_weights
from fd_jax.errors import CheckpointError, InputError
from fd_jax.files import write_json
from fd_jax.networks import make_networks
from fd_jax.params import flat
from fd_jax.schedule import ScheduleConfig
from tests.helpers.networks import TINY

SUBJECT = ("image_encoder", "subject_fusion")
SCENE = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def abstract():
    networks = make_networks(TINY)
    return {part: getattr(networks, part).abstract for part in (*SCENE, *SUBJECT)}


def place(**options):
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    return Placement("float32", lambda path, shape: where, **options)


def assert_same(found, expected):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(leaf), err_msg=path)


@pytest.fixture(scope="module")
def exported(pair, tmp_path_factory):
    """The models of both runs as files of every layout."""
    out = tmp_path_factory.mktemp("exported")
    for task, run in pair.items():
        export(run, out / task)
    return out


@pytest.fixture(scope="module")
def layouts(pair, bundle, exported):
    """Paths of the SDM, and the parts that are stored there."""
    every = (*SCENE, *SUBJECT)
    return {
        "run": (pair["sdm"], every),
        "flat file": (exported / "sdm" / "pytorch_model.bin", every),
        "flat folder": (exported / "sdm", every),
        "diffusers": (exported / "sdm" / "diffusers", SCENE),
        "one model of diffusers": (exported / "sdm" / "diffusers" / "unet", ("unet",)),
        "text encoder": (exported / "sdm" / "diffusers" / "text_encoder", ("text_encoder",)),
        "clip": (exported / "sdm" / "clip", ("image_encoder",)),
        "bundle": (bundle, every),
    }


LAYOUTS = (
    *("run", "flat file", "flat folder", "diffusers", "one model of diffusers"),
    *("text encoder", "clip", "bundle"),
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_parameters(layout, layouts, pair, abstract):
    path, parts = layouts[layout]
    weights = open_weights(str(path))
    assert set(weights.parts) == set(parts)
    assert weights.task == ("sdm" if layout == "run" else None)
    counts = []
    found = weights.load(parts, place(advance=counts.append), abstract).params
    expected = open_weights(pair["sdm"]).load(parts, place(), abstract).params
    assert_same(found, expected)
    assert sum(counts) == len(flat(expected))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_configs_that_it_has(layout, layouts):
    path, parts = layouts[layout]
    weights = open_weights(path)
    expected = {} if layout.startswith("flat") else {p for p in parts if p != "subject_fusion"}
    assert set(weights.architecture) == set(expected)
    for part, config in weights.architecture.items():
        assert config == getattr(TINY, part)
    has_schedule = layout in ("run", "diffusers", "bundle")
    assert weights.schedule == (ScheduleConfig() if has_schedule else None)
    has_tokenizer = layout == "diffusers"
    assert weights.tokenizer == (path / "tokenizer" if has_tokenizer else None)


def test_a_bundle_opens_as_either_model(bundle, pair, abstract):
    for task, run in pair.items():
        found = open_weights(bundle, task=task)
        expected = open_weights(run, task=task).load(["unet", "vae"], place(), abstract)
        assert_same(found.load(["unet", "vae"], place(), abstract).params, expected.params)
    assert set(open_weights(bundle, task="tdm").parts) == {"unet", "vae"}
    with pytest.raises(CheckpointError, match="holds an SDM and a TDM, expected a run that trains"):
        open_weights(bundle, task="vae")


def test_the_config_of_a_clip_is_enough_for_its_architecture(tmp_path, abstract):
    write_json(tmp_path / "clip" / "config.json", config_to_json(TINY.image_encoder))
    weights = open_weights(tmp_path / "clip")
    assert weights.architecture == {"image_encoder": TINY.image_encoder}
    with pytest.raises(CheckpointError, match=r"clip holds \['config.json'\], expected one of"):
        weights.load(["image_encoder"], place(), abstract)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "here does not exist, expected the folder of a training run, a rel"),
        (lambda path: path.mkdir(), "here holds nothing, expected the folder of a training run"),
        (lambda path: path.write_text("<html>"), "here is a web page"),
        (lambda path: write_json(path / "config.json", {"_class_name": "X"}), "name is 'X', exp"),
        (lambda path: write_json(path / "model.json", {"kind": 3}), "kind is 3, expected"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, make, message):
    make(tmp_path / "here")
    with pytest.raises(CheckpointError, match=message):
        open_weights(tmp_path / "here")


def test_urls_are_refused(tmp_path, pair):
    for url in ("az://bucket/run", Path("s3://bucket/run"), "hf://user/model"):
        with pytest.raises(InputError, match=r"://.* is a URL, expected a path on a disk"):
            open_weights(url)
        with pytest.raises(InputError, match="is a URL, expected a path on a disk"):
            export(pair["tdm"], url)


def test_another_task_is_refused(pair, abstract, exported):
    with pytest.raises(CheckpointError, match="tdm trains a tdm, expected a run that trains a sdm"):
        open_weights(pair["tdm"], task="sdm")
    # A flat file does not say what it is: the names of its tensors do.
    sdm, tdm = (open_weights(exported / task) for task in ("sdm", "tdm"))
    with pytest.raises(CheckpointError, match="lacks the tensors image_encoder"):
        tdm.load(SUBJECT, place(), abstract)
    scene = {part: abstract[part] for part in SCENE}
    with pytest.raises(CheckpointError, match="has unknown tensors image_encoder"):
        sdm.load(["unet"], place(), scene)


@pytest.mark.parametrize("layout", ["run", "diffusers", "clip", "one model of diffusers"])
def test_missing_networks_are_named(layout, layouts, pair, abstract):
    path = pair["tdm"] if layout == "run" else layouts[layout][0]
    with pytest.raises(CheckpointError, match=r"subject_fusion"):
        open_weights(path).load(["subject_fusion"], place(), abstract)


def test_steps_and_raw_parameters_of_a_run(pair, abstract, exported):
    newest, raw, old = (
        open_weights(pair["tdm"], **options).load(["unet"], place(), abstract).params
        for options in ({}, {"ema": False}, {"step": 10})
    )
    [name, *_] = [n for n, x in flat(raw).items() if np.any(np.asarray(flat(newest)[n]) != x)]
    np.testing.assert_allclose(flat(raw)[name], np.asarray(flat(newest)[name]) + 1, atol=1e-5)
    np.testing.assert_allclose(flat(old)[name], np.asarray(flat(newest)[name]) + 2, atol=1e-5)
    with pytest.raises(CheckpointError, match="is no training run, expected one that has step 10"):
        open_weights(exported / "tdm", step=10)


# Several sources together.


def test_configs_are_merged(layouts, pair):
    flat_file, base, clip = (
        open_weights(layouts[layout][0]) for layout in ("flat file", "diffusers", "clip")
    )
    assert merge([flat_file, base, clip]) == (TINY, ScheduleConfig())
    assert merge([open_weights(pair["sdm"])]) == (TINY, ScheduleConfig())
    guessed, _ = merge([open_weights(pair["tdm"])])
    assert guessed == TINY._replace(image_encoder=CLIPVisionConfig(projection_dim=12))


def test_missing_configs_are_named(layouts):
    flat_file, base = (open_weights(layouts[layout][0]) for layout in ("flat file", "diffusers"))
    message = r"pytorch_model.bin give no config of \['unet', .*'scheduler'\], expected a base"
    with pytest.raises(CheckpointError, match=message):
        merge([flat_file], expected="a base")
    with pytest.raises(CheckpointError, match=r"diffusers give no config of \['image_encoder'\]"):
        merge([flat_file, base], needed=("image_encoder",))
    with pytest.raises(CheckpointError, match="there is no config"):
        merge([])


def test_sources_that_disagree_are_named(layouts):
    base = open_weights(layouts["diffusers"][0])

    def other(**changes):
        return Weights(
            path=Path("model"), architecture={"unet": TINY.unet, "vae": TINY.vae} | changes
        )

    assert merge([base, other()])[0].unet == TINY.unet
    vae = dataclasses.replace(TINY.vae, scaling_factor=0.5)
    message = r"model does not fit .*diffusers: vae.scaling_factor is 0.5, expected 0.18215"
    with pytest.raises(CheckpointError, match=message):
        merge([base, other(vae=vae)])
    larger = other(unet=dataclasses.replace(TINY.unet, sample_size=64))
    assert merge([base, larger])[0].unet == TINY.unet
    schedule = ScheduleConfig(prediction_type="v_prediction")
    predicts_v = dataclasses.replace(other(), schedule=schedule)
    with pytest.raises(
        CheckpointError, match=r"model .*scheduler.prediction_type is 'v_prediction'"
    ):
        merge([base, predicts_v])
    assert merge([predicts_v, base], ignored=["prediction_type"])[1] == schedule
    wide = dataclasses.replace(TINY.image_encoder, projection_dim=16)
    with pytest.raises(ConfigError, match="projection_dim of the image encoder is 16, expected 12"):
        merge([base, other(image_encoder=wide)])


def test_the_first_source_of_a_network_counts(layouts, pair):
    base, tdm = open_weights(layouts["diffusers"][0]), open_weights(pair["tdm"])
    clip = open_weights(layouts["clip"][0])
    assert find_parts([clip, tdm, base]) == {
        "image_encoder": clip,
        **dict.fromkeys(SCENE, tdm),
    }


def test_the_first_tokenizer_counts(layouts, tmp_path):
    run, base = (open_weights(layouts[layout][0]) for layout in ("run", "diffusers"))
    assert find_tokenizer([run, base]) == layouts["diffusers"][0] / "tokenizer"
    assert find_tokenizer([run]) == assets.TOKENIZER
    assert find_tokenizer([]) == assets.TOKENIZER
    other = tmp_path / "base"
    shutil.copytree(layouts["diffusers"][0], other)
    assert find_tokenizer([open_weights(other), base]) == other / "tokenizer"


def test_configs_hold_no_weights(abstract):
    with pytest.raises(CheckpointError, match="a config holds no weights"):
        Weights(path=Path("model")).load(["unet"], place(), abstract)
    assert Weights(path=Path("model")).load([], place(), abstract) == ({}, [])


def test_a_damaged_folder_is_named(layouts, tmp_path):
    shutil.copytree(layouts["diffusers"][0], tmp_path / "base")
    (tmp_path / "base" / "unet" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"unet.config.json does not exist, expected a conf"):
        open_weights(tmp_path / "base")


def test_ignored_tensors_are_listed(layouts, tmp_path, abstract):
    tensors = {n: t.read() for n, t in open_tensors(layouts["flat file"][0]).items()}
    write_safetensors(tmp_path / "x.safetensors", tensors)
    loaded = open_weights(tmp_path / "x.safetensors").load(["unet"], place(), abstract)
    assert loaded.ignored_tensors == [
        "image_encoder.vision_model.embeddings.position_ids",
        "text_encoder.embeddings.position_ids",
    ]
