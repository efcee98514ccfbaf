"""The command line of `prepare`."""

from pathlib import Path
from typing import Annotated

import tyro

from fd_jax.data.prepare.prepare import PrepareConfig
from fd_jax.data.prepare.prepare import prepare as make_set

Photographs = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
_DEFAULT = PrepareConfig()
Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


def prepare(
    photographs: Photographs,
    out: Out,
    /,
    config: Annotated[PrepareConfig, tyro.conf.arg(name="")] = _DEFAULT,
) -> None:
    """Make a training set from a folder of photographs with captions.

    Finds the people of each photograph, their faces and masks, and binds them to the words of its
    caption. Captions are read from NAME.txt beside NAME.jpg, or from metadata.jsonl or
    metadata.csv. The same command again resumes.

    Args:
        photographs: Folder of photographs, with subfolders.
        out: Folder of the training set, in the layout of FFHQ-FastComposer.
        config: Captions, masks and limits.
    """
    make_set(photographs, out, config)
