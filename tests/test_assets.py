"""Files of the package: the bundled models, and the prompts that show them."""

import jax
import numpy as np
import pytest

from fd_jax import FaceDiffuser, assets, sharding
from fd_jax.checkpoints.file_checksums import check_files
from fd_jax.data.captions import load_tokenizer
from fd_jax.demo.painters import SCENES
from fd_jax.files import read_json
from fd_jax.inference.inputs import make_inputs
from fd_jax.inference.prompt_file import read_prompt_file


@pytest.mark.parametrize(("file", "alone", "pairs"), [("prompts", 10, 2), ("unseen", 7, 1)])
def test_the_bundled_prompts_are_usable(file, alone, pairs):
    requests, bad_lines = read_prompt_file(assets.DEMO / f"{file}.jsonl", traces=True)
    assert bad_lines == []
    assert [len(request.references) for request in requests].count(1) == alone
    assert [len(request.references) for request in requests].count(2) == pairs
    assert len({request.seed for request in requests} - {None}) == alone + pairs
    # Markers are bound to words, and photographs can be read.
    made = make_inputs(
        load_tokenizer(assets.TOKENIZER),
        [request.prompt for request in requests],
        [request.references for request in requests],
        [request.negative_prompt for request in requests],
        subject_resolution=16,
    )
    assert made.has_subject.sum() == alone + 2 * pairs


NOUNS = {
    "prompts": {"P003": "a woman", "P005": "a man", "P006": "a woman", "P007": "a man"},
    "unseen": {"P001": "a woman", "P004": "a woman", "P008": "a man", "P010": "a woman"},
}


@pytest.mark.parametrize("file", NOUNS)
def test_the_bundled_prompts_are_of_the_bundled_people_in_painted_scenes(file):
    requests, _ = read_prompt_file(assets.DEMO / f"{file}.jsonl")
    nouns = NOUNS[file]
    shown, scenes = [], set()
    for request in requests:
        people = [path.stem for [path] in request.references]
        words = " and ".join(f"{nouns[name]} <|image|>" for name in people)
        [scene] = [scene for scene in SCENES if request.prompt == f"{words} {scene.phrases[0]}"]
        assert request.output.endswith(f"_{scene.name.replace(' ', '_')}.png")
        scenes.add(scene.name)
        shown += people
    assert len(scenes) == len(requests)
    assert all(shown.count(name) >= 2 for name in nouns)


@pytest.fixture(scope="module")
def pipe():
    return FaceDiffuser.from_pretrained(mesh=sharding.make_mesh(jax.devices()[:1]))


def test_the_bundled_models_are_small():
    sizes = [path.stat().st_size for path in assets.DEMO.rglob("*") if path.is_file()]
    assert 30e6 < sum(sizes) <= 40e6


def test_the_bundled_models_have_checksums():
    files = {str(path.relative_to(assets.DEMO)) for path in assets.DEMO.rglob("*.*")}
    sums = read_json(assets.DEMO / "checksums.json")
    assert files - sums.keys() == {"README.md", "prompts.jsonl", "unseen.jsonl", "checksums.json"}
    check_files(assets.DEMO, "*")


@pytest.mark.slow
def test_the_bundled_models_make_pictures(pipe, people):
    prompts = ["a woman <|image|> in the snow", "a woman <|image|> in a forest"]
    options = {"num_steps": 4, "guidance_scale": 3.0, "solver": "dpmsolver++"}
    pictures = pipe(prompts, [people[:1]] * 2, num_images=4, **options).pixels
    assert pictures.shape == (8, 64, 64, 3)
    assert np.isfinite(pictures).all()
    for picture in pictures:
        # Neighbours differ by 0.35 of the deviation where the latents are noise, by 0.2 at most in
        # these scenes.
        step = np.abs(np.diff(picture, axis=0)).mean()
        assert 0.08 < picture.std() < 0.5
        assert step < 0.27 * picture.std()
    snow, forest = pictures.reshape(2, 4, -1).mean(axis=(1, 2))
    assert snow > forest + 0.1
