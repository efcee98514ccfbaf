"""The pipeline as users call it, on tiny untrained networks."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image

from fd_jax import FaceDiffuser, SamplerConfig, assets, sharding
from fd_jax.architecture import Architecture
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch.files import open_tensors, write_safetensors
from fd_jax.errors import InputError
from fd_jax.files import read_json, write_json
from fd_jax.images.pixels import to_signed, to_uint8
from fd_jax.inference.inputs import ImageKey
from fd_jax.networks import make_networks
from fd_jax.schedule import ScheduleConfig
from tests.helpers.flat_files import SDM_PARTS, TDM_PARTS, load_flat_file
from tests.helpers.networks import TINY
from tests.helpers.runs import write_run

ONE = "a man <|image|> in the snow"
TWO = "a man <|image|> and a woman <|image|> reading"
FOUR = "a <|image|> with b <|image|> and c <|image|> and d <|image|>"
# One picture at a time, so that most tests share a program.
FAST = {
    "batch_size": 1,
    "num_steps": 4,
    "alpha": 0.25,
    "beta": 0.75,
    "subject_resolution": 28,
}


def pixels(pipe, *args, **options):
    """The images as an array."""
    return pipe(*args, **options).pixels


@pytest.fixture(scope="module")
def wide_pipe(checkpoints):
    """The same pipeline over eight devices."""
    return FaceDiffuser.from_pretrained(**checkpoints, mesh=sharding.make_mesh())


def test_samples(pipe, people):
    """They are a sequence of PIL images, with the numbers that these are made of."""
    samples = pipe(ONE, people[:1], num_images=2, **FAST)
    assert len(samples) == 2
    assert samples.latents.shape == (2, 8, 8, 4)
    assert samples.pixels.shape == (2, 16, 16, 3)
    assert samples.pixels.dtype == samples.latents.dtype == np.float32
    assert samples.pixels.min() >= 0
    assert samples.pixels.max() <= 1
    assert samples.pixels.std() > 0.01
    assert samples.trace is None
    first, second = samples
    assert [image.size for image in (first, samples[-1])] == [(16, 16)] * 2
    np.testing.assert_array_equal(np.stack([first, second]), to_uint8(samples.pixels))
    np.testing.assert_array_equal(samples[1:][0], second)
    with pytest.raises(IndexError):
        samples[2]
    np.testing.assert_allclose(pipe.decode(samples.latents), samples.pixels, atol=1e-5)
    [picture] = pipe(ONE, people[:1], **FAST)
    assert np.abs(np.array(picture).astype(int) - first).max() <= 1


def test_images_are_reconstructed(pipe, wide_pipe):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    vae = make_networks(pipe.architecture).vae.bind(pipe.compiled.params.vae)
    latents = vae.encode(jnp.asarray(to_signed(images))).mean * vae.config.scaling_factor

    expected = pipe.decode(np.asarray(latents))

    assert expected.std() > 0.01
    np.testing.assert_allclose(pipe.reconstruct(images), expected, atol=1e-5)
    np.testing.assert_allclose(wide_pipe.reconstruct(images), expected, atol=1e-5)


def test_samples_are_decoded_once_when_looked_at(pipe, people, monkeypatch):
    calls = []
    decode = pipe.compiled.decode
    monkeypatch.setattr(pipe.compiled, "decode", lambda x: calls.append(len(x)) or decode(x))
    samples = pipe(ONE, people[:1], num_images=2, **FAST)
    assert samples.latents is not None
    assert calls == []
    for image in samples:
        assert image.size == (16, 16)
    assert samples.pixels.shape == (2, 16, 16, 3)
    assert calls == [1, 1]  # in batches as they were sampled


def test_images_that_are_not_finite_are_named_when_looked_at(pipe, people):
    samples = pipe(ONE, people[:1], num_images=3, **FAST)
    samples.latents[1] = np.nan
    assert samples.is_finite.tolist() == [True, False, True]
    assert samples[0].size == samples[2].size == (16, 16)
    for look in (lambda: samples[1], lambda: samples.pixels, lambda: list(samples)):
        with pytest.raises(InputError, match="image 1 of 3 has values that are NaN or infinite"):
            look()


def test_the_sampler_and_its_fields(pipe, people):
    """Fields by their own name replace those of the config, NumPy's numbers like Python's."""
    sampler = SamplerConfig(num_steps=4, alpha=0.25, beta=0.75)
    options = {"batch_size": 1, "subject_resolution": 28}
    expected = pixels(pipe, ONE, people[:1], **FAST)
    found = pixels(pipe, ONE, people[:1], sampler=sampler, **options)
    np.testing.assert_array_equal(found, expected)
    other = dataclasses.replace(sampler, num_steps=9, alpha=0.0)
    changes = {"num_steps": np.int64(4), "alpha": np.float32(0.25)}
    found = pixels(pipe, ONE, people[:1], sampler=other, **changes, **options)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("num_step", "num_steps"), ("seeds", "seed"), ("object_resolution", "subject_resolution")],
)
def test_unknown_arguments_are_named_with_the_nearest(pipe, people, name, nearest):
    with pytest.raises(InputError, match=f"'{name}'.*did you mean '{nearest}'"):
        pipe(ONE, people[:1], **{name: 3})


def test_embeddings_of_photographs(pipe, wide_pipe, people):
    """They do not depend on their batch, nor on the devices."""
    embeds = pipe.embed(people)
    assert embeds.shape == (len(people), 12)
    assert embeds.dtype == np.float32
    for i, photograph in enumerate(people):
        np.testing.assert_allclose(pipe.embed([photograph])[0], embeds[i], atol=1e-5)
    np.testing.assert_allclose(wide_pipe.embed(people, batch_size=3), embeds, atol=1e-5)
    assert np.abs(embeds[0] - embeds[1]).max() > 1e-4


def test_references_from_path_image_or_array(pipe, people):
    sources = people[0], str(people[0]), Image.open(people[0]), np.array(Image.open(people[0]))
    first, *others = (pixels(pipe, ONE, [source], **FAST) for source in sources)
    for other in others:
        np.testing.assert_array_equal(first, other)
    np.testing.assert_array_equal(first, pixels(pipe, ONE, people[0], **FAST))
    assert np.abs(first - pixels(pipe, ONE, people[1:2], **FAST)).max() > 1e-4


def test_several_photographs_of_a_person_are_averaged(pipe, people):
    """In any order; the same one twice is as once, and others in the batch change nothing."""
    a, b, c = people[:3]
    once, twice = (pixels(pipe, TWO, who, **FAST) for who in ([a, b], [[a, a], [b]]))
    np.testing.assert_allclose(twice, once, atol=1e-4)
    both, swapped = (pixels(pipe, TWO, who, **FAST) for who in ([[a, c], b], [[c, a], b]))
    np.testing.assert_allclose(swapped, both, atol=1e-4)
    assert np.abs(both - once).max() > 1e-4

    # Three take the place of four.
    together = pixels(pipe, [TWO, TWO], [[[a, c], b], [[a, b, c], b]], **FAST)
    np.testing.assert_allclose(together[:1], both, atol=1e-4)


def test_order_of_references_matters(pipe, people):
    a, b = people[:2]
    assert (
        np.abs(pixels(pipe, TWO, [a, b], **FAST) - pixels(pipe, TWO, [b, a], **FAST)).max() > 1e-4
    )


def test_a_picture_does_not_depend_on_its_batch(pipe, wide_pipe, people):
    """Nor on its place there, on how many subjects its neighbours have, or on the devices."""
    prompts, references, seeds = [ONE, FOUR, TWO], [people[:1], people, people[1:3]], [5, 6, 7]
    alone = [
        pixels(pipe, prompt, photographs, seed=seed, num_images=2, **FAST)
        for prompt, photographs, seed in zip(prompts, references, seeds, strict=True)
    ]

    together = FAST | {"num_images": 2, "batch_size": 4}
    expected = np.concatenate(alone)
    found = pixels(pipe, prompts, references, seed=seeds, **together)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    over_devices = pixels(
        wide_pipe, prompts, references, seed=seeds, **together | {"batch_size": 6}
    )
    np.testing.assert_allclose(over_devices, expected, atol=1e-4)
    backwards = pixels(pipe, prompts[::-1], references[::-1], seed=seeds[::-1], **together)
    np.testing.assert_allclose(backwards, np.concatenate(alone[::-1]), atol=1e-4)


def test_pictures_of_a_prompt_differ_and_repeat(pipe, people):
    three = pixels(pipe, ONE, people[:1], num_images=3, **FAST)
    assert np.abs(three[0] - three[1]).max() > 1e-2
    np.testing.assert_allclose(pixels(pipe, ONE, people[:1], **FAST), three[:1], atol=1e-5)
    assert np.abs(pixels(pipe, ONE, people[:1], seed=1, **FAST) - three[:1]).max() > 1e-2


def test_values_compile_nothing_new(checkpoints, people):
    pipe = FaceDiffuser.from_pretrained(**checkpoints, mesh=sharding.make_mesh(jax.devices()[:1]))
    pixels(pipe, ONE, people[:1], **FAST)
    compiled = []

    def listen(name: str, seconds: float, **_) -> None:
        if "backend_compile" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        pixels(pipe, ONE, people[1:2], **FAST | {"alpha": 0.5, "beta": 0.5})
        pixels(pipe, TWO, people[:2], seed=3, negative_prompt="blurry", **FAST)
        pixels(pipe, ONE, people[:1], guidance_scale=1.5, fusion_start=0, fusion_end=4, **FAST)
        pixels(pipe, ONE, people[:1], solver="dpmsolver++", **FAST)
        for mode in ("weighted", "delayed", "tdm", "sdm"):
            pixels(pipe, ONE, people[:1], mode=mode, **FAST)
        assert compiled == []
        pixels(pipe, ONE, people[:1], **FAST | {"num_steps": 5})
        assert compiled  # so that the listener is known to hear
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_progress_gives_the_same_picture(pipe, people, capsys):
    silent = pixels(pipe, ONE, people[:1], **FAST | {"num_steps": 7})
    assert capsys.readouterr().err == ""
    shown = pixels(pipe, ONE, people[:1], progress=True, **FAST | {"num_steps": 7})
    np.testing.assert_allclose(shown, silent, atol=1e-5)
    assert "7/7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("height", "width"), [pytest.param(16, 24, marks=pytest.mark.slow), (32, 8)]
)
def test_sizes(pipe, people, height, width):
    images = pixels(pipe, ONE, people[:1], height=height, width=width, **FAST)
    assert images.shape == (1, height, width, 3)


def test_latents_replace_the_seed(pipe, people):
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4), np.float32)
    options = FAST | {"num_images": 2, "latents": noise}
    images = pixels(pipe, ONE, people[:1], seed=1, **options)
    np.testing.assert_array_equal(images, pixels(pipe, ONE, people[:1], seed=2, **options))
    swapped = pixels(pipe, ONE, people[:1], **options | {"latents": noise[::-1]})
    np.testing.assert_allclose(swapped, images[::-1], atol=1e-5)


def test_modes(pipe, people):
    """The two models alone are the ends of the three stages."""

    def make(**options):
        return pixels(pipe, ONE, people[:1], **FAST | options)

    np.testing.assert_array_equal(make(mode="tdm"), make(alpha=1.0, beta=1.0))
    np.testing.assert_array_equal(make(mode="sdm"), make(alpha=0.0, beta=0.0))
    np.testing.assert_allclose(
        make(mode="weighted", sdm_weight=0.0, alpha=0.0, beta=1.0), make(mode="tdm"), atol=1e-5
    )
    fused, delayed = make(mode="snf"), make(mode="delayed")
    assert np.abs(fused - delayed).max() > 1e-4
    assert np.abs(fused - make(mode="snf", smoothing="gaussian")).max() > 0


def test_reused_features_make_other_pictures_the_same_in_any_batch(pipe, wide_pipe, people):
    """One device or several, one dispatch or parts, one sampler or one for each picture."""
    sampler = SamplerConfig(num_steps=7, tdm_cache_interval=2, sdm_cache_interval=2)
    whole = dataclasses.replace(sampler, tdm_cache_interval=1, sdm_cache_interval=1)
    options = {"num_images": 3, "subject_resolution": 28}
    images = pixels(pipe, ONE, people[:1], sampler=sampler, **options)
    assert np.abs(images - pixels(pipe, ONE, people[:1], sampler=whole, **options)).max() > 1e-4

    keys = [ImageKey(0, 0, number) for number in range(3)]
    options = {"size": pipe.latent_size(None, None), "batch_size": 4}
    parts = []
    for each, on_part in ((pipe, None), (wide_pipe, parts.append)):
        inputs = each.make_inputs([ONE], [people[:1]], [""], subject_resolution=28)
        [samples] = each.sample_batches(
            inputs, keys, sampler=[sampler] * 3, on_part=on_part, **options
        )
        np.testing.assert_allclose(samples.pixels, images, atol=1e-4)
    assert [part.done for part in parts] == [5, 7]


def test_the_tdm_needs_no_subjects(pipe, people):
    plain = pixels(pipe, "a man in the snow", mode="tdm", **FAST)
    np.testing.assert_array_equal(plain, pixels(pipe, ONE, mode="tdm", **FAST))
    np.testing.assert_array_equal(plain, pixels(pipe, ONE, people[:1], mode="tdm", **FAST))


def test_negative_prompt_reaches_the_tdm(pipe, people):
    plain = pixels(pipe, ONE, people[:1], **FAST)
    assert (
        np.abs(plain - pixels(pipe, ONE, people[:1], negative_prompt="blurry", **FAST)).max() > 1e-4
    )
    sdm = FAST | {"mode": "sdm"}
    with pytest.warns(UserWarning, match="negative_prompt has no effect"):
        unguided = pixels(pipe, ONE, people[:1], negative_prompt="blurry", **sdm)
    np.testing.assert_array_equal(unguided, pixels(pipe, ONE, people[:1], **sdm))


def test_trace(wide_pipe, people):
    three = FAST | {"num_images": 3, "batch_size": 8}
    samples = wide_pipe(ONE, people[:1], trace=True, **three)
    images, trace = samples.pixels, samples.trace
    assert trace.x0.shape == (4, 3, 8, 8, 4)
    used = np.isfinite(trace.tdm_saliency).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(used, [True, True, True, False])
    used = np.isfinite(trace.sdm_saliency).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(used, [False, True, True, True])
    np.testing.assert_allclose(trace.tdm_saliency[:3].sum(axis=(2, 3)), 1, rtol=1e-5)
    assert set(np.unique(trace.sdm_weight)) == {0, 1}
    is_salient = trace.sdm_saliency[1:3] > trace.tdm_saliency[1:3]
    np.testing.assert_array_equal(trace.sdm_weight[1:3], is_salient)
    np.testing.assert_allclose(images, pixels(wide_pipe, ONE, people[:1], **three), atol=1e-5)


@pytest.mark.slow
def test_bfloat16_is_close(checkpoints, pipe, people):
    mesh = sharding.make_mesh(jax.devices()[:1])
    half = FaceDiffuser.from_pretrained(**checkpoints, dtype="bfloat16", mesh=mesh)
    kernel = half.compiled.params.sdm["conv_in"]["kernel"]
    assert kernel.dtype == "bfloat16"
    # One model alone: a pixel of the mask that flips is no rounding error.
    options = FAST | {"mode": "sdm"}
    a, b = (model(ONE, people[:1], **options).latents for model in (half, pipe))
    assert a.dtype == np.float32
    assert np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


SETTINGS = {
    "64 bits": lambda: jax.enable_x64(True),
    "other draws": lambda: jax.default_prng_impl("rbg"),
    "draws that depend on devices": lambda: jax.threefry_partitionable(False),
    "short products": lambda: jax.default_matmul_precision("bfloat16"),
    "long products": lambda: jax.default_matmul_precision("highest"),
    "strict types": lambda: jax.numpy_dtype_promotion("strict"),
}


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(name, marks=[] if name in ("64 bits", "other draws") else pytest.mark.slow)
        for name in SETTINGS
    ],
)
def test_pictures_do_not_depend_on_settings_of_jax(checkpoints, pipe, people, setting):
    """Whether models are read under it, or pictures made."""
    samples = pipe(ONE, people[:1], trace=True, **FAST)
    assert samples.pixels.dtype == np.float32
    with SETTINGS[setting]():
        mesh = sharding.make_mesh(jax.devices()[:1])
        other = FaceDiffuser.from_pretrained(**checkpoints, mesh=mesh)
        found = other(ONE, people[:1], trace=True, **FAST)
        np.testing.assert_array_equal(found.pixels, samples.pixels)
        jax.tree.map(np.testing.assert_array_equal, found.trace, samples.trace)
        np.testing.assert_array_equal(other.embed(people), pipe.embed(people))


BAD_ARGUMENTS = {
    "fewer photographs": ((TWO, 1), {}, "2 markers .* 1 photographs"),
    "more photographs": ((ONE, 2), {}, "1 markers .* 2 photographs"),
    "more photographs for the tdm": ((ONE, 2), {"mode": "tdm"}, "1 markers .* 2 photographs"),
    "no photographs": ((ONE, 0), {}, "1 markers .* 0 photographs"),
    "no marker": (("a man", 0), {}, "no marker"),
    "five subjects": (("a <|image|> " * 5, 4), {}, "5 markers"),
    "marker first": (("<|image|> a man", 1), {}, "no word of its own"),
    "marker cut": (("word " * 80 + "man <|image|>", 1), {}, "token"),
    "negative marker": ((ONE, 1), {"negative_prompt": ONE}, "negative prompt has a marker"),
    "alpha above beta": ((ONE, 1), {"alpha": 0.7, "beta": 0.2}, "alpha is 0.7 and beta is 0.2"),
    "alpha below 0": ((ONE, 1), {"alpha": -0.1}, "alpha is -0.1"),
    "beta above 1": ((ONE, 1), {"beta": 1.5}, "beta is 1.5"),
    "borders reversed": ((ONE, 1), {"fusion_start": 3, "fusion_end": 1}, "fusion_start"),
    "border outside": ((ONE, 1), {"fusion_end": 99}, "fusion_end is 99"),
    "unknown solver": ((ONE, 1), {"solver": "euler"}, "euler"),
    "unknown mode": ((ONE, 1), {"mode": "both"}, "both"),
    "unknown smoothing": ((ONE, 1), {"smoothing": "median"}, "median"),
    "no steps": ((ONE, 1), {"num_steps": 0}, "num_steps is 0"),
    "too many steps": ((ONE, 1), {"num_steps": 2000}, "num_steps is 2000"),
    "height": ((ONE, 1), {"height": 18}, "height is 18, expected a multiple of 4"),
    "width": ((ONE, 1), {"width": -4}, "width is -4"),
    "no images": ((ONE, 1), {"num_images": 0}, "num_images is 0"),
    "no batch": ((ONE, 1), {"batch_size": 0}, "batch_size is 0"),
    "negative seed": ((ONE, 1), {"seed": -1}, "seed is -1"),
    "large seed": ((ONE, 1), {"seed": 2**32}, "seed is 4294967296"),
    "seeds": ((ONE, 1), {"seed": [1, 2]}, "seed has 2 values, expected one or 1"),
    "object resolution": ((ONE, 1), {"subject_resolution": 0}, "subject_resolution is 0"),
    "latents": ((ONE, 1), {"latents": np.zeros((1, 8, 9, 4), np.float32)}, "latents have shape"),
    "nan latents": ((ONE, 1), {"latents": np.full((1, 8, 8, 4), np.nan, np.float32)}, "NaN"),
    "guidance": ((ONE, 1), {"guidance_scale": float("nan")}, "guidance_scale is nan"),
    "weight": ((ONE, 1), {"sdm_weight": 2.0}, "sdm_weight is 2.0"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_named_before_anything_runs(pipe, people, monkeypatch, case):
    (prompt, count), options, message = BAD_ARGUMENTS[case]
    monkeypatch.setattr(pipe.compiled, "generate", None)
    # The check of types in tests comes before that of `SamplerConfig`.
    with pytest.raises((InputError, TypeCheckError), match=message):
        pipe(prompt, people[:count], **FAST | options)


def test_references_of_several_prompts_are_lists(pipe, people):
    with pytest.raises(InputError, match="expected a list of photographs for each prompt"):
        pixels(pipe, [ONE, ONE], people[:2], **FAST)
    with pytest.raises(InputError, match="references for 2 prompts are 1, expected 2"):
        pixels(pipe, [ONE, ONE], [people[:1]], **FAST)
    with pytest.raises(InputError, match="no prompts"):
        pixels(pipe, [], [], **FAST)


def test_lost_words_are_a_warning(pipe, people):
    with pytest.warns(UserWarning, match="lost is 'elephant'"):
        pixels(pipe, ONE + " word" * 70 + " elephant", people[:1], **FAST)
    with pytest.warns(UserWarning, match="'\\(\\(snow\\)\\)' looks like a prompt weight"):
        pixels(pipe, "a man <|image|> in ((snow))", people[:1], **FAST)


def copy(checkpoints, folder):
    """Copies the base folder and returns paths that begin with it."""
    shutil.copytree(checkpoints["base"], folder / "base")
    return checkpoints | {"base": folder / "base"}


@pytest.mark.parametrize("key", ["base", "sdm", "tdm", "image_encoder"])
@pytest.mark.parametrize("kind", ["missing", "empty folder", "another file"])
def test_what_is_no_checkpoint_is_refused(checkpoints, tmp_path, key, kind):
    path = tmp_path / "here"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "another file":
        path.write_text("<html>not found</html>")
    with pytest.raises(InputError, match="here"):
        FaceDiffuser.from_pretrained(**checkpoints | {key: path})


def test_another_architecture_is_refused(checkpoints, tmp_path):
    paths = copy(checkpoints, tmp_path)
    config = paths["base"] / "unet" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"use_linear_projection": True}))
    with pytest.raises(InputError, match=r"unet.config.json: use_linear_projection is True"):
        FaceDiffuser.from_pretrained(**paths)
    config.write_text(json.dumps(content | {"block_out_channels": [8, 32]}))
    with pytest.raises(InputError, match=r"sdm.safetensors .*expected \(32"):
        FaceDiffuser.from_pretrained(**paths)


def test_sdm_and_tdm_in_each_others_place_are_refused(checkpoints):
    with pytest.raises(InputError, match="lacks the tensors image_encoder"):
        FaceDiffuser.from_pretrained(**checkpoints | {"sdm": checkpoints["tdm"]})
    with pytest.raises(InputError, match="has unknown tensors image_encoder"):
        FaceDiffuser.from_pretrained(**checkpoints | {"tdm": checkpoints["sdm"]})


def test_nan_in_the_weights_is_refused(checkpoints, tmp_path):
    tensors = {name: t.read().copy() for name, t in open_tensors(checkpoints["tdm"]).items()}
    tensors["unet.conv_in.bias"][3] = np.nan
    write_safetensors(tmp_path / "tdm.safetensors", tensors)
    with pytest.raises(InputError, match=r"unet.conv_in.bias has 1 values of 8 that are NaN"):
        FaceDiffuser.from_pretrained(**checkpoints | {"tdm": tmp_path / "tdm.safetensors"})


def test_pickles_that_execute_code_are_refused(checkpoints, tmp_path):
    import pickle
    import zipfile

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"unet.conv_in.bias": Evil()}, 2))
        archive.writestr("archive/version", "3\n")
    with pytest.raises(InputError, match=r"pytorch_model.bin.*open"):
        FaceDiffuser.from_pretrained(**checkpoints | {"sdm": tmp_path})
    assert not (tmp_path / "executed").exists()


def test_an_unknown_dtype_is_refused(checkpoints):
    with pytest.raises(InputError, match="dtype is 'float8'"):
        FaceDiffuser.from_pretrained(**checkpoints, dtype="float8")


@pytest.fixture(scope="module")
def params(checkpoints):
    """Parameters of the flat files, by kind."""
    networks = make_networks(TINY)
    abstract = {part: getattr(networks, part).abstract for part in SDM_PARTS}
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    placement = Placement("float32", lambda path, shape: where)
    return {
        kind: load_flat_file(checkpoints[kind], parts, abstract, placement, wanted=list(parts))[0]
        for kind, parts in (("sdm", SDM_PARTS), ("tdm", TDM_PARTS))
    }


@pytest.fixture(scope="module")
def runs(params, tmp_path_factory):
    """Training runs whose averages are the flat files' parameters."""
    folder = tmp_path_factory.mktemp("runs")
    return {kind: write_run(folder / kind, kind, params[kind], TINY) for kind in params}


