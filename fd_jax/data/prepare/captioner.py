"""Runs the user's own captioner: a command that reads paths and writes captions."""

import json
import os
import shlex
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from tqdm import tqdm

from fd_jax.data.prepare.find import clean
from fd_jax.data.prepare.left_out import LeftOut
from fd_jax.errors import InputError, OutputError

CAPTIONS = "captions.jsonl"


def caption_photographs(
    command: str, root: Path, photographs: Sequence[Path], out: Path
) -> dict[Path, str | LeftOut]:
    """Returns the captions that a command writes, which are kept in a file and not asked for twice.

    Args:
        command: Program and arguments, run without a shell: it reads the path of a photograph from
            each line of its standard input, and writes its caption as one line.
        root: The folder of photographs.
        photographs: Paths relative to it.
        out: The folder of the training set.

    Raises:
        InputError: The command fails, or writes too few or too many lines.
        OutputError: The captions cannot be kept.
    """
    path = out / CAPTIONS
    kept = _read(path)
    captions: dict[Path, str | LeftOut] = {}
    asked: list[Path] = []
    for photograph in photographs:
        if "\n" in str(photograph):
            captions[photograph] = LeftOut("no caption", "its name has a line break")
        elif kept.get(str(photograph), {}).get("command") != command:
            asked.append(photograph)
    if asked:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # after a line that was cut short
                lines = _run(command, [root / photograph for photograph in asked])
                progress = tqdm(lines, total=len(asked), unit="caption", desc="Captioning")
                for photograph, caption in zip(asked, progress, strict=True):
                    entry = {"photograph": str(photograph), "command": command, "caption": caption}
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                    kept[str(photograph)] = entry
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    for photograph in photographs:
        if photograph not in captions:
            try:
                captions[photograph] = clean(kept[str(photograph)]["caption"])
            except LeftOut as problem:
                captions[photograph] = problem
    return captions


def _read(path: Path) -> dict[str, dict[str, str]]:
    kept = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            kept[entry["photograph"]] = entry
        except (ValueError, LookupError, TypeError):
            continue  # cut short: it is asked for again
    return kept


def _run(command: str, paths: Sequence[Path]) -> Iterator[str]:
    """Yields one caption for each path."""
    try:
        arguments = shlex.split(command)
        process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"captioner {command!r} cannot be run: {error}") from error
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        # Both ways at once: a command may write before it has read everything.
        writer = threading.Thread(target=_send, args=(process.stdin, paths), daemon=True)
        writer.start()
        count = 0
        try:
            for line in process.stdout:
                count += 1
                if count > len(paths):
                    break
                yield line.decode("utf-8", "replace").rstrip("\r\n")
        finally:
            if count != len(paths):
                process.kill()
    if count != len(paths) or process.returncode not in (0, -9):
        more = "more" if count > len(paths) else count
        raise InputError(
            f"captioner {command!r} wrote {more} lines and ended with {process.returncode}, "
            f"expected a line for each of {len(paths)} photographs and 0"
        )


def _send(stream: IO[bytes], paths: Sequence[Path]) -> None:
    try:
        with stream:
            for path in paths:
                stream.write(os.fsencode(path) + b"\n")
                stream.flush()
    except OSError:
        pass  # it ended early, which the number of its lines tells
