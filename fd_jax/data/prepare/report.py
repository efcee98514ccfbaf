"""Says what became of each photograph: two lists, and pages of examples."""

import collections
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fd_jax.data.ffhq.folder import read_item
from fd_jax.data.ffhq.page import draw_page
from fd_jax.data.photographs import PhotographError, load_photograph
from fd_jax.data.prepare.item import Result, write_whole
from fd_jax.images.png import write_png
from fd_jax.images.sheets import contact_sheet, scaled

LEFT_OUT, ITEMS = "left_out.csv", "items.csv"
EXAMPLES, LEFT_OUT_PAGE = "examples.png", "left_out.png"

_EXAMPLES, _LEFT_OUT_EXAMPLES = 8, 24
_SIDE = 512  # pixels of a photograph on the page


def write(results: Sequence[Result], photographs: Path, out: Path) -> None:
    """Writes the lists and the pages, and prints the number of items and of photographs left out.

    Args:
        results: Result of each file.
        photographs: The folder of photographs.
        out: The folder of the training set.

    Raises:
        OutputError: A file cannot be written.
    """
    write_left_out(results, out)
    written = [result for result in results if result.reason is None]
    rows = [
        (
            result.id,
            result.name,
            result.people,
            read_item(out, result.id).caption,
            "; ".join(result.notes),
        )
        for result in written
    ]
    write_whole(out / ITEMS, _csv(("id", "photograph", "people", "caption", "notes"), rows))
    records = [read_item(out, result.id) for result in _spread(written, _EXAMPLES)]
    write_png(out / EXAMPLES, draw_page(records), {}, overwrite=True)
    _draw_left_out(results, photographs, out)

    left_out = [result for result in results if result.reason is not None]
    print(f"wrote {len(written)} items to {out}, see {EXAMPLES} and {ITEMS}")
    if left_out:
        counted = collections.Counter(result.reason for result in left_out)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counted.most_common())
        print(f"left out {len(left_out)} files ({reasons}), see {LEFT_OUT}")
    if noted := sum(bool(result.notes) for result in written):
        print(f"notes on {noted} items, see {ITEMS}")


def write_left_out(results: Iterable[Result], out: Path) -> None:
    """Writes which files are left out and why. Raises OutputError."""
    rows = [
        (result.name, result.reason, result.detail)
        for result in results
        if result.reason is not None
    ]
    write_whole(out / LEFT_OUT, _csv(("photograph", "reason", "detail"), rows))


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    # Names that are no UTF-8 are written with the bytes that are not.
    return stream.getvalue().encode("utf-8", "backslashreplace")


def _spread(results: Sequence[Result], count: int) -> list[Result]:
    chosen = np.linspace(0, len(results) - 1, min(count, len(results))).astype(int)
    return [results[i] for i in chosen]


def _draw_left_out(results: Iterable[Result], photographs: Path, out: Path) -> None:
    """Draws photographs that are left out above their reasons, some of each reason first."""
    by_reason: dict[str, list[Result]] = collections.defaultdict(list)
    for result in results:
        if result.reason not in (None, "hidden file", "no photograph", "unreadable", "gone"):
            by_reason[result.reason].append(result)
    turns = [(i, result) for group in by_reason.values() for i, result in enumerate(group)]
    images, labels = [], []
    for _, result in sorted(turns, key=lambda turn: turn[0])[:_LEFT_OUT_EXAMPLES]:
        try:
            image = load_photograph(photographs / result.name)
        except PhotographError:
            continue
        images.append(np.array(scaled(image, _SIDE)))
        labels.append(f"{result.reason}: {Path(result.name).name}: {result.detail}")
    page = out / LEFT_OUT_PAGE
    if images:
        write_png(page, contact_sheet(images, labels), {}, overwrite=True)
    else:
        page.unlink(missing_ok=True)
