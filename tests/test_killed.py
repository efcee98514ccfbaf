"""Commands that are killed at any moment: nothing half-made counts as whole, a rerun completes.

FD_KILLS is how often each command is killed.
"""

import itertools
import json
import os
import pathlib
import random
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from fd_jax import read_settings
from fd_jax.data.ffhq import tfds_dataset
from fd_jax.data.ffhq.source import open_source
from fd_jax.data.latent_cache import has_block, read_block
from tests.helpers import encode
from tests.helpers.ffhq_items import item, write_folder
from tests.helpers.killing import complete, killed

KILLS = int(os.environ.get("FD_KILLS", "3"))
pytestmark = pytest.mark.slow


def kill_again_and_again(
    command: list[object], out: pathlib.Path, whole: pathlib.Path, check: Callable[[], None]
) -> None:
    """Kills a command that writes to `out`, and checks what it leaves; at last it completes."""
    rng, log = random.Random(0), out.with_name("log")
    seconds = complete(log, *[whole if part is out else part for part in command])
    count = 0
    while count < KILLS:
        if killed(log, rng.uniform(0, seconds), *command):
            count += 1
            is_over = rng.random() < 0.2  # else the next one makes what is missing
        else:
            is_over = True
        check()
        if is_over:
            shutil.rmtree(out, ignore_errors=True)
    complete(log, *command)
    check()


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["prompt file", "number of images"])
def test_pictures(checkpoints, people, tmp_path, kind):
    models = [f"--{name.replace('_', '-')}={path}" for name, path in checkpoints.items()]
    prompt = "a man <|image|> in the snow"
    if kind == "prompt file":
        lines = [{"prompt": prompt, "references": [str(people[i % 4])]} for i in range(12)]
        file = tmp_path / "prompts.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        options = ["--prompt-file", file]
    else:
        options = ["--prompt", prompt, "--reference", people[0], "--num-images", 12]
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["fd_jax.inference.cli", *models, *options, "--num-steps", 4, "--batch-size", 2]
    command += ["--trace", "--output", out]

    def check():
        for path in out.glob("[!.]*"):
            assert path.suffix == ".png"
            assert read_settings(path).keys() == read_settings(whole / path.name).keys()
            found, expected = (np.asarray(Image.open(x / path.name), int) for x in (out, whole))
            assert np.abs(found - expected).max() <= 1

    kill_again_and_again(command, out, whole, check)
    assert len(list(out.glob("[!.]*"))) == 25


def test_an_export(pair, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["fd_jax.checkpoints.export", pair["sdm"], out, "--overwrite"]
    kill_again_and_again(command, out, whole, lambda: not out.exists() or _assert_same(out, whole))


def test_a_bundle(pair, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["fd_jax.checkpoints.bundle", pair["sdm"], pair["tdm"], out, "--overwrite"]
    kill_again_and_again(command, out, whole, lambda: not out.exists() or _assert_same(out, whole))


def _assert_same(out, whole):
    assert contents(out) == contents(whole)


def test_a_build(tmp_path):
    root = write_folder(tmp_path / "photos", [item(2, seed=i) for i in range(60)])
    rng, log = random.Random(0), tmp_path / "log"
    seconds = complete(log, "fd_jax.data.cli", "build", root, tmp_path / "whole")
    count = 0
    for i in itertools.count():
        out = tmp_path / f"out{i}"
        count += killed(log, rng.uniform(0, seconds), "fd_jax.data.cli", "build", root, out)
        if not out.exists() or tfds_dataset.find(out) is None:
            complete(log, "fd_jax.data.cli", "build", root, out)
        source = open_source([out], "train")
        assert [source[i].id for i in range(60)] == [f"{i:08d}" for i in range(60)]
        if count == KILLS:
            break


def test_a_latent_cache(tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"

    def check():
        for number in range(encode.ITEMS // encode.BLOCK):
            if out.exists() and has_block(out, number):
                for found, expected in zip(
                    read_block(out, number), read_block(whole, number), strict=True
                ):
                    np.testing.assert_array_equal(found, expected)

    kill_again_and_again(["tests.helpers.encode", out], out, whole, check)
    assert contents(out).keys() == contents(whole).keys()