def test_runs_need_nothing_beside_them(runs, pipe, people):
    mesh = sharding.make_mesh(jax.devices()[:1])
    trained = FaceDiffuser.from_pretrained(**runs, mesh=mesh)
    assert trained.architecture == TINY
    np.testing.assert_array_equal(
        pixels(trained, ONE, people[:1], **FAST), pixels(pipe, ONE, people[:1], **FAST)
    )


@pytest.mark.parametrize("kind", ["sdm", "tdm"])
def test_runs_and_released_models_go_together(checkpoints, runs, pipe, people, kind):
    mesh = sharding.make_mesh(jax.devices()[:1])
    mixed = FaceDiffuser.from_pretrained(**checkpoints | {kind: runs[kind]}, mesh=mesh)
    np.testing.assert_array_equal(
        pixels(mixed, ONE, people[:1], **FAST), pixels(pipe, ONE, people[:1], **FAST)
    )


def test_a_run_is_cast_as_it_is_read(checkpoints, runs):
    mesh = sharding.make_mesh(jax.devices()[:1])
    half = FaceDiffuser.from_pretrained(**runs, dtype="bfloat16", mesh=mesh)
    expected = FaceDiffuser.from_pretrained(**checkpoints, dtype="bfloat16", mesh=mesh)
    for found, leaf in zip(
        jax.tree.leaves(half.compiled.params),
        jax.tree.leaves(expected.compiled.params),
        strict=True,
    ):
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(np.asarray(found), np.asarray(leaf))


