"""The command line of `train.py`, and several processes."""

import pathlib
import re
import signal
import sys
import time

import pytest

from fd_jax.training import cli
from fd_jax.training.metrics import read_metrics
from tests.helpers.processes import start, together
from tests.helpers.training import CONFIG_FILE


@pytest.fixture
def config(tmp_path) -> pathlib.Path:
    """A config file of a tiny run of four steps."""
    path = tmp_path / "tiny.py"
    path.write_text('"""A tiny run."""\n\n' + CONFIG_FILE.format("data__batch_size=8"))
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line up to the training, which is replaced; returns status and output."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    seen = []
    monkeypatch.setattr(cli, "train", lambda *args: seen.append(args))

    def run(*arguments: object):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, " ".join((out + err).replace("│", " ").split()), seen

    return run


def test_any_setting_has_its_dotted_name(run, config, tmp_path):
    status, printed, [(settings, workdir)] = run(
        *("--config", config, "--workdir", tmp_path / "run", "--data.root", "a", "b"),
        *("--data.batch-size", 16, "--loop.num-steps", 7, "--loop.checkpoint-every", 3),
        *("--loop.seed", 5, "--mesh.fsdp", 2, "--optimizer.learning-rate", "2e-5"),
    )
    assert status == 0
    assert "trained 7 steps" in printed
    assert workdir == tmp_path / "run"
    assert settings.data.root == (pathlib.Path("a"), pathlib.Path("b"))
    assert (settings.data.batch_size, settings.loop.num_steps) == (16, 7)
    assert (settings.loop.checkpoint_every, settings.loop.seed, settings.mesh.fsdp) == (3, 5, 2)
    assert settings.optimizer.learning_rate == 2e-5
    assert settings.data.resolution == 16  # of the file


def test_help_shows_the_config(run, config):
    status, printed, seen = run("--config", config, "--help")
    assert status == 0
    assert "A tiny run." in printed
    assert "--optimizer.learning-rate" in printed
    assert seen == []


