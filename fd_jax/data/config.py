"""Config of the training data."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from fd_jax.config import Config, Range
from fd_jax.data.captions import MAX_SUBJECTS
from fd_jax.data.ffhq.folder import Split
from fd_jax.data.photographs import MAX_SUBJECT_RESOLUTION
from fd_jax.errors import InputError

Crops = Literal["noise", "portrait"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Training data and its augmentation."""

    root: tuple[Path, ...] = ()
    """Folders in the layout of FFHQ-FastComposer, or TFDS datasets that `fd-data build` wrote from
    them; several are joined."""
    split: Split = "train"
    """List of ids to train on. Held-out batches come from the test list."""
    batch_size: Annotated[int, Range(1)] = 16
    """Examples per step, over all processes."""
    resolution: Annotated[int, Range(8, 8192)] = 512
    """Height and width of the images in pixels."""
    subject_resolution: Annotated[int, Range(2, MAX_SUBJECT_RESOLUTION)] = 224
    """Height and width of the subjects' crops in pixels."""
    max_subjects: Annotated[int, Range(0, MAX_SUBJECTS)] = 4
    """Subjects per image at most, chosen at random; 0 trains on captions alone."""
    caption_drop_prob: Annotated[float, Range(0, 1)] = 0.1
    """Probability of dropping the caption with all subjects."""
    subject_keep_prob: Annotated[float, Range(0, 1)] = 0.9
    """Probability of keeping each subject of a caption that is not dropped."""
    object_types: Annotated[tuple[str, ...], Range(1)] = ("person",)
    """COCO labels of the segments that are subjects."""
    min_subjects: Annotated[int, Range(0)] = 0
    """Smallest number of subjects of an image that is trained on."""
    balance_subjects: bool = False
    """Repeat images until every number of subjects, up to max-subjects, is equally frequent."""
    augment: bool = True
    """Crop, rotate, recolour, blur and deform the subjects at random."""
    crops: Crops = "noise"
    """Surroundings of subjects in their crops: noise inside of the bbox, as in the released code,
    or a portrait's margin and backdrop, for an image encoder that is trained from scratch."""
    backdrop: str | None = None
    """Function that draws the backdrops of portraits, as module:function (rng, side) -> uint8
    [side, side, 3]; fd_jax.demo.painters:backdrop paints scenes."""
    flip: bool = True
    """Mirror half of the images, chosen at random."""
    num_workers: Annotated[int, Range(0)] = 0
    """Worker processes that load examples, on each host; 0 uses threads."""
    num_threads: Annotated[int, Range(1)] = 8
    """Threads that load examples if num-workers is 0."""
    prefetch: Annotated[int, Range(1)] = 2
    """Batches loaded ahead, by all threads together or by each worker process."""
    latent_cache: Path | None = None
    """Folder of VAE posteriors and text embeddings, written before the first step where they are
    missing and read in place of images, if VAE and text encoder are frozen (tdm, sdm)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crops == "portrait" and self.backdrop is None:
            raise InputError(
                "DataConfig: crops is 'portrait' without a backdrop, expected a function such as "
                "backdrop='fd_jax.demo.painters:backdrop'"
            )
