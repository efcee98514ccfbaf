"""Checkpoints of runs: kept and forgotten, whole and damaged, on this mesh and on others."""

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fd_jax import params, sharding
from fd_jax.architecture import (
    Architecture,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNetConfig,
    VAEConfig,
)
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.run import manager, model_json, orbax_arrays, step_folders
from fd_jax.checkpoints.run.manager import RunCheckpoints
from fd_jax.checkpoints.run.model_json import RunModel
from fd_jax.errors import CheckpointError, InputError
from fd_jax.files import read_json, write_json
from fd_jax.schedule import ScheduleConfig

ROOT = pathlib.Path(__file__).parents[3]


class State(NamedTuple):
    step: Any
    params: Any
    opt_state: Any


def make_params(width: int = 8) -> dict[str, jax.Array]:
    """More positions in a list than there are digits, and numbers that are easily lost."""
    names = [f"unet/blocks/{i}/kernel" for i in range(12)]
    found = {name: jnp.arange(16.0 * width).reshape(16, width) + i for i, name in enumerate(names)}
    return found | {"unet/norm/bias": jnp.array([-0.0, 1e-40, 3.0])}


def make_state(step: int, leaves: dict[str, jax.Array] | None = None) -> State:
    leaves = make_params() if leaves is None else leaves
    is_decayed = {name: "bias" not in name for name in leaves}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(1e-3), is_decayed)
    )
    shifted = jax.tree.map(lambda x: x + step, leaves)
    return State(jnp.int32(step), shifted, optimizer.init(leaves))


def abstract(tree, mesh=None):
    mesh = sharding.make_mesh(jax.devices()[:1]) if mesh is None else mesh

    def leaf(x):
        spec = P("fsdp", "data") if x.ndim == 2 else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(leaf, tree)


def restore(store, mesh=None):
    return store.restore(abstract(make_state(0), mesh), abstract(make_params(), mesh))


def save(store, *steps, loss=None):
    for step in steps:
        state = make_state(step)
        losses = {"loss": float(step if loss is None else loss[step])}
        assert store.save(step, state, state.params, {"position": 2 * step}, losses)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def run(tmp_path):
    """Saves checkpoints of the steps 1, 2 and 3."""
    with RunCheckpoints(tmp_path, keep_latest=3) as written:
        assert restore(written) is None
        save(written, 1, 2, 3)
    return tmp_path


def test_restores_every_bit_onto_another_mesh(run):
    mesh = sharding.make_mesh(fsdp=4)
    with RunCheckpoints(run) as resumed:
        step, train, ema, meta = restore(resumed, mesh)
    assert step == 3
    assert_same(train, make_state(3))
    assert_same(ema, make_state(3).params)
    assert meta == {"position": 6}
    kernel = train.params["unet/blocks/11/kernel"]
    assert kernel.sharding == NamedSharding(mesh, P("fsdp", "data"))


def test_an_array_that_is_donated_while_it_is_saved_is_saved_as_it_was(tmp_path):
    double = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)
    with RunCheckpoints(tmp_path) as written:
        state = make_state(1)
        written.save(1, state, {}, {})
        jax.block_until_ready(double(state))
        written.wait()
        _, train, _, _ = written.restore(abstract(make_state(0)), {})
    assert_same(train, make_state(1))


def test_keeps_the_latest_the_best_and_every_nth(tmp_path):
    loss = dict(zip(range(1, 9), (5, 1, 3, 4, 6, 7, 8, 9), strict=True))
    options = {"keep_latest": 2, "keep_every": 5}
    with RunCheckpoints(tmp_path, **options) as written:
        save(written, *range(1, 7), loss=loss)
    assert step_folders.steps_in(written.folder) == [2, 5, 6]
    # The best is known to the process that goes on.
    with RunCheckpoints(tmp_path, **options) as resumed:
        restore(resumed)
        save(resumed, 7, 8, loss=loss)
        resumed.save(9, make_state(9), {}, {}, {"loss": float("nan")})
        resumed.save(10, make_state(10), {}, {})
        assert resumed.latest_step() == 10
    assert step_folders.steps_in(written.folder) == [2, 5, 9, 10]


