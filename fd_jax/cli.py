"""Command lines: options from type annotations by tyro, errors of the user in one line."""

import dataclasses
import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NoReturn

import tyro

from fd_jax.errors import InputError


def run(
    command: Callable[..., int | None] | Mapping[str, Callable[..., int | None]],
    *,
    description: str | None = None,
    prog: str | None = None,
    args: Sequence[str] | None = None,
    config: Sequence[Any] = (),
) -> NoReturn:
    """Parses the command line, calls the command, and exits with the status it returns.

    Args:
        command: Function of the options, or functions by subcommand. Its parameters are the
            options; a single parameter that is a dataclass holds them as its fields. The returned
            status may be None, for 0.
        description: Text of `--help`, by default the function's docstring.
        prog: Name of the program in messages, by default that of the script or module.
        args: Arguments, by default those of the process.
        config: Markers of tyro for all options.
    """

    prog = prog or _module_run()

    def parse_and_call() -> int | None:
        if isinstance(command, Mapping):
            return tyro.extras.subcommand_cli_from_dict(
                dict(command), description=description, prog=prog, args=args, config=config
            )
        text = inspect.getdoc(command) if description is None else description
        return tyro.cli(_unprefixed(command), description=text, prog=prog, args=args, config=config)

    run_main(parse_and_call)


def run_main(
    main: Callable[[], int | None], *, errors: tuple[type[Exception], ...] = ()
) -> NoReturn:
    """Calls a function and exits with the status it returns; prints expected errors in one line.

    Args:
        main: Function of a command that reads the command line itself.
        errors: Types of expected errors besides InputError and OSError.
    """
    warnings.showwarning = _print_warning
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may hold bytes that are not text, and terminals may lack letters.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main()
    except (InputError, OSError, *errors) as error:
        fail(f"error: {error}")
    except KeyboardInterrupt:
        fail("interrupted", status=130)
    sys.exit(status or 0)


def fail(message: str, *, status: int = 1) -> NoReturn:
    """Prints a message to stderr and exits.

    One of several processes exits at once: an orderly exit would wait for the others, which wait
    for this one.
    """
    print(message, file=sys.stderr, flush=True)
    jax = sys.modules.get("jax")  # a command that never imports JAX is alone
    if jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1:
        os._exit(status)
    sys.exit(status)


def _module_run() -> str | None:
    """Returns `python -m MODULE` if that is how the process was started."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return None if spec is None else f"python -m {spec.name}"


def _unprefixed(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Names the options of a function's only parameter, if that is a dataclass, by its fields."""
    parameters = list(inspect.signature(command).parameters.values())
    if len(parameters) != 1 or not dataclasses.is_dataclass(parameters[0].annotation):
        return command

    # A function, not the dataclass itself: tyro would print errors of its fields in a box.
    def call(arguments: Any) -> int | None:
        return command(arguments)

    call.__annotations__["arguments"] = Annotated[parameters[0].annotation, tyro.conf.arg(name="")]
    return call


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
