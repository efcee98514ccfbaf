"""Finished pictures as PNG files in memory, with the settings that made them."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from fd_jax.images.png import encode_png
from fd_jax.inference.pictures import ImageConfig, OutputConfig, Picture
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.inference.writer import PictureWriter
from fd_jax.web.jobs import Job


class Result(NamedTuple):
    """A finished picture."""

    name: str  # of its file
    label: str
    png: bytes


def finished_pictures(
    pipe: FaceDiffuser, images: ImageConfig, models: dict[str, str], job: Job
) -> list[Result]:
    """Returns the pictures of a job that is done, as `fd-sample` would write them.

    Args:
        pipe: Pipeline that made them.
        images: Settings that all pictures of the server share, but for their sampler.
        models: Paths of the models.
        job: The job.
    """
    results = []
    for i, (image, pixels) in enumerate(zip(job.request.images, job.pixels, strict=True)):
        picture = Picture(
            output=f"{image.seed}_{image.number}_{i}.png",
            prompt=job.request.prompt,
            negative_prompt=job.request.negative_prompt,
            references=tuple((Path(name),) for name in job.names),
            seed=image.seed,
            number=image.number,
        )
        shared = dataclasses.replace(images, sampler=image.sampler)
        writer = PictureWriter(shared, OutputConfig(), models)
        settings = writer.settings(pipe, **picture.settings())
        results.append(Result(picture.output, image.label, encode_png(pixels, settings)))
    return results