def test_a_step_that_is_there_is_left_as_it_is(run):
    with RunCheckpoints(run) as resumed:
        restore(resumed)
        assert not resumed.save(3, make_state(7), {}, {})
    with RunCheckpoints(run) as again:
        assert_same(restore(again)[1], make_state(3))


def truncate(folder: pathlib.Path) -> None:
    for path in folder.glob("train/**/d/*"):
        path.write_bytes(path.read_bytes()[:50])


def empty(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "truncated arrays": truncate,
    "no metadata": lambda folder: (folder / "_CHECKPOINT_METADATA").unlink(),
    "no commit marker": lambda folder: (folder / "commit_success.txt").unlink(),
    "no index": lambda folder: (folder / "train" / "manifest.ocdbt").unlink(),
    "no averages": lambda folder: shutil.rmtree(folder / "ema"),
    "truncated json": lambda folder: (folder / "meta" / "metadata").write_text('{"position'),
    "truncated metrics": lambda folder: (folder / "metrics" / "metrics").write_text('{"lo'),
    "empty folder": empty,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(run, damage):
    DAMAGES[damage](run / "checkpoints" / "3")
    (run / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()  # of an interrupted save
    with RunCheckpoints(run) as resumed:
        with (
            pytest.warns(UserWarning, match="checkpoint of step 3 is damaged: .*checkpoints/3"),
            pytest.warns(UserWarning, match="checkpoints/3 is damaged, and moved to .*damaged/3"),
        ):
            step, train, ema, _ = restore(resumed)
        assert step == 2
        assert_same(train, make_state(2))
        assert_same(ema, make_state(2).params)
        save(resumed, 3, 4)
    assert (run / "damaged" / "3").is_dir()
    with RunCheckpoints(run) as again:
        assert_same(restore(again)[1], make_state(4))
    assert sorted(path.name for path in again.folder.iterdir()) == ["1", "3", "4"]


def test_a_checkpoint_that_was_half_deleted_is_no_trouble(run):
    shutil.rmtree(run / "checkpoints" / "1" / "metrics")
    with RunCheckpoints(run) as resumed:
        with pytest.warns(UserWarning, match="checkpoints/1 is damaged, and moved"):
            assert restore(resumed)[0] == 3
        save(resumed, 4)


def test_nothing_begins_anew_where_all_checkpoints_are_damaged(run):
    for step in (1, 2, 3):
        truncate(run / "checkpoints" / str(step))
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(CheckpointError, match=r"no checkpoint that can be read:\n.*3/train.*\n.*2/"),
    ):
        restore(RunCheckpoints(run))
    assert step_folders.steps_in(run / "checkpoints") == [1, 2, 3]


def test_another_architecture_is_no_damage(run):
    wide = make_params(4) | {"unet/new/kernel": jnp.zeros((2, 2))}
    del wide["unet/blocks/3/kernel"]
    with RunCheckpoints(run) as resumed:
        with pytest.raises(InputError) as error:
            resumed.restore(abstract(make_state(0, wide)), abstract(wide))
        for problem in (
            r"lacks params/unet/new/kernel",
            r"has the unknown .*unet/blocks/3/kernel",
            r"params/unet/blocks/0/kernel is float32\[16, 8\], expected float32\[16, 4\]",
        ):
            assert re.search(problem, str(error.value))
        state = make_state(0)._replace(step=jnp.float32(0))
        with pytest.raises(InputError, match=r"step is int32.*expected float32"):
            resumed.restore(abstract(state), abstract(make_params()))
        assert restore(resumed)[0] == 3


def test_averages_that_were_not_saved_are_no_damage(tmp_path):
    with RunCheckpoints(tmp_path) as written:
        written.save(1, make_state(1), {}, {})
        with pytest.raises(InputError, match=r"was saved without \['ema'\]"):
            restore(written)
        assert written.restore(abstract(make_state(0)), {})[2] == {}


def save_and_wait(store, step):
    save(store, step)
    store.wait()


def test_an_error_of_a_save_is_told_and_older_checkpoints_stay(run, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with RunCheckpoints(run, keep_latest=1) as resumed:
        restore(resumed)
        with monkeypatch.context() as patch:
            patch.setattr(orbax_arrays.ocp.JsonCheckpointHandler, "_save_fn", full)
            with pytest.raises(CheckpointError, match=r"cannot save a checkpoint.*No space left"):
                save_and_wait(resumed, 4)
        assert step_folders.steps_in(resumed.folder) == [1, 2, 3]
    with RunCheckpoints(run) as again:
        step, train, _, _ = restore(again)
        assert step == 3
        assert_same(train, make_state(3))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with (
        RunCheckpoints(tmp_path) as written,
        pytest.raises(CheckpointError, match="checkpoints: cannot open"),
    ):
        save(written, 1)
    with pytest.raises(CheckpointError, match="frozen: cannot save parameters"):
        manager.save_frozen(tmp_path / "checkpoints", make_params())


# What a run trains, here of a TDM whose UNet is partly frozen.
CONFIGS = Architecture(
    UNetConfig(
        block_out_channels=(32,), has_attention=(True,), cross_attention_dim=12, num_heads=2
    ),
    VAEConfig(block_out_channels=(32,)),
    CLIPTextConfig(hidden_size=12, num_heads=2),
    CLIPVisionConfig(hidden_size=10, num_heads=2, projection_dim=12),
)
MODEL = RunModel(
    task="tdm",
    parts=("text_encoder", "vae", "unet"),
    architecture=CONFIGS._asdict(),
    schedule=ScheduleConfig(prediction_type="v_prediction"),
)
FROZEN = {
    "unet/norm/scale": jnp.full((3,), 1.0000001),
    "vae/conv/kernel": jnp.full((2, 3), 1.0000001),
    "text_encoder/layers/10/kernel": jnp.full((4, 3), 2.0),
}


def write_run(run, *saved, ema=True, model=MODEL):
    model_json.write_model(run, model)
    manager.save_frozen(run, FROZEN)
    with RunCheckpoints(run, keep_latest=9) as written:
        for step in saved:
            averages = {name: x + 0.5 for name, x in make_state(step).params.items()}
            state = dict(make_state(step)._asdict())  # a plain dict does as well
            written.save(step, state, averages if ema else {}, {})
    return run


def place(dtype="float32", **options):
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    return Placement(dtype, lambda path, shape: where, **options)


PARTS = {
    "sdm": (*MODEL.parts, "image_encoder", "subject_fusion"),
    "tdm": MODEL.parts,
    "vae": ("vae",),
    "encoder": ("image_encoder",),
}


@pytest.mark.parametrize("task", PARTS)
def test_the_model_of_a_run_is_read_as_it_was_written(tmp_path, task):
    assert not model_json.is_run(tmp_path)
    model = MODEL._replace(task=task, parts=PARTS[task])
    model_json.write_model(tmp_path, model)
    assert model_json.is_run(tmp_path)
    own = {part: config for part, config in CONFIGS._asdict().items() if part in PARTS[task]}
    schedule = MODEL.schedule if "unet" in own else None
    assert model_json.read_model(tmp_path) == model._replace(architecture=own, schedule=schedule)


def test_the_networks_of_a_run_of_version_0_1_are_those_of_its_arrays(tmp_path):
    """Its `model.json` does not name them."""
    write_run(tmp_path, 1, 2)
    content = read_json(tmp_path / "model.json")
    del content["parts"]
    write_json(tmp_path / "model.json", content)
    assert set(model_json.read_model(tmp_path).parts) == set(MODEL.parts)
    (tmp_path / "checkpoints" / "2" / "train" / "_METADATA").unlink()
    assert set(model_json.read_model(tmp_path).parts) == set(MODEL.parts)
    found = manager.read_params(tmp_path, placement=place(), step=1)
    assert set(found) == set(MODEL.parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "model.json is no readable JSON"),
        ("{}", "kind is None, expected the name of a task"),
        ('{"kind": "tdm", "parts": ["vae"]}', "vae is None, expected a JSON object"),
        ('{"kind": "tdm", "parts": "vae"}', "parts is 'vae', expected some of"),
        ('{"kind": "tdm"}', "frozen: .*No such file"),
    ],
)
def test_a_damaged_model_is_named(tmp_path, content, message):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(InputError, match=message):
        model_json.read_model(tmp_path)


