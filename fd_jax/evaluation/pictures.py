"""Makes the pictures of an evaluation, or reads those made elsewhere."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from fd_jax.data.photographs import IMAGE_SUFFIXES, load_photograph
from fd_jax.errors import InputError
from fd_jax.evaluation.cases import Case, Person, Pixels, Run
from fd_jax.files import write_json
from fd_jax.images.png import write_png
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.inference.samples import NonFiniteError

PICTURES = "pictures"  # a folder for each run
PROMPTS = "cases.jsonl"
SETTINGS = "settings.json"


def check_settings(folder: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Writes what pictures depend on, or compares it with that of an evaluation to be resumed.

    Raises:
        InputError: The folder holds another evaluation, and may not be overwritten.
    """
    path = folder / SETTINGS
    wanted = json.loads(json.dumps(settings, default=str))
    if path.exists() and not overwrite:
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}; expected --overwrite") from error
        for key in wanted | found:
            if wanted.get(key) != found.get(key):
                raise InputError(
                    f"{folder} holds an evaluation with {key} {found.get(key)!r:.80}, here it is "
                    f"{wanted.get(key)!r:.80}; expected another --output, or --overwrite"
                )
    write_json(path, wanted)


def write_cases(folder: Path, cases: Sequence[Case], people: Sequence[Person]) -> None:
    """Writes the cases as a prompt file, from which other programs can make the pictures."""
    lines = []
    for case in cases:
        paths = [people[i].path for i in case.people]
        names = [
            people[i].id if path is None else str(path.resolve())
            for i, path in zip(case.people, paths, strict=True)
        ]
        line = {"prompt": case.prompt, "references": names, "seed": case.seed}
        lines.append(json.dumps(line | {"output": f"{case.name}.png"}))
    try:
        (folder / PROMPTS).write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to the output folder {folder}: {error}") from error


def make_pictures(
    pipe: FaceDiffuser,
    run: Run,
    cases: Sequence[Case],
    people: Sequence[Person],
    folder: Path,
    *,
    batch_size: int,
    bar: tqdm,
) -> None:
    """Makes the pictures that are missing in a folder, each process its share.

    Args:
        pipe: Pipeline on devices of this process.
        run: How to sample.
        cases: All pictures.
        people: People of the cases.
        folder: Folder of the run, which all processes see.
        batch_size: Pictures at a time, rounded up to a multiple of the devices.
        bar: Progress bar, advanced by a picture at a time.

    Raises:
        InputError: A picture is not finite, or cannot be written.
    """
    if run.sampler is None:
        raise ValueError(f"the pictures of {run.name} are made elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    share = cases[jax.process_index() :: jax.process_count()]
    missing = [case for case in share if not (folder / f"{case.name}.png").exists()]
    bar.update(len(share) - len(missing))
    batch_size = -(-batch_size // pipe.mesh.size) * pipe.mesh.size
    for first in range(0, len(missing), batch_size):
        batch = missing[first : first + batch_size]
        samples = pipe(
            [case.prompt for case in batch],
            [[people[person].photograph for person in case.people] for case in batch],
            seed=[case.seed for case in batch],
            sampler=run.sampler,
            batch_size=batch_size,
        )
        for i, case in enumerate(batch):
            path = folder / f"{case.name}.png"
            settings = {"prompt": case.prompt, "seed": case.seed, "run": run.name}
            try:
                write_png(path, np.asarray(samples[i]), settings, overwrite=True)
            except NonFiniteError as error:
                raise InputError(f"picture {case.name} of {run.name}: {error}") from error
        bar.update(len(batch))


def wait_for_others() -> None:
    """Waits until all processes have made their share."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("pictures")


def find_pictures(folder: Path, cases: Sequence[Case]) -> list[Path]:
    """Returns the file of each case, with any suffix of an image.

    Raises:
        InputError: A picture is missing.
    """
    if not folder.is_dir():
        raise InputError(f"pictures {folder} is no folder, expected one of pictures")
    by_name = {p.stem: p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES}
    if missing := [case.name for case in cases if case.name not in by_name]:
        raise InputError(
            f"pictures {folder} lack {len(missing)} of {len(cases)}, the first is "
            f"{missing[0]}.png (or another format); {PROMPTS} in the output folder has the prompt "
            "of each"
        )
    return [by_name[case.name] for case in cases]


def read_pictures(paths: Sequence[Path], size: int) -> Iterator[list[Pixels]]:
    """Yields pictures in lists of `size`, the last one shorter. Raises InputError."""
    for first in range(0, len(paths), size):
        yield [load_photograph(path) for path in paths[first : first + size]]
