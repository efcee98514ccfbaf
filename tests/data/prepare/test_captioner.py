"""Captions by a command of the user's."""

import shlex
import sys
from pathlib import Path

import pytest

from fd_jax.data.prepare.captioner import caption_photographs
from fd_jax.data.prepare.left_out import LeftOut
from fd_jax.errors import InputError

NAMES = [Path("a.jpg"), Path("sub/b.jpg"), Path("c.jpg")]


def command(code):
    return shlex.join([sys.executable, "-c", f"import sys, pathlib\n{code}"])


ECHO = command(
    "for line in sys.stdin: print('a man named', pathlib.Path(line.strip()).stem, flush=True)"
)


def test_the_command_reads_paths_and_writes_captions(tmp_path):
    captions = caption_photographs(ECHO, tmp_path, NAMES, tmp_path)

    assert list(captions.values()) == ["a man named a", "a man named b", "a man named c"]


def test_captions_are_asked_for_once(tmp_path):
    seen = tmp_path / "seen"
    counting = command(
        f"for line in sys.stdin: open({str(seen)!r}, 'a').write(line); print('a man')\n"
    )

    caption_photographs(counting, tmp_path, NAMES[:2], tmp_path)
    with (tmp_path / "captions.jsonl").open("a") as file:
        file.write('{"photograph": "c')  # cut short
    captions = caption_photographs(counting, tmp_path, NAMES, tmp_path)
    again = caption_photographs(counting, tmp_path, NAMES, tmp_path)

    assert captions == again == dict.fromkeys(NAMES, "a man")
    assert [Path(line).name for line in seen.read_text().split()] == ["a.jpg", "b.jpg", "c.jpg"]


def test_an_empty_caption_is_told(tmp_path):
    captions = caption_photographs(
        command("for line in sys.stdin: print()"), tmp_path, NAMES[:1], tmp_path
    )

    assert isinstance(captions[NAMES[0]], LeftOut)


@pytest.mark.parametrize(
    ("captioner", "message"),
    [
        ("absent-program", "cannot be run"),
        ("'", "cannot be run"),
        (command("print('a man')"), "wrote 1 lines"),
        (command("print('a man\\n' * 9)"), "wrote more lines"),
        (command("print('a man\\n' * 2); sys.exit(5)"), "ended with 5"),
    ],
)
def test_commands_that_fail_are_named(tmp_path, captioner, message):
    with pytest.raises(InputError, match=message):
        caption_photographs(captioner, tmp_path, NAMES, tmp_path)