@pytest.mark.parametrize("ema", [True, False])
def test_parameters_are_trained_and_frozen_ones(tmp_path, ema):
    counts = []
    write_run(tmp_path, 1, 2)
    found = manager.read_params(tmp_path, placement=place(advance=counts.append), ema=ema)
    trained = {name: x + 0.5 * ema for name, x in make_state(2).params.items()}
    assert_same(params.flat(found), FROZEN | trained)
    assert list(found) == ["text_encoder", "vae", "unet"]
    assert list(found["text_encoder"]["layers"]) == [10]
    assert sum(counts) == len(FROZEN) + len(trained)


def test_without_averages_the_parameters_are_those_trained(tmp_path):
    write_run(tmp_path, 1, ema=False)
    found = manager.read_params(tmp_path, placement=place(), wanted=["unet"])
    trained = make_state(1).params | {"unet/norm/scale": FROZEN["unet/norm/scale"]}
    assert_same(params.flat(found), dict(sorted(trained.items())))


def test_parameters_are_cast_and_divided_as_asked(tmp_path):
    write_run(tmp_path, 1)
    mesh = sharding.make_mesh(fsdp=2)
    seen = []

    def where(path, shape):
        seen.append(path)
        return NamedSharding(mesh, P("fsdp") if len(shape) > 1 else P())

    found = manager.read_params(tmp_path, placement=Placement(jnp.bfloat16, where), step=1)
    kernel = found["unet"]["blocks"][10]["kernel"]
    assert kernel.sharding.spec == P("fsdp")
    expected = (make_state(1).params["unet/blocks/10/kernel"] + 0.5).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(kernel), np.asarray(expected))
    assert found["vae"]["conv"]["kernel"].dtype == jnp.bfloat16
    assert found["unet"]["norm"]["scale"].dtype == jnp.float32
    assert ("blocks", 10, "kernel") in seen


