"""What follows from a metric's resamples and from several trainings: intervals, p-values, their correction, power.
Pure.

The metrics of the resamples are `statistics`'; every pair of methods at once is `pairs`'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# The chance of finding a difference of the size that is called detectable.
POWER = 0.8


class Interval(NamedTuple):
    """A difference, its confidence interval (percentile) and its two-sided bootstrap p-value."""

    difference: float
    low: float
    high: float
    p: float


def seed_luck(rng: np.random.Generator, per_seed: np.ndarray, count: int) -> np.ndarray:
    """(count,) draws of how far a mean over seeds may be off: t with S − 1 degrees of freedom, times sd/√S; per_seed
    (S,).

    Resampling a handful of seeds instead would say far too little: of three equal signs it knows no other. Zero for one
    seed, whose luck is not known.
    """
    size = len(per_seed)
    if size < 2:
        return np.zeros(count)
    return rng.standard_t(size - 1, size=count) * (per_seed.std(ddof=1) / np.sqrt(size))


def interval(observed: float, differences: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval of resampled differences (r,) around the observed one, and p for "no difference".

    p = 2·min(share ≤ 0, share ≥ 0), with one more resample on either side (Davison and Hinkley 1997, section 4.2), at
    most 1. Resamples that are not defined (NaN) are left out.
    """
    defined = differences[np.isfinite(differences)]
    if not len(defined):
        return Interval(observed, float("nan"), float("nan"), 1.0)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    tail = min((defined <= 0).sum(), (defined >= 0).sum())
    return Interval(observed, float(low), float(high), float(min(1.0, 2 * (tail + 1) / (len(defined) + 1))))


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values corrected for their number (Holm 1979): step down, and never below one that is smaller. What is NaN is
    not tested: it stays so, and does not count.
    """
    values = np.asarray(p, dtype=float)
    out = np.full(len(values), np.nan)
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    stepped = values[order] * (len(order) - np.arange(len(order)))
    out[order] = np.minimum(1.0, np.maximum.accumulate(stepped)) if len(order) else stepped
    return out


def detectable(examples: float, seeds: float, count: int, alpha: float) -> float:
    """The smallest true difference that a two-sided test at `alpha` finds with the chance `POWER`: power as it was
    planned, not of what was observed.

    `examples`: standard error of the difference over examples; `seeds`: standard deviation of the difference over
    `count` trainings, of which those trainings will tell another one each time. NaN for one training, whose luck is not
    known.
    """
    if count < 2 or math.isnan(seeds):
        return float("nan")
    from scipy.special import ndtr
    from scipy.stats import chi2, t

    whole = math.hypot(examples, seeds / math.sqrt(count))
    if whole == 0:
        return 0.0
    freedom, middles = count - 1, (np.arange(400) + 0.5) / 400
    # What standard deviation the trainings may show, and for each the edge of the interval around no difference: there
    # a normal and a t distribution add up, as in `interval` of `seed_luck`.
    shown = np.sqrt(chi2.ppf(middles[::20], freedom) / freedom) * seeds / math.sqrt(count)
    luck, spread = np.outer(shown, t.ppf(middles, freedom)), max(examples, 1e-3 * whole)
    edges = _bisect(
        lambda edge: ndtr((luck - edge[:, None]) / spread).mean(1) < alpha / 2, 2 * luck.max(1) + 9 * spread
    )
    return float(
        _bisect(lambda size: ndtr((size - edges) / whole).mean(keepdims=True) > POWER, edges[-1:] + 9 * whole)[0]
    )


def _bisect(enough: Callable[[np.ndarray], np.ndarray], high: np.ndarray) -> np.ndarray:
    """The least values, from 0 to `high`, that are enough."""
    low = np.zeros_like(high)
    for _ in range(30):
        middle = (low + high) / 2
        right = enough(middle)
        low, high = np.where(right, low, middle), np.where(right, middle, high)
    return high
