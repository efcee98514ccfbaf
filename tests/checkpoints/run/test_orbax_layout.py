"""Orbax's files, as the installed version writes them, against what is read without it."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore

from fd_jax.checkpoints.run import orbax_arrays
from fd_jax.checkpoints.run.orbax_layout import COMMIT, METRICS, array_paths, array_spec, items_of
from fd_jax.checkpoints.run.step_folders import META, META_FILE, TRAIN, open_manager

ADVICE = (
    f"Orbax {ocp.__version__} writes its checkpoints otherwise: adapt orbax_layout.py, and the "
    "range of versions in pyproject.toml and requirements.txt"
)
ARRAYS = {"unet/0/kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3), "step": np.int32(4)}


@pytest.fixture(scope="module")
def step(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("orbax")
    arrays = {name: jnp.asarray(array) for name, array in ARRAYS.items()}
    items = ocp.args.Composite(
        **{TRAIN: orbax_arrays.save_args(arrays), META: ocp.args.JsonSave({"position": 3})}
    )
    with open_manager(folder, 1, None, "loss") as manager:
        manager.save(7, args=items, metrics={"loss": 0.5})
        manager.wait_until_finished()
    return folder / "7"


def test_a_step_has_its_items_and_ends_with_the_commit(step):
    names = {path.name for path in step.iterdir()}

    assert names == {TRAIN, META, METRICS, COMMIT, "_CHECKPOINT_METADATA"}, ADVICE
    assert items_of(step) == {TRAIN, META, METRICS}, ADVICE
    assert json.loads((step / META / META_FILE).read_bytes()) == {"position": 3}, ADVICE
    assert json.loads((step / METRICS / METRICS).read_bytes()) == {"loss": 0.5}, ADVICE


def test_arrays_are_where_their_metadata_says(step):
    folder = step / TRAIN

    paths = list(array_paths(folder))

    assert sorted(paths) == [["arrays", name] for name in sorted(ARRAYS)], ADVICE
    for path in paths:
        stored = tensorstore.open(array_spec(folder, path), open=True).result()
        assert stored.dtype.numpy_dtype == ARRAYS[path[1]].dtype, ADVICE
        np.testing.assert_array_equal(stored.read().result(), ARRAYS[path[1]], ADVICE)


def test_orbax_writes_a_folder_without_arrays_as_one_short_path(tmp_path):
    with ocp.Checkpointer(orbax_arrays.handler()) as checkpointer:
        checkpointer.save(tmp_path / "empty", args=orbax_arrays.save_args({}))

    assert list(array_paths(tmp_path / "empty")) == [["arrays"]], ADVICE
