"""Samples the pictures of one prompt or of a prompt file, and writes them to a folder."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from fd_jax.data.captions import strip_markers
from fd_jax.data.photographs import load_photograph
from fd_jax.errors import OutputError
from fd_jax.files import path_exists
from fd_jax.images.png import read_settings, setting_text, write_png
from fd_jax.images.sheets import contact_sheet
from fd_jax.inference.inputs import ImageKey, SamplingInputs, join_inputs
from fd_jax.inference.pictures import Picture, readable
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.inference.prompt_file import PromptLine, read_prompt_file
from fd_jax.inference.writer import PictureWriter
from fd_jax.sharding import make_mesh

SHEET = "contact_sheet.png"
MAX_ON_SHEET = 64
LoadPipeline = Callable[[jax.sharding.Mesh], FaceDiffuser]


def sample_prompt(
    load: LoadPipeline,
    pictures: Sequence[Picture],
    writer: PictureWriter,
    *,
    any_seed: bool = False,
) -> int:
    """Samples pictures of one prompt, over the devices of all processes.

    Pictures that the same command has written before are kept.

    Args:
        load: Reads the models onto a mesh.
        pictures: The pictures, which differ in their numbers alone.
        writer: Writes them.
        any_seed: Whether pictures that exist may be of another seed.

    Returns:
        The exit status.

    Raises:
        InputError: A file that exists is not a picture of this command, or the prompt cannot be
            used.
    """
    sheet = writer.output.output / SHEET
    missing = _missing(pictures, sheet, writer, any_seed)
    is_first = jax.process_index() == 0
    if not missing:
        if is_first:
            print(f"nothing to make: {len(pictures)} pictures exist in {_folder(writer)}")
        return 0
    for person in pictures[0].references:  # before the models, whose reading takes longer
        for path in person:
            load_photograph(path)
    pipe = load(make_mesh())
    begin = time.perf_counter()
    inputs = writer.make_inputs(pipe, missing[0])
    rows = [row for picture in missing for row in writer.rows(picture)]
    num_rows = len(rows) // len(missing) * len(pictures)
    batches = pipe.sample_batches(
        inputs,
        [ImageKey(0, row.seed, row.number) for row in rows],
        sampler=writer.images.sampler,
        size=pipe.latent_size(writer.images.height, writer.images.width),
        # The same for what is missing as for all, so that the pictures are the same too.
        batch_size=min(writer.output.batch_size * pipe.mesh.size, num_rows),
        progress=True,
        trace=writer.output.trace,
    )
    first = 0
    for samples in batches:
        writer.write(pipe, samples, rows[first : first + len(samples)], [inputs] * len(samples))
        first += len(samples)
    if not is_first:
        return 1 if writer.num_failed else 0
    if len(pictures) > 1 and not writer.num_failed:
        settings = pictures[0].settings()
        del settings["image_number"]
        if writer.choice.candidates > 1:
            settings["candidates"] = writer.choice.candidates
        labels = [f"seed {picture.seed}, picture {picture.number}" for picture in pictures]
        _write_sheet(
            sheet, pictures[:MAX_ON_SHEET], labels, writer, writer.settings(pipe, **settings)
        )
    print(writer.summary(begin))
    return 1 if writer.num_failed else 0


def sample_file(load: LoadPipeline, path: Path, seed: int, writer: PictureWriter) -> int:
    """Samples the pictures of a prompt file that do not exist yet, each process its share.

    A line that cannot be read, sampled or written is reported with its number; the others are made.

    Args:
        load: Reads the models onto a mesh.
        path: The prompt file.
        seed: Seed of the lines without one.
        writer: Writes the pictures.

    Returns:
        The exit status.

    Raises:
        InputError: The prompt file as a whole cannot be read.
    """
    lines, bad_lines = read_prompt_file(path, traces=writer.output.trace)
    is_first = jax.process_index() == 0
    for bad in bad_lines if is_first else ():
        writer.report(f"line {bad.line}", bad.reason)
    pictures = [_picture(line, seed) for line in lines]
    share = writer.missing(pictures[jax.process_index() :: jax.process_count()])
    if not share:
        name = readable(str(path))
        print(f"nothing to make: {len(lines)} pictures of {name} exist in {_folder(writer)}")
        return 1 if writer.num_failed else 0

    pipe = load(make_mesh(jax.local_devices()))
    begin = time.perf_counter()
    size = -(-writer.output.batch_size // pipe.mesh.size) * pipe.mesh.size
    lines = max(size // writer.choice.candidates, 1)  # in a batch
    with tqdm(desc="pictures", total=len(share), unit=" pictures", disable=not is_first) as bar:
        batch: list[tuple[Picture, SamplingInputs]] = []
        for picture in share:
            try:
                batch.append((picture, writer.make_inputs(pipe, picture)))
            except Exception as error:
                writer.fail(picture, error)
                bar.update(1)
            if len(batch) == lines or (batch and picture is share[-1]):
                _sample_batch(pipe, batch, writer, size)
                bar.update(len(batch))
                batch = []
    print(writer.summary(begin))
    if jax.process_count() == 1:
        _write_file_sheet(pictures, path, writer)
    return 1 if writer.num_failed else 0


def _sample_batch(
    pipe: FaceDiffuser,
    batch: Sequence[tuple[Picture, SamplingInputs]],
    writer: PictureWriter,
    batch_size: int,
) -> None:
    """Samples and writes a batch of lines; if that fails, one line after another.

    Only one line alone may have more candidates than a batch.
    """
    rows = [(i, row) for i, (picture, _) in enumerate(batch) for row in writer.rows(picture)]
    inputs = [inputs for _, inputs in batch]
    first = 0
    try:
        for samples in pipe.sample_batches(
            join_inputs(inputs),
            [ImageKey(i, row.seed, row.number) for i, row in rows],
            sampler=writer.images.sampler,
            size=pipe.latent_size(writer.images.height, writer.images.width),
            batch_size=batch_size,
            trace=writer.output.trace,
        ):
            part = rows[first : first + len(samples)]
            writer.write(pipe, samples, [row for _, row in part], [inputs[i] for i, _ in part])
            first += len(samples)
    except Exception as error:
        if len(batch) == 1:
            writer.fail(batch[0][0], error)
            return
        for line in batch:
            _sample_batch(pipe, [line], writer, batch_size)


def _picture(line: PromptLine, seed: int) -> Picture:
    return Picture(
        output=line.output,
        prompt=line.prompt,
        negative_prompt=line.negative_prompt,
        references=line.references,
        seed=seed if line.seed is None else line.seed,
        number=0,
        line=line.line,
    )


def _missing(
    pictures: Sequence[Picture], sheet: Path, writer: PictureWriter, any_seed: bool
) -> list[Picture]:
    """Returns the pictures that lack a file, as the first process sees them.

    Raises:
        OutputError: A file exists that the same command has not written.
    """
    missing = writer.missing(pictures)
    problem = None
    if jax.process_index() == 0 and not writer.output.overwrite:
        problem = _foreign_files(pictures, sheet, writer, any_seed)
    if jax.process_count() > 1:
        wanted = np.isin([p.number for p in pictures], [p.number for p in missing])
        wanted, is_refused = multihost_utils.broadcast_one_to_all((wanted, problem is not None))
        missing = [
            picture for picture, is_wanted in zip(pictures, wanted, strict=True) if is_wanted
        ]
        if is_refused and problem is None:
            problem = "the first process found files that are not of this command"
    if problem is not None:
        raise OutputError(problem)
    return missing


def _foreign_files(
    pictures: Sequence[Picture], sheet: Path, writer: PictureWriter, any_seed: bool
) -> str | None:
    """Returns an error message if files exist that the same command has not written."""
    files = [(path, picture) for picture in pictures for path in writer.files(picture)]
    if len(pictures) > 1:
        files.append((sheet, pictures[0]))
    foreign = {}
    for path, picture in files:
        if not path_exists(path):
            continue
        expected = writer.known_settings(picture)
        if any_seed:
            del expected["seed"]
        if path == sheet:
            expected.pop("image_number", None)
        if difference := _difference(path, expected if writer.output.metadata else {}):
            foreign[readable(str(path))] = difference
    if not foreign:
        return None
    names = list(foreign)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{', '.join(names[:3])}{more} exist already, not written by this command: "
        f"{foreign[names[0]]}; expected another --output, or --overwrite to replace them"
    )


def _difference(path: Path, expected: Mapping[str, Any]) -> str | None:
    """Returns how the settings in a PNG file differ from those expected."""
    try:
        found = read_settings(path)
    except OutputError:
        return "no readable PNG file"
    for name, value in expected.items():
        here = setting_text(value)
        if found.get(name) != here:
            there = f"{found[name]:.80}" if name in found else "missing"
            return f"{name} is {there} there and {here:.80} here"
    return None


def _write_file_sheet(pictures: Sequence[Picture], path: Path, writer: PictureWriter) -> None:
    """Writes a contact sheet of a prompt file that is done, if it is short and there is none."""
    sheet = writer.output.output / SHEET
    files = [writer.files(picture)[0] for picture in pictures]
    is_done = all(file.exists() for file in files)
    if not is_done or not 1 < len(pictures) <= MAX_ON_SHEET:
        return
    if sheet.exists() and not writer.output.overwrite:
        print(f"{readable(str(sheet))} exists, and is left as it is")
        return
    labels = [strip_markers(picture.prompt) for picture in pictures]
    settings = {"prompt_file": readable(path.name)} if writer.output.metadata else {}
    _write_sheet(sheet, pictures, labels, writer, settings)


def _write_sheet(
    path: Path,
    pictures: Sequence[Picture],
    labels: Sequence[str],
    writer: PictureWriter,
    settings: Mapping[str, Any],
) -> None:
    """Writes a contact sheet of pictures on disk, each below its photographs."""
    firsts = {person[0] for p in pictures for person in p.references}
    photographs = {file: load_photograph(file) for file in firsts}
    image = contact_sheet(
        [load_photograph(writer.files(picture)[0]) for picture in pictures],
        labels[: len(pictures)],
        references=[[photographs[person[0]] for person in p.references] for p in pictures],
    )
    write_png(path, image, settings, overwrite=True)


def _folder(writer: PictureWriter) -> str:
    return readable(str(writer.output.output))