def test_parameters_of_the_newest_whole_checkpoint_are_read_and_nothing_is_moved(tmp_path):
    write_run(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "ema")
    with pytest.warns(UserWarning, match="checkpoint of step 2 is damaged"):
        found = manager.read_params(tmp_path, placement=place())
    np.testing.assert_array_equal(
        found["unet"]["blocks"][3]["kernel"],
        make_state(1).params["unet/blocks/3/kernel"] + 0.5,
    )
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_parameters_that_are_not_there_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder of a training run"):
        manager.read_params(tmp_path, placement=place())
    write_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoints of the steps \[\], expected one"):
        manager.read_params(tmp_path, placement=place())
    write_run(tmp_path, 3)
    with pytest.raises(CheckpointError, match=r"steps \[3\], expected that of step 4"):
        manager.read_params(tmp_path, placement=place(), step=4)
    with pytest.raises(CheckpointError, match=r"trains a tdm, which has no \['image_encoder'\]"):
        manager.read_params(tmp_path, placement=place(), wanted=["unet", "image_encoder"])
    shapes = jax.eval_shape(lambda: {"unet": {"conv": {"kernel": jnp.zeros((2, 2))}}})
    with pytest.raises(CheckpointError, match=r"lacks unet/conv/kernel; has the unknown unet"):
        manager.read_params(tmp_path, placement=place(), wanted=["unet"], abstract=shapes)
    shutil.rmtree(tmp_path / "frozen")
    with pytest.raises(CheckpointError, match=r"frozen: .*No such file"):
        manager.read_params(tmp_path, placement=place())