BAD = {
    "no config": (["--workdir", "x"], "--config"),
    "missing config": (["--config", "configs/sdm_fhq.py"], "did you mean 'sdm_ffhq.py'"),
    "unknown field": (["--config", "CONFIG", "--data.bach-size", "3"], "--data.batch-size"),
    "wrong type": (["--config", "CONFIG", "--data.batch-size", "many"], "many"),
    "out of range": (["--config", "CONFIG", "--loop.num-steps", "0"], "num_steps is 0"),
    "choice": (["--config", "CONFIG", "--compute.remat", "some"], "some"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_command_lines_are_named(run, config, tmp_path, case):
    arguments, message = BAD[case]
    arguments = [str(config) if argument == "CONFIG" else argument for argument in arguments]
    status, printed, seen = run(*arguments, "--workdir", tmp_path / "run")
    assert status not in (0, None)
    assert message in printed
    assert "Traceback" not in printed
    assert seen == []


FILES = {
    "unknown field": (
        "from fd_jax.data.config import DataConfig\nDataConfig(bach_size=3)",
        "did you mean 'batch_size'",
    ),
    "wrong type": (
        "from fd_jax.training.optimizer import OptimizerConfig\n"
        "OptimizerConfig(schedule='constant', warmup_steps=-1)",
        "warmup_steps is -1",
    ),
    "no CONFIG": ("", "CONFIG is None"),
    "syntax": ("CONFIG = (", "was never closed"),
    "import": ("import fd_jax.nothing", "fd_jax.nothing"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_config_files_are_named(run, tmp_path, case):
    content, message = FILES[case]
    path = tmp_path / "bad.py"
    path.write_text(content)
    status, printed, seen = run("--config", path, "--workdir", tmp_path / "run")
    assert status == 1
    assert message in printed
    assert "Traceback" not in printed
    assert seen == []


FOLDER = pathlib.Path(__file__).parents[1] / "configs"
CONFIGS = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configs_are_complete(run, tmp_path, name):
    status, _, [(settings, _)] = run("--config", name, "--workdir", tmp_path, "--data.root", "a")
    assert status == 0
    path = FOLDER / f"{name}.py"
    assert run("--config", path, "--workdir", tmp_path, "--data.root", "a")[2][-1][0] == settings
    # The text encoder is trained with a TDM.
    assert settings.task in name.replace("text", "tdm").split("_")
    assert (settings.model is None) == ("ffhq" in name)


def wait_for(condition, processes, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        assert all(process.poll() is None for process in processes), "a process has ended"
        time.sleep(0.2)


def run_together(arguments, folder, name):
    """Starts two processes of four devices each; returns them and what they print."""
    logs = [folder / f"{name}{i}.log" for i in range(2)]
    shares = together(arguments, 2, prefix="processes.")
    started = [
        start("train.py", share, log, devices=4) for share, log in zip(shares, logs, strict=True)
    ]
    return started, logs


def finish(started, seconds=240):
    try:
        return [process.wait(timeout=seconds) for process in started]
    finally:
        for process in started:
            process.kill()


def losses(workdir):
    return {line["step"]: line["loss"] for line in read_metrics(workdir / "metrics.jsonl")}


def test_two_processes_train_as_one(config, tmp_path):
    """And one alone goes on from what they saved."""
    arguments = ["--config", str(config), "--loop.num-steps", "3", "--loop.checkpoint-every", "2"]
    one, two = tmp_path / "one", tmp_path / "two"
    started, logs = run_together(
        [*arguments, "--workdir", str(two), "--mesh.fsdp", "2"], tmp_path, "a"
    )
    alone = start("train.py", [*arguments, "--workdir", str(one)], tmp_path / "one.log", devices=1)
    assert finish([*started, alone]) == [0, 0, 0], "\n".join(log.read_text() for log in logs)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    printed = [log.read_text() for log in logs]
    assert "trained 3 steps" in printed[0]
    assert "trained" not in printed[1]
    more = [*arguments, "--workdir", str(two), "--loop.num-steps", "4"]
    [status] = finish([start("train.py", more, tmp_path / "more.log", devices=1)])
    assert status == 0, (tmp_path / "more.log").read_text()
    assert sorted(losses(two)) == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_processes_encode_the_data_together(config, tmp_path):
    arguments = ["--config", str(config), "--loop.num-steps", "2", "--loop.checkpoint-every", "2"]
    one, two = tmp_path / "one", tmp_path / "two"
    encoded = ["--data.latent_cache", str(tmp_path / "encodings"), "--workdir", str(two)]
    started, logs = run_together([*arguments, *encoded], tmp_path, "a")
    alone = start("train.py", [*arguments, "--workdir", str(one)], tmp_path / "one.log", devices=1)
    assert finish([*started, alone]) == [0, 0, 0], "\n".join(log.read_text() for log in logs)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    printed = [log.read_text() for log in logs]
    assert "encoding 1/2 of the data" in printed[0]
    assert "encoding" not in printed[1]


@pytest.mark.slow
def test_a_process_that_is_stopped_or_dies(config, tmp_path):
    """SIGTERM to one of two saves and stops both; if one is killed the other stops, and says so."""
    workdir = tmp_path / "run"
    arguments = ["--config", str(config), "--workdir", str(workdir)]
    arguments += ["--loop.num-steps", "100000", "--loop.checkpoint-every", "100000"]
    started, logs = run_together(arguments, tmp_path, "term")
    metrics = workdir / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and len(losses(workdir)) > 3, started)
    started[1].send_signal(signal.SIGTERM)
    assert finish(started) == [128 + signal.SIGTERM] * 2, logs[0].read_text()
    [saved] = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert saved == max(losses(workdir))

    started, logs = run_together(arguments, tmp_path, "kill")
    wait_for(lambda: len(losses(workdir)) > saved + 3, started)
    started[1].kill()
    assert finish(started, seconds=120)[0] not in (0, None)
    # By this script, where a collective fails first, or by JAX, which hears no heartbeat.
    assert re.search(r"another (one may have|task) died", logs[0].read_text())
    [after] = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert after == saved
