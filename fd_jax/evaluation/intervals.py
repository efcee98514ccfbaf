"""Confidence intervals by bootstrap over pictures."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 1000
_TAILS = 2.5, 97.5  # in percent: 95 % lie between


class Estimate(NamedTuple):
    """A number and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def mean(scores: Float[np.ndarray, " n"], *, seed: int = 0) -> Estimate:
    """Returns the mean of the scores of n pictures."""
    [means] = _resampled(scores[None], seed)
    return Estimate(float(scores.mean()), *np.percentile(means, _TAILS).tolist())


def difference(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], *, seed: int = 0
) -> Estimate:
    """Returns the mean of `a` less that of `b`, scores of the same n cells."""
    return mean(a - b, seed=seed)


def ratio(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], *, seed: int = 0) -> Estimate:
    """Returns the mean of `a` by that of `b`, scores of the same n cells.

    NaN where b's mean is not positive, as nothing can be kept of what is not there.
    """

    tops, bottoms = _resampled(np.stack([a, b]), seed)
    if b.mean() <= 0:
        return Estimate(np.nan, np.nan, np.nan)
    ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
    return Estimate(float(a.mean() / b.mean()), *np.percentile(ratios, _TAILS).tolist())


def _resampled(scores: Float[np.ndarray, "k n"], seed: int) -> Float[np.ndarray, "k r"]:
    """Means of the rows over n pictures drawn with repetition, the same ones in all rows."""
    count = scores.shape[1]
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    return scores[:, drawn].mean(axis=2)
