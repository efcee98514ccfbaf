import dataclasses
import os
import subprocess
import sys
import warnings
from typing import Annotated

import pytest

from fd_jax import cli
from fd_jax.config import Config, Range
from fd_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Config):
    count: Annotated[int, Range(1)] = 1
    """Number of things."""


def count_things(options: Options) -> int:
    """Counts things."""
    print(f"{options.count} things")
    return 0 if options.count < 5 else 3


@pytest.fixture(autouse=True)
def _warnings_as_before(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def status(command, *args):
    with pytest.raises(SystemExit) as exited:
        cli.run(command, args=args)
    return exited.value.code


def test_options_are_the_fields_of_a_dataclass(capsys):
    assert status(count_things, "--count", "2") == 0
    assert status(count_things, "--count", "7") == 3
    assert capsys.readouterr().out == "2 things\n7 things\n"


@pytest.mark.parametrize("name", [b"\xff", b"Jos\xe9.jpg", "日本".encode()])
def test_file_names_of_any_bytes_are_printed(name, capsys):
    assert status(lambda: print(os.fsdecode(name))) == 0
    out = capsys.readouterr().out.strip()
    assert out == os.fsdecode(name).encode(errors="backslashreplace").decode()


def test_help_is_the_docstring(capsys):
    assert status(count_things, "--help") == 0
    assert "Counts things." in (text := capsys.readouterr().out)
    assert "Number of things." in text


def test_errors_of_the_user_are_one_line(capsys):
    assert status(count_things, "--count", "0") == 1
    assert (
        capsys.readouterr().err
        == "error: Options: count is 0, expected a whole number, 1 or more\n"
    )


@pytest.mark.parametrize("error", [InputError("no"), OSError("no"), FileNotFoundError("no")])
def test_errors_of_the_command_are_one_line(error, capsys):
    def fail():
        raise error

    assert status(fail) == 1
    assert capsys.readouterr().err == "error: no\n"


def test_bugs_keep_their_traceback():
    def fail():
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        cli.run(fail, args=())


def test_subcommands(capsys):
    def add(a: int, b: int = 1) -> None:
        """Adds."""
        print(a + b)

    def fail() -> None:
        """Fails."""
        raise InputError("failed")

    commands = {"add": add, "fail": fail}
    assert status(commands, "add", "--a", "2") == 0
    assert status(commands, "fail") == 1
    assert capsys.readouterr() == ("3\n", "error: failed\n")


def test_warnings_are_one_line(capsys):
    def warn() -> None:
        warnings.simplefilter("always")
        warnings.warn("careful", stacklevel=1)

    with warnings.catch_warnings():
        assert status(warn) == 0
    assert capsys.readouterr().err == "warning: careful\n"


@pytest.mark.parametrize("modules", ["fd_jax", "fd_jax.cli, fd_jax.config, fd_jax.errors"])
def test_jax_is_imported_late(modules):
    code = f"import sys, {modules}; print(sorted({{'jax', 'flax', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
