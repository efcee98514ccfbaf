"""Confidence intervals by bootstrap over people, or over images."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 1000
_TAILS = 2.5, 97.5  # percentiles of a 95 % interval


class Estimate(NamedTuple):
    """A number and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def mean(
    scores: Float[np.ndarray, " n"],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> Estimate:
    """Estimates the mean of the scores of n images.

    Args:
        scores: A score of each image; NaN is left out.
        groups: Whom each image is of. Groups are drawn as a whole, since images of the same people
            are not independent; by default each image is drawn on its own.
        seed: Seed of the draws.
    """
    kept = np.isfinite(scores)
    if not kept.any():
        return Estimate(np.nan, np.nan, np.nan)
    [means] = _resampled(scores[None, kept], _kept(groups, kept), seed)
    return Estimate(float(scores[kept].mean()), *np.percentile(means, _TAILS).tolist())


def difference(
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " n"],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> Estimate:
    """Estimates the mean of `a - b`, scores of the same n cases."""
    return mean(a - b, groups, seed=seed)


def ratio(
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " n"],
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
) -> Estimate:
    """Estimates the mean of `a` over the mean of `b`, scores of the same n cases.

    NaN if the mean of `b` is not positive.
    """
    kept = np.isfinite(a) & np.isfinite(b)
    a, b = a[kept], b[kept]
    if not len(b) or b.mean() <= 0:
        return Estimate(np.nan, np.nan, np.nan)
    tops, bottoms = _resampled(np.stack([a, b]), _kept(groups, kept), seed)
    ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
    return Estimate(float(a.mean() / b.mean()), *np.percentile(ratios, _TAILS).tolist())


def _kept(groups: Sequence[Hashable] | None, kept: np.ndarray) -> list[Hashable] | None:
    return None if groups is None else [groups[int(i)] for i in np.flatnonzero(kept)]


def _resampled(
    scores: Float[np.ndarray, "k n"], groups: Sequence[Hashable] | None, seed: int
) -> Float[np.ndarray, "k r"]:
    """Averages each row over groups drawn with replacement, the same ones for all rows."""
    number = {group: i for i, group in enumerate(dict.fromkeys(groups or range(scores.shape[1])))}
    index = [number[group] for group in groups or range(scores.shape[1])]
    sums = np.stack([np.bincount(index, row, len(number)) for row in scores])
    sizes = np.bincount(index, minlength=len(number))
    drawn = np.random.default_rng(seed).integers(len(number), size=(RESAMPLES, len(number)))
    return sums[:, drawn].sum(axis=2) / sizes[drawn].sum(axis=1)
