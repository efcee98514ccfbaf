"""The command line: `python -m fd_jax.data.ffhq check|build`."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from fd_jax.data.ffhq.check import check_folder
from fd_jax.errors import InputError

Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
Dataset = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]


def check(folder: Folder, /, page: Path | None = None) -> None:
    """Examine every item of a folder; exit with 1 if one is broken.

    Args:
        folder: A folder in the layout of FFHQ-FastComposer.
        page: PNG file to draw examples to: image, segments, caption, crops.
    """
    if not check_folder(folder, page):
        sys.exit(1)


def build(folder: Folder, dataset: Dataset, /) -> None:
    """Write a folder's items as a TFDS dataset, which loads faster and is few files.

    Args:
        folder: A folder in the layout of FFHQ-FastComposer.
        dataset: Folder to write to.
    """
    from fd_jax.data.ffhq import tfds_dataset

    tfds_dataset.build(folder, dataset)


def main() -> None:
    """Runs the command that the command line asks for."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"check": check, "build": build},
            prog="python -m fd_jax.data.ffhq",
            description="Photographs of people in the layout of FFHQ-FastComposer.",
        )
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