def test_without_a_run_base_and_image_encoder_are_needed(checkpoints, runs):
    for key in ("base", "image_encoder"):
        paths = checkpoints | {"tdm": runs["tdm"], key: None}
        with pytest.raises(InputError, match=f"{key} is None.*expected both: .*safetensors holds"):
            FaceDiffuser.from_pretrained(**paths)


def test_runs_in_each_others_place_are_refused(checkpoints, runs):
    with pytest.raises(InputError, match="tdm trains a tdm, expected a run that trains a sdm"):
        FaceDiffuser.from_pretrained(sdm=runs["tdm"], tdm=runs["tdm"])
    with pytest.raises(InputError, match="sdm trains a sdm, expected a run that trains a tdm"):
        FaceDiffuser.from_pretrained(**checkpoints | {"tdm": runs["sdm"]})


def copy_run(runs, kind, folder, **changes):
    """Copies a run, with changes to parts of its model."""
    shutil.copytree(runs[kind], folder / kind)
    path = folder / kind / "model.json"
    model = read_json(path)
    write_json(path, model | {part: model[part] | new for part, new in changes.items()})
    return folder / kind


def test_runs_of_other_architectures_are_refused(checkpoints, runs, tmp_path):
    def refuses(match, **paths):
        with pytest.raises(InputError, match=match):
            FaceDiffuser.from_pretrained(**paths)

    heads = {"attention_head_dim": 4}
    other = copy_run(runs, "tdm", tmp_path / "heads", unet=heads)
    refuses(
        r"heads.tdm does not fit .*sdm: unet.num_heads is 4, expected 2", **runs | {"tdm": other}
    )
    other = copy_run(runs, "sdm", tmp_path / "heads", unet=heads)
    options = checkpoints | {"sdm": other}
    refuses(r"base does not fit .*sdm: unet.num_heads is 2, expected 4", **options)
    other = copy_run(runs, "sdm", tmp_path / "vision", image_encoder={"num_attention_heads": 5})
    options = runs | {"sdm": other, "image_encoder": checkpoints["image_encoder"]}
    refuses(r"clip does not fit .*sdm: image_encoder.num_heads is 2, expected 5", **options)
    kind = {"prediction_type": "v_prediction"}
    other = copy_run(runs, "tdm", tmp_path / "v", scheduler=kind)
    refuses(r"scheduler.prediction_type is 'v_prediction', expected", **runs | {"tdm": other})
    other = copy_run(runs, "sdm", tmp_path / "v", scheduler=kind)
    refuses(r"base .*prediction_type is 'epsilon'", **checkpoints | {"sdm": other})
    # Nor is a size that no parameter has.
    wider = {"block_out_channels": [8, 32]}
    narrow = {"tdm": copy_run(runs, "tdm", tmp_path / "wider", unet=wider)}
    narrow["sdm"] = copy_run(runs, "sdm", tmp_path / "wider", unet=wider)
    refuses(r"sdm is of another architecture: unet.*, expected float32\[32", **narrow)


