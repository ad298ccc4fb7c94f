"""Paired bootstrap of ranking metrics, the luck of seeds, and the correction for many comparisons. Pure functions.

A resample of n examples is n counts (how often each was drawn), and a metric of the resample is a weighted metric of
the examples. So each metric here takes counts (r, n), a row a resample, and gives (r,) values, exactly those of the
resampled examples written out. What is compared and reported is decided in `d2llm.analysis.comparison`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A difference, its confidence interval (percentile) and its two-sided bootstrap p-value."""

    difference: float
    low: float
    high: float
    p: float


def resamples(rng: np.random.Generator, clusters: np.ndarray, count: int) -> np.ndarray:
    """(count, n) int32: how often each example is drawn, whole clusters at a time, as many clusters as there are.

    clusters (n,): cluster number of each example, from 0. Examples that share a text are not independent; drawn one by
    one they would make intervals too narrow.
    """
    size = int(clusters.max()) + 1
    return rng.multinomial(size, np.full(size, 1.0 / size), size=count).astype(np.int32)[:, clusters]


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


def average_precision(score: np.ndarray, label: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(r,) average precision, Σ (recall step · precision) from the highest score down; equal scores are one step.

    score (n,), label (n,) of 0 and 1, counts (r, n). A resample without a positive has value 0, as in scikit-learn.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    drawn = counts[:, order].astype(np.float64)
    right = (drawn * label[order]).cumsum(1)[:, ends]
    total = drawn.cumsum(1)[:, ends]
    steps = np.diff(right, axis=1, prepend=0.0)
    precision = np.divide(right, total, out=np.zeros_like(right), where=total > 0)
    positives = right[:, -1]
    return np.divide((steps * precision).sum(1), positives, out=np.zeros_like(positives), where=positives > 0)


def spearman(score: np.ndarray, target: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(r,) Pearson correlation of mid-ranks; NaN where a side of a resample is constant. score, target (n,), counts (r,
    n).
    """
    left, right = midranks(score, counts), midranks(target, counts)
    # Both have the same mean, (size + 1)/2.
    middle = (counts.sum(1, keepdims=True) + 1) / 2
    left -= middle
    right -= middle
    weighted = counts * left
    product = np.einsum("rn,rn->r", weighted, right)
    left_square = np.einsum("rn,rn->r", weighted, left)
    right_square = np.einsum("rn,rn,rn->r", counts, right, right)
    scale = np.sqrt(left_square * right_square)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, product / scale, np.nan)


def midranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(r, n): each example's mid-rank among those drawn (meaningless where it was not drawn itself)."""
    order = np.argsort(values, kind="stable")
    group = np.append(0, np.cumsum(np.diff(values[order]) != 0))
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    inside = np.add.reduceat(counts[:, order].astype(np.float64), starts, axis=1)
    rank = inside.cumsum(1) - inside + (inside + 1) / 2
    out = np.empty(counts.shape)
    out[:, order] = rank[:, group]
    return out


def mean(value: np.ndarray, target: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
    """(r,) mean of per-example values (n,), such as reciprocal ranks of queries; `target` is not used."""
    return counts @ value / counts.sum(1)


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
    """p-values corrected for their number (Holm 1979): step down, and never below one that is smaller."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * (len(values) - np.arange(len(values)))
    out = np.empty(len(values))
    out[order] = np.minimum(1.0, np.maximum.accumulate(stepped)) if len(values) else stepped
    return out