def test_frozen_parameters_stay_once_there_is_a_checkpoint(tmp_path):
    other = {name: x + 1 for name, x in FROZEN.items()}
    (tmp_path / "frozen.orbax-checkpoint-tmp" / "d").mkdir(parents=True)  # interrupted
    manager.save_frozen(tmp_path, other)
    manager.save_frozen(tmp_path, FROZEN)
    with RunCheckpoints(tmp_path) as written:
        written.save(1, make_state(1), {}, {})
    manager.save_frozen(tmp_path, other)
    mesh = sharding.make_mesh(fsdp=2)
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh))
        for name, x in FROZEN.items()
    }
    assert_same(manager.read_frozen(tmp_path, shapes), FROZEN)
    del shapes["vae/conv/kernel"]
    with pytest.raises(CheckpointError, match="has the unknown vae/conv/kernel"):
        manager.read_frozen(tmp_path, shapes)
    manager.save_frozen(tmp_path / "none", {})
    assert manager.read_frozen(tmp_path / "none", {}) == {}


# One process of two: saves, then reads while it alone cannot read the newest checkpoints.
PROCESS = """
import pathlib, sys, warnings
import jax
import jax.experimental.multihost_utils
address, process, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(address, 2, process)
import test_manager as this
from fd_jax import sharding
from fd_jax.checkpoints.errors import DamagedError
from fd_jax.checkpoints.run import manager, orbax_arrays

mesh = sharding.make_mesh(fsdp=4)
shapes = this.abstract(this.make_state(0), mesh)
place = jax.tree.map(lambda x: x.sharding, shapes)
make = jax.jit(this.make_state, static_argnums=0, out_shardings=place)
this.model_json.write_model(folder, this.MODEL)
manager.save_frozen(folder, sharding.to_mesh(this.FROZEN, sharding.replicated(mesh)))
with manager.RunCheckpoints(folder, keep_latest=9) as written:
    assert written.restore(shapes, shapes.params) is None
    for step in (1, 2, 3):
        written.save(step, make(step), make(step).params, {"position": step})
jax.experimental.multihost_utils.sync_global_devices("saved")
if process == 0:  # in a shard of the other process
    changes = {"unet/blocks/3/kernel": lambda x, y: x + (x == x[-1, -1]).astype(x.dtype)}
    this.rewrite(pathlib.Path(folder, "checkpoints", "3", "ema"), changes)
jax.experimental.multihost_utils.sync_global_devices("changed")

read = orbax_arrays.read
def fails(folder, targets, *options, **named):
    if process == 1 and folder.parent.name == "2":
        raise DamagedError("not here")
    return read(folder, targets, *options, **named)
orbax_arrays.read = fails
resumed = manager.RunCheckpoints(folder)
with warnings.catch_warnings(record=True) as told, resumed:
    warnings.simplefilter("always")
    step, train, ema, meta = resumed.restore(shapes, shapes.params)
    assert step == meta["position"] == int(train.step) == 1, step
    changed = "the array unet/blocks/3/kernel has changed since it was saved in [12:16,0:8]"
    assert (changed if process else "another process") in str(told[0].message)
    assert ("not here" if process else "another process") in str(told[1].message)
    kernel = ema["unet/blocks/11/kernel"]
    assert kernel.sharding.spec == shapes.params["unet/blocks/11/kernel"].sharding.spec
    resumed.save(2, train, ema, {"position": 2})
whole = this.Placement("float32", lambda path, shape: sharding.replicated(mesh))
assert float(manager.read_params(folder, placement=whole)["unet"]["norm"]["bias"][2]) == 4
jax.distributed.shutdown()
"""