@pytest.mark.slow
def test_without_paths_the_bundled_models_are_read(bundled_models, pair, people):
    mesh = sharding.make_mesh(jax.devices()[:1])
    pipe = FaceDiffuser.from_pretrained(mesh=mesh)
    assert pipe.architecture == TINY
    expected = pixels(FaceDiffuser.from_pretrained(**pair, mesh=mesh), ONE, people[:1], **FAST)
    np.testing.assert_array_equal(pixels(pipe, ONE, people[:1], **FAST), expected)


@pytest.mark.parametrize("missing", [["sdm"], ["tdm"], ["sdm", "tdm"]])
@pytest.mark.usefixtures("bundled_models")
def test_one_model_without_the_other_is_refused(checkpoints, missing):
    paths = {name: path for name, path in checkpoints.items() if name not in missing}
    expected = f"base .*, but no {' and no '.join(missing)}: pass both models, or none"
    with pytest.raises(InputError, match=expected):
        FaceDiffuser.from_pretrained(**paths)


def test_a_package_without_models_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(assets, "DEMO", tmp_path / "demo")
    with pytest.raises(InputError, match=r"demo does not exist, expected the folder of"):
        FaceDiffuser.from_pretrained()


@pytest.mark.slow
def test_a_base_without_tokenizer_takes_that_of_clip(checkpoints, pipe, people, tmp_path):
    paths = copy(checkpoints, tmp_path)
    (paths["base"] / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer lacks merges.txt"):
        FaceDiffuser.from_pretrained(**paths)
    shutil.rmtree(paths["base"] / "tokenizer")
    other = FaceDiffuser.from_pretrained(**paths, mesh=sharding.make_mesh(jax.devices()[:1]))
    np.testing.assert_array_equal(
        pixels(other, ONE, people[:1], **FAST), pixels(pipe, ONE, people[:1], **FAST)
    )


def test_photographs_have_the_size_that_the_image_encoder_takes(pipe, people):
    """So that they are resized once, unless told otherwise."""
    assert TINY.image_encoder.image_size == 28
    by_default = {key: value for key, value in FAST.items() if key != "subject_resolution"}
    found = pixels(pipe, ONE, people[:1], **by_default)
    np.testing.assert_array_equal(found, pixels(pipe, ONE, people[:1], **FAST))
    other = pixels(pipe, ONE, people[:1], **FAST | {"subject_resolution": 224})
    assert np.abs(found - other).max() > 0
    assert Architecture().image_encoder.image_size == 224


@pytest.mark.slow
def test_the_resolution_of_a_run_is_its_own(checkpoints, runs, tmp_path):
    larger = copy_run(runs, "sdm", tmp_path, unet={"sample_size": 10})
    pipe = FaceDiffuser.from_pretrained(**checkpoints | {"sdm": larger})
    assert pipe.latent_size(None, None) == (10, 10)


@pytest.mark.slow
def test_models_that_predict_v(params, pipe, people, tmp_path):
    schedule = ScheduleConfig(prediction_type="v_prediction")
    paths = {
        kind: write_run(tmp_path / kind, kind, params[kind], TINY, schedule) for kind in params
    }
    mesh = sharding.make_mesh(jax.devices()[:1])
    predicts_v = FaceDiffuser.from_pretrained(**paths, mesh=mesh)
    found, expected = (model(ONE, people[:1], **FAST).latents for model in (predicts_v, pipe))
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() > 0.01


def test_parts_hand_out_the_trace_as_it_grows(pipe, people):
    """Their rows, put together, are the trace of the samples; following changes no picture."""
    inputs = pipe.make_inputs([ONE], [people[:1]], [""], subject_resolution=28)
    options = {
        "sampler": SamplerConfig(num_steps=7, alpha=0.25, beta=0.75),
        "size": (8, 8),
        "batch_size": 1,
    }
    keys = [ImageKey(0, 3, 0)]
    parts = []
    [followed] = pipe.sample_batches(inputs, keys, **options, trace=True, on_part=parts.append)
    [alone] = pipe.sample_batches(inputs, keys, **options, trace=True)

    assert [(part.first, part.done, part.total) for part in parts] == [(0, 5, 7), (5, 7, 7)]
    np.testing.assert_allclose(followed.latents, alone.latents, atol=1e-5)
    for name in ("tdm_saliency", "sdm_saliency", "sdm_weight", "x0"):
        joined = np.concatenate([getattr(part.trace, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(followed.trace, name))
        np.testing.assert_allclose(joined, getattr(alone.trace, name), atol=1e-4)


def test_what_a_listener_raises_ends_sampling(pipe, people):
    inputs = pipe.make_inputs([ONE], [people[:1]], [""], subject_resolution=28)
    options = {"sampler": SamplerConfig(num_steps=7), "size": (8, 8), "batch_size": 1}

    def stop(part):
        raise KeyError(part.done)

    with pytest.raises(KeyError, match="5"):
        list(pipe.sample_batches(inputs, [ImageKey(0, 3, 0)], **options, on_part=stop))


def test_images_of_one_batch_may_have_a_sampler_each(pipe, people):
    """All modes, borders and guidance at once: each picture is as alone, and so is its trace."""
    inputs = pipe.make_inputs([ONE], [people[:1]], [""], subject_resolution=28)
    samplers = [
        SamplerConfig(num_steps=5, mode=mode, alpha=alpha, beta=0.8, guidance_scale=scale)
        for mode, alpha, scale in (
            ("snf", 0.2, 5.0),
            ("snf", 0.6, 2.0),
            ("weighted", 0.2, 5.0),
            ("delayed", 0.4, 5.0),
            ("tdm", 0.2, 5.0),
            ("sdm", 0.2, 1.0),
        )
    ]
    keys = [ImageKey(0, 3, 0)] * len(samplers)
    [together] = pipe.sample_batches(
        inputs, keys, sampler=samplers, size=(8, 8), batch_size=8, trace=True
    )

    assert len(together) == len(samplers)
    assert np.ptp(together.latents, axis=0).max() > 1e-2
    for i, sampler in enumerate(samplers):
        [alone] = pipe.sample_batches(
            inputs, keys[:1], sampler=sampler, size=(8, 8), batch_size=1, trace=True
        )
        np.testing.assert_allclose(together.latents[i], alone.latents[0], atol=1e-4)
        for name in ("tdm_saliency", "sdm_saliency", "sdm_weight", "x0"):
            found, expected = (getattr(t, name) for t in (together.trace, alone.trace))
            np.testing.assert_allclose(found[:, i], expected[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": 4}, "solver or number of steps"),
        ({"solver": "pndm"}, "solver or number of steps"),
        ({"smoothing": "gaussian"}, "smoothings"),
    ],
)
def test_samplers_that_cannot_share_a_batch_are_refused(pipe, people, fields, message):
    inputs = pipe.make_inputs([ONE], [people[:1]], [""], subject_resolution=28)
    samplers = [SamplerConfig(num_steps=5), SamplerConfig(**{"num_steps": 5} | fields)]
    batches = pipe.sample_batches(
        inputs, [ImageKey(0, 3, 0)] * 2, sampler=samplers, size=(8, 8), batch_size=2
    )
    with pytest.raises(InputError, match=message):
        next(batches)
