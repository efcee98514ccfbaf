"""Confidence intervals by bootstrap over images."""

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


def mean(scores: Float[np.ndarray, " n"], *, seed: int = 0) -> Estimate:
    """Estimates the mean of the scores of n images."""
    [means] = _resampled(scores[None], seed)
    return Estimate(float(scores.mean()), *np.percentile(means, _TAILS).tolist())


def difference(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], *, seed: int = 0
) -> Estimate:
    """Estimates the mean of `a - b`, scores of the same n cases."""
    return mean(a - b, seed=seed)


def ratio(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], *, seed: int = 0) -> Estimate:
    """Estimates the mean of `a` over the mean of `b`, scores of the same n cases.

    NaN if the mean of `b` is not positive.
    """

    tops, bottoms = _resampled(np.stack([a, b]), seed)
    if b.mean() <= 0:
        return Estimate(np.nan, np.nan, np.nan)
    ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
    return Estimate(float(a.mean() / b.mean()), *np.percentile(ratios, _TAILS).tolist())


def _resampled(scores: Float[np.ndarray, "k n"], seed: int) -> Float[np.ndarray, "k r"]:
    """Averages each row over n images drawn with replacement, the same ones for all rows."""
    count = scores.shape[1]
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    return scores[:, drawn].mean(axis=2)
