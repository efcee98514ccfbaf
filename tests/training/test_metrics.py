import json
import sys
import types

import pytest

from fd_jax.errors import InputError
from fd_jax.training.metrics import MetricsWriter, read_metrics, require


def write(folder, steps, *, done=0, **options):
    writer = MetricsWriter(folder, done, **options)
    for step in steps:
        writer.write(step, {"loss": step / 2, "unknown": None, "broken": float("nan")})
    writer.close()


def test_lines_are_json(tmp_path):
    write(tmp_path, [1, 2])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    expected = {"step": 2, "loss": 1.0, "unknown": None, "broken": None}
    assert json.loads(lines[1]) == expected


def test_lines_of_steps_that_are_done_again_go(tmp_path):
    write(tmp_path, [1, 2, 3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the process died here
    write(tmp_path, [3], done=2)
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[]\n", b"\xff\n", b"{}\n", b"NaN\n"])
def test_a_damaged_file_is_kept_aside(tmp_path, damage):
    """As a power failure leaves it. The run goes on."""
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes() + damage
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="metrics.jsonl is damaged, and moved to"):
        write(tmp_path, [3], done=2)
    assert (tmp_path / "metrics.damaged_2.jsonl").read_bytes() == content
    assert [line["step"] for line in read_metrics(path)] == [3]


def test_weights_and_biases_knows_the_run_again(tmp_path, monkeypatch):
    logged, begun = [], []

    def init(**options):
        begun.append(options)
        return types.SimpleNamespace(
            log=lambda values, step: logged.append((step, values)), finish=lambda: None
        )

    package = types.ModuleType("wandb")
    package.init = init
    monkeypatch.setitem(sys.modules, "wandb", package)
    write(tmp_path, [1], wandb="faces", config={"a": 1})
    write(tmp_path, [2], done=1, wandb="faces")
    assert logged == [(1, {"loss": 0.5}), (2, {"loss": 1.0})]
    assert begun[0]["project"] == "faces"
    assert begun[0]["config"] == {"a": 1}
    assert begun[0]["id"] == begun[1]["id"]


def test_a_package_that_is_missing_is_named():
    with pytest.raises(InputError, match=r"--log\.x needs the package not_there.*pip install"):
        require("not_there", "--log.x")
