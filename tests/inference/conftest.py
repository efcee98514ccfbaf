"""The command line of sampling on tiny networks."""

import sys

import pytest

from fd_jax.inference import cli, pipeline

FAST = ["--num-steps", "4"]


@pytest.fixture
def run(checkpoints, pipe, monkeypatch, capsys):
    """Runs the command line on the tests' pipeline; returns exit status, output and errors."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setattr(pipeline.FaceDiffuser, "from_pretrained", lambda **_: pipe)
    paths = [f"--{key.replace('_', '-')}={path}" for key, path in checkpoints.items()]

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sample.py", *paths, *FAST, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run
