"""Trains the TDM, the SDM, the autoencoder that they share, or an image encoder.

fd-train --config sdm_ffhq --workdir runs/sdm --data.root ffhq --init.base stable-diffusion-v1-5
--init.image-encoder clip-vit-large-patch14

The same command again resumes the run. Any setting of the config can be given by its dotted name,
such as --optimizer.learning-rate 2e-5.
"""

import dataclasses
import inspect
import logging
import re
import runpy
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import jax
import tyro

import fd_jax
from fd_jax import cli, distributed
from fd_jax.config import Config, nearest
from fd_jax.errors import InputError
from fd_jax.training.config import TrainConfig
from fd_jax.training.loop import NonFiniteError
from fd_jax.training.tasks import unused_settings
from fd_jax.training.trainer import train

_PACKAGE = Path(fd_jax.__file__).parent
# Configs that come with fd_jax: beside the package in a clone, inside of it when installed.
_CONFIG_FOLDERS = (_PACKAGE.parent / "configs", _PACKAGE / "configs")


@dataclasses.dataclass(frozen=True)
class CommandLine(Config):
    """Options besides the settings of the config."""

    config: Path
    """Config file, or the name of one that comes with fd_jax, such as sdm_ffhq."""
    workdir: Path
    """Folder of the run, for checkpoints, metrics and previews."""


def main() -> None:
    """Trains, and exits with the status: 128 plus the number of the signal that stopped the run."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs what is in order
    cli.run_main(_train, errors=(NonFiniteError,))


def _train() -> int:
    line, config = parse(sys.argv[1:], __doc__ or "")
    distributed.join(config.processes)
    distributed.enable_compile_cache()
    for message in unused_settings(config) if jax.process_index() == 0 else ():
        print(f"warning: {message}", file=sys.stderr)
    try:
        signal = train(config, line.workdir)
    except jax.errors.JaxRuntimeError as error:
        traceback.print_exc()
        cli.fail(
            f"error: {error}\nIf there are several processes, another one may have died: look at "
            "its messages. The last checkpoint is whole, and the same command resumes from it."
        )
    if jax.process_index() == 0:
        if signal is None:
            print(f"trained {config.loop.num_steps} steps: {line.workdir}")
        else:
            print(f"stopped by signal {signal}; the same command resumes: {line.workdir}")
    return 0 if signal is None else 128 + signal


def parse(arguments: Sequence[str], description: str) -> tuple[CommandLine, TrainConfig]:
    """Parses the command line: config file, folder, and settings by their dotted names.

    Args:
        arguments: Arguments of the command.
        description: Text of `--help`, to which the config's docstring is added.

    Raises:
        InputError: The config file cannot be used, or a setting is out of range.
        SystemExit: The command line is wrong, which tyro explains, or help was asked for.
    """
    default = TrainConfig()
    name = _value_of("--config", arguments)
    if name is not None:
        path = find_config(Path(name))
        default, docstring = read_config_file(path)
        description = f"{description}\n\n{path}: {docstring}"

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        line: Annotated[CommandLine, tyro.conf.arg(name="")]
        settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = default

    found = tyro.cli(Arguments, args=list(arguments), description=description)
    return found.line, found.settings


def find_config(name: Path) -> Path:
    """Returns the path of a config file, which may be named without folder and suffix.

    Raises:
        InputError: There is none.
    """
    if name.is_file():
        return name
    folders = [folder for folder in _CONFIG_FOLDERS if folder.is_dir()]
    if name.parent == Path():
        for folder in folders:
            path = folder / f"{name.name.removesuffix('.py')}.py"
            if path.is_file():
                return path
        known = {path.stem for folder in folders for path in folder.glob("[a-z]*.py")}
    else:
        known = {path.name for path in name.parent.glob("*.py")}
    raise InputError(
        f"config {name} does not exist, expected a Python file, or one of "
        f"{sorted(known)}{nearest(name.name, sorted(known))}"
    )


def read_config_file(path: Path) -> tuple[TrainConfig, str]:
    """Executes a config file and returns its CONFIG and its docstring.

    A config imports others of its folder as `configs.NAME`.

    Raises:
        InputError: The file fails, or has no CONFIG of type TrainConfig.
    """
    try:
        with _configs_package(path.parent):
            found = runpy.run_path(str(path))
    except (TypeError, SyntaxError, ImportError, NameError, AttributeError) as error:
        raise InputError(f"config {path}: {error}{_nearest_field(str(error))}") from error
    config = found.get("CONFIG")
    if not isinstance(config, TrainConfig):
        raise InputError(f"config {path}: CONFIG is {config!r:.80}, expected a TrainConfig")
    return config, inspect.cleandoc(found.get("__doc__") or "")


@contextmanager
def _configs_package(folder: Path) -> Iterator[None]:
    """Makes a folder importable as the package `configs`, wherever it lies."""
    known = {name: module for name, module in sys.modules.items() if _is_config(name)}
    for name in known:
        del sys.modules[name]
    package = types.ModuleType("configs")
    # Modules beside the config file come before those of fd_jax.
    folders = (folder.absolute(), *(other for other in _CONFIG_FOLDERS if other.is_dir()))
    package.__path__ = list(map(str, folders))
    sys.modules["configs"] = package
    try:
        yield
    finally:
        for name in [name for name in sys.modules if _is_config(name)]:
            del sys.modules[name]
        sys.modules.update(known)


def _is_config(name: str) -> bool:
    return name == "configs" or name.startswith("configs.")


def _nearest_field(message: str) -> str:
    """Completes Python's message about a keyword that a dataclass does not have."""
    match = re.search(r"unexpected keyword argument '(\w+)'", message)
    if not match:
        return ""
    names = {field.name for cls in _dataclasses(TrainConfig) for field in dataclasses.fields(cls)}
    return nearest(match[1], sorted(names))


def _dataclasses(cls: type) -> list[type]:
    """Returns a dataclass and those of its fields."""
    found = [cls]
    for field in dataclasses.fields(cls):
        for inner in (field.type, *getattr(field.type, "__args__", ())):
            for kind in (inner, *getattr(inner, "__args__", ())):
                if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                    found += _dataclasses(kind)
    return found


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return None