def test_two_processes_agree_on_what_they_read(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(pathlib.Path(__file__).parent)]),
    }
    run, logs = tmp_path / "run", [tmp_path / f"log{i}" for i in range(2)]
    started = []
    for i, log in enumerate(logs):
        command = [sys.executable, "-c", PROCESS, address, str(i), str(run)]
        with log.open("w") as out:
            started.append(
                subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
            )
    try:
        statuses = [process.wait(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert statuses == [0, 0], "\n".join(log.read_text() for log in logs)
    # One process alone reads what two have written.
    with RunCheckpoints(run) as alone:
        step, train, _, _ = restore(alone)
    assert step == 2
    assert_same(train, make_state(1))


NAMES = (
    *("lr[1e-3] try [2]", "a*b?", "{x} %41 %s", "é 日本", "back\\slash", "gs:", "x:y", "**"),
    *("new\nline", "$HOME ~", "-dash", "#a;'\"|&", os.fsdecode(b"\xff not UTF-8")),
)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_run_may_be_in_a_folder_of_any_name(tmp_path, name):
    """Orbax and TensorStore take some characters for patterns, separators or URLs."""
    folder = tmp_path / name / "run"
    write_run(folder, 1, 2)
    found = manager.read_params(folder, placement=place(), step=2)
    kernel = make_state(2).params["unet/blocks/10/kernel"] + 0.5
    np.testing.assert_array_equal(found["unet"]["blocks"][10]["kernel"], kernel)
    assert float(found["vae"]["conv"]["kernel"][0, 0]) == float(jnp.float32(1.0000001))
    with RunCheckpoints(folder, keep_latest=1) as resumed:
        shapes = abstract(make_params())
        step, train, *_ = resumed.restore(abstract(make_state(0)._asdict()), shapes)
        assert step == 2
        resumed.save(3, train, {}, {})
    assert step_folders.steps_in(folder / "checkpoints") == [3]
    assert [path.name for path in tmp_path.iterdir()] == [name]


DAMAGED_ARRAYS = {
    "one number": {"unet/norm/bias": lambda x, y: np.nextafter(x, 9.0, dtype=np.float32)},
    "two arrays in each other's place": {
        "unet/blocks/0/kernel": lambda x, y: y,
        "unet/blocks/1/kernel": lambda x, y: y - 1,
    },
    "a sign": {"unet/norm/bias": lambda x, y: -x},
}


@pytest.mark.parametrize("damage", DAMAGED_ARRAYS)
def test_changed_arrays_are_noticed(run, damage):
    """The files are whole and decompress, but the numbers are others."""
    changes = DAMAGED_ARRAYS[damage]
    for item, prefix in (("ema", ""), ("train", "params/")):
        with RunCheckpoints(run) as resumed:
            rewrite(run / "checkpoints" / "3" / item, {prefix + k: f for k, f in changes.items()})
            [name, *_] = changes
            with (
                pytest.warns(UserWarning, match=f"{item}: the array {prefix}{name} has changed"),
                pytest.warns(UserWarning, match="is damaged, and moved to"),
            ):
                step, train, *_ = restore(resumed)
            assert step == 2
            assert_same(train, make_state(2))
            save(resumed, 3)


def rewrite(folder: pathlib.Path, changes) -> None:
    """Writes other numbers to arrays in place."""
    arrays = orbax_arrays._open(folder, write=True)
    old = {name: np.asarray(arrays[name].read().result()) for name in changes}
    values = list(old.values())
    for name, change in changes.items():
        arrays[name].write(change(old[name], values[-1])).result()


def test_changed_frozen_arrays_are_noticed(tmp_path):
    write_run(tmp_path, 1)
    rewrite(tmp_path / "frozen", {"vae/conv/kernel": lambda x, y: x + 1})
    with pytest.raises(CheckpointError, match=r"frozen: the array vae/conv/kernel has changed"):
        manager.read_params(tmp_path, placement=place())


def test_checkpoints_without_checksums_are_read(tmp_path):
    """As version 0.1 wrote them."""
    write_run(tmp_path, 1)
    (tmp_path / "frozen" / "checksums").unlink()
    path = tmp_path / "checkpoints" / "1" / "meta" / "metadata"
    content = read_json(path)
    assert content.pop("checksums")["ema"].keys() == make_params().keys()
    write_json(path, content)
    assert set(manager.read_params(tmp_path, placement=place())) == set(MODEL.parts)
