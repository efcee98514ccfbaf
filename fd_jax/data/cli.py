"""Command line of training data: `fd-data check|build|prepare`."""

from pathlib import Path
from typing import Annotated

import tyro

from fd_jax import cli
from fd_jax.data.ffhq.check import check_folder
from fd_jax.data.prepare.cli import prepare

Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
Dataset = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]


def check(folder: Folder, /, page: Path | None = None) -> int:
    """Examine every item of a folder; exit with 1 if one is broken.

    Args:
        folder: Folder in the layout of FFHQ-FastComposer.
        page: PNG file to draw examples to: image, segments, caption, crops.
    """
    return 0 if check_folder(folder, page) else 1


def build(folder: Folder, dataset: Dataset, /) -> None:
    """Write a folder's items as a TFDS dataset, which loads faster and is few files.

    Args:
        folder: Folder in the layout of FFHQ-FastComposer.
        dataset: Folder to write to.
    """
    from fd_jax.data.ffhq import tfds_dataset  # TFDS takes a second to import

    tfds_dataset.build(folder, dataset)


def main() -> None:
    """Runs `fd-data`."""
    cli.run(
        {"check": check, "build": build, "prepare": prepare},
        prog="fd-data",
        description="Photographs of people in the layout of FFHQ-FastComposer.",
    )


if __name__ == "__main__":
    main()
