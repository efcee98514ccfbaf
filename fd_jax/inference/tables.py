"""Tables of steps of batches, whose images have one sampler or one each, and their traces."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from fd_jax.errors import InputError
from fd_jax.inference.samples import SamplingTrace
from fd_jax.sampling.generate import Trace
from fd_jax.sampling.noise_fusion import Smoothing
from fd_jax.sampling.stages import SamplerConfig, Steps, join_steps, make_steps
from fd_jax.schedule import ScheduleConfig


class Part(NamedTuple):
    """A few evaluations of a batch, made in one dispatch."""

    first: int
    done: int  # evaluations so far, these included
    total: int
    trace: SamplingTrace | None  # of these evaluations, if one is wanted


class BatchTable(NamedTuple):
    """What a batch is sampled with."""

    steps: Steps
    guidance_scale: float | list[float]  # for all images, or one for each
    smoothing: Smoothing
    use_tdm: Bool[np.ndarray, "n ..."]  # evaluations that each image, or all, take of the TDM
    use_sdm: Bool[np.ndarray, "n ..."]

    def trace(self, seen: Trace, count: int, first: int = 0) -> SamplingTrace:
        """Returns the trace of the first images, NaN where they do not take a model.

        Args:
            seen: Rows of the trace, on the host.
            count: Number of images; the rest fills up the batch.
            first: Number of the first row.
        """
        rows = slice(first, first + len(seen.x0))

        def blank(saliency: np.ndarray, is_used: np.ndarray) -> np.ndarray:
            is_used = is_used[rows].reshape(len(saliency), -1)[:, :count]
            return np.where(is_used[..., None, None], saliency[:, :count], np.nan)

        return SamplingTrace(
            jax.tree.map(lambda column: column[rows], self.steps),
            blank(np.asarray(seen.tdm_saliency), self.use_tdm),
            blank(np.asarray(seen.sdm_saliency), self.use_sdm),
            np.asarray(seen.sdm_weight)[:, :count],
            np.asarray(seen.x0)[:, :count],
        )

    def followed_by(
        self, listeners: Sequence[Callable[[Part], object]], count: int
    ) -> Callable[[int, Trace | None], None] | None:
        """Returns the function that `CompiledSampler.generate` calls; None without listeners.

        Args:
            listeners: Called in turn with each part.
            count: Number of images that they see.
        """
        done = 0

        def follow(number: int, seen: Trace | None) -> None:
            nonlocal done
            first, done = done, done + number
            trace = None if seen is None else self.trace(seen, count, first)
            for listener in listeners:
                listener(Part(first, done, len(self.use_tdm), trace))

        return follow if listeners else None


class Tables:
    """Makes the table of each batch.

    Args:
        sampler: Settings of all images, or one for each. Those of one batch agree in solver,
            number of steps and smoothing.
        schedule: Noise schedule of both models.
    """

    def __init__(self, sampler: SamplerConfig | Sequence[SamplerConfig], schedule: ScheduleConfig):
        self._sampler = sampler
        samplers = [sampler] if isinstance(sampler, SamplerConfig) else sampler
        self._steps = {each: make_steps(each, schedule) for each in samplers}

    def of(self, rows: Int[np.ndarray, " b"]) -> BatchTable:
        """Returns the table of these images. Raises InputError if their samplers do not agree."""
        if isinstance(self._sampler, SamplerConfig):
            steps = self._steps[self._sampler]
            used = np.asarray(steps.use_tdm), np.asarray(steps.use_sdm)
            return BatchTable(steps, self._sampler.guidance_scale, self._sampler.smoothing, *used)
        samplers = [self._sampler[row] for row in rows]
        smoothings = {each.smoothing for each in samplers}
        if len(smoothings) > 1:
            raise InputError(f"images of one batch have smoothings {smoothings}, expected one")
        tables = [self._steps[each] for each in samplers]
        return BatchTable(
            join_steps(tables),
            [each.guidance_scale for each in samplers],
            samplers[0].smoothing,
            np.stack([table.use_tdm for table in tables], axis=1),
            np.stack([table.use_sdm for table in tables], axis=1),
        )
