"""Makes a training set in the layout of FFHQ-FastComposer from a folder of photographs."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from fd_jax.config import Config, Range
from fd_jax.data.ffhq.folder import ID_FILES, SUFFIXES, item_path
from fd_jax.data.prepare import report
from fd_jax.data.prepare.captioner import caption_photographs
from fd_jax.data.prepare.duplicates import find_duplicates
from fd_jax.data.prepare.faces import opencv
from fd_jax.data.prepare.find import clean, find_copies, find_photographs, read_captions
from fd_jax.data.prepare.item import ItemConfig, Result, Task, write_whole
from fd_jax.data.prepare.journal import Entry, Journal, fingerprint
from fd_jax.data.prepare.left_out import LeftOut
from fd_jax.data.prepare.lost_words import note_lost_words
from fd_jax.data.prepare.masks import find_mask
from fd_jax.data.prepare.workers import make_items
from fd_jax.errors import InputError
from fd_jax.files import local_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig(Config):
    """What a training set is made of.

    Attributes:
        caption: Caption of the photographs that have none of their own.
        captioner: Command that reads a path from each line of its standard input and writes a
            caption as one line; asked for photographs that have no caption of their own.
        masks: Folder of masks of people, named as the photographs, PNG or npy.
        test_share: Share of the items that are held out, in image_ids_test.txt.
        workers: Processes, by default one for each core.
        item: How photographs become items.
    """

    caption: str | None = None
    captioner: str | None = None
    masks: Path | None = None
    test_share: Annotated[float, Range(0, 0.9)] = 0.0
    workers: Annotated[int, Range(0)] | None = None
    item: Annotated[ItemConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ItemConfig
    )


def prepare(photographs: Path, out: Path, config: PrepareConfig) -> list[Result]:
    """Writes a training set, and returns what became of each photograph, in their order.

    The same call again resumes, makes what is new or changed, and leaves the rest as it is. Lists
    of ids are replaced once all is written.

    Args:
        photographs: Folder of photographs, with subfolders.
        out: Folder of the training set, outside `photographs`.
        config: Captions, masks and limits.

    Raises:
        InputError: A folder or an option cannot be used, or no photograph can be trained on.
        OutputError: A file cannot be written.
    """
    opencv()
    photographs, out = local_path(photographs), local_path(out)
    _check_folders(photographs, out, config)
    default = None
    if config.caption is not None:
        try:
            default = clean(config.caption)
        except LeftOut as problem:
            raise InputError(f"caption: {problem.detail}") from None
    found = find_photographs(photographs)
    journal = Journal(out, photographs)
    try:
        captions = _captions(photographs, found.photographs, out, default, config)
        usable = [path for path, caption in captions.items() if isinstance(caption, str)]
        left_out = found.left_out | find_copies(photographs, found.photographs, usable)
        chosen = [path for path in found.photographs if path not in left_out]
        entries = _make(photographs, chosen, captions, out, journal, config)
    finally:
        journal.close()
    entries |= {
        str(path): Entry(Result(str(path), "", problem.reason, problem.detail), "")
        for path, problem in left_out.items()
    }
    results = _finish(entries, journal, out, config)
    report.write(results, photographs, out)
    return results


def _check_folders(photographs: Path, out: Path, config: PrepareConfig) -> None:
    inner, outer = out.resolve(), photographs.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise InputError(f"{out} and {photographs} lie in one another, expected separate folders")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, expected a folder")
    if config.masks is not None and not config.masks.is_dir():
        raise InputError(f"masks folder {config.masks} does not exist or is not a folder")


def _captions(
    root: Path,
    photographs: Sequence[Path],
    out: Path,
    default: str | None,
    config: PrepareConfig,
) -> dict[Path, str | LeftOut]:
    if config.captioner is None:
        return read_captions(root, photographs, default)
    captions = read_captions(root, photographs, None)
    without = [path for path in photographs if path not in captions]
    captions |= caption_photographs(config.captioner, root, without, out)
    return captions


def _make(
    root: Path,
    photographs: Sequence[Path],
    captions: Mapping[Path, str | LeftOut],
    out: Path,
    journal: Journal,
    config: PrepareConfig,
) -> dict[str, Entry]:
    """Makes the items that are not made yet; returns all entries of the photographs, in order."""
    used = [int(entry.result.id) for entry in journal.entries.values() if entry.result.id]
    number = max(used, default=-1)
    tasks: dict[str, Task] = {}
    for path in photographs:
        name, caption = str(path), captions.get(path)
        if (before := journal.entries.get(name)) is not None and before.result.id:
            identity = before.result.id
        else:
            number += 1
            identity = f"{number:08d}"
        if not isinstance(caption, str):
            problem = caption or LeftOut("no caption", "no text file, no metadata, no --caption")
            journal.add(Entry(Result(name, identity, problem.reason, problem.detail), ""))
            continue
        mask = None if config.masks is None else find_mask(config.masks, path)
        tasks[name] = Task(name, root / path, identity, caption, mask)
    fingerprints = {name: fingerprint(task, config.item) for name, task in tasks.items()}
    waiting = [
        task
        for name, task in tasks.items()
        if not _is_made(name, journal.entries, fingerprints, out)
    ]
    progress = tqdm(total=len(tasks), initial=len(tasks) - len(waiting), unit="photograph")
    with progress:
        for result in make_items(waiting, config.item, out, config.workers):
            result = note_lost_words(result, tasks[result.name].caption)
            journal.add(Entry(result, fingerprints[result.name]))
            progress.update()
    return {str(path): journal.entries[str(path)] for path in photographs}


def _is_made(
    name: str, entries: Mapping[str, Entry], fingerprints: Mapping[str, str], out: Path
) -> bool:
    entry = entries.get(name)
    if entry is None or entry.fingerprint != fingerprints[name]:
        return False
    if entry.result.copy_of:  # as long as the other one is what it was
        other = entries.get(entry.result.copy_of)
        return other is not None and fingerprints.get(entry.result.copy_of) == other.fingerprint
    return entry.result.reason is not None or _has_files(entry.result, out)


def _has_files(result: Result, out: Path) -> bool:
    return all(item_path(out, result.id, suffix).is_file() for suffix in SUFFIXES)


def _finish(
    entries: Mapping[str, Entry], journal: Journal, out: Path, config: PrepareConfig
) -> list[Result]:
    """Leaves out copies, writes the lists of ids, and deletes files of what is left out."""
    entries = dict(entries)
    for name, original in find_duplicates([entry.result for entry in entries.values()]).items():
        old, detail = entries[name], f"looks the same as {original}"
        copy = Result(name, old.result.id, "duplicate", detail, copy_of=original)
        entries[name] = Entry(copy, old.fingerprint)
    results = [entry.result for entry in entries.values()]
    # Their files stay, should the photographs come back.
    gone = [entry for name, entry in journal.entries.items() if name not in entries]
    text = "its photograph is no longer there, its item is in no list"
    written = [entry.result for entry in gone if entry.result.reason is None]
    lost = [Result(result.name, result.id, "gone", text) for result in written]
    ids = [result.id for result in results if result.reason is None]
    if not ids:
        counted = collections.Counter(result.reason for result in results)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counted.most_common())
        report.write_left_out(results + lost, out)
        raise InputError(
            f"none of the {len(results)} files can be trained on: {reasons}; "
            f"{out / report.LEFT_OUT} says why of each"
        )
    _write_lists(ids, out, config.test_share)
    journal.rewrite(entry for entry in [*entries.values(), *gone] if entry.result.id)
    for result in results:
        if result.reason is not None and result.id:
            for suffix in SUFFIXES:
                item_path(out, result.id, suffix).unlink(missing_ok=True)
    return results + lost


def _write_lists(ids: Sequence[str], out: Path, test_share: float) -> None:
    """Replaces the lists of ids. Those held out are spread evenly."""
    steps = np.floor(np.arange(len(ids) + 1) * test_share + 1e-9)
    is_test = np.diff(steps) > 0
    lists: dict[str, Iterable[str]] = {
        "all": ids,
        "train": [name for name, test in zip(ids, is_test, strict=True) if not test],
        "test": [name for name, test in zip(ids, is_test, strict=True) if test],
    }
    for split, names in lists.items():
        path = out / ID_FILES[split]
        if split == "test" and not any(is_test):
            path.unlink(missing_ok=True)
        else:
            write_whole(path, "".join(f"{name}\n" for name in names).encode())
