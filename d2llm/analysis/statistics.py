"""Ranking metrics of bootstrap resamples. Pure functions; what follows from the resamples is in `inference`.

A resample of n examples is n counts (how often each was drawn), and a metric of the resample is a weighted metric of
the examples. So each metric here takes scores (k, n), a row a training, and counts (n, r), a column a resample, and
gives (k, r) values, exactly those of the resampled examples written out. Sums run over the examples, one row of
counts at a time, so that numpy works on all resamples at once and holds little besides the counts.
"""

from __future__ import annotations

import numpy as np

# Counts that are computed at once: bounds the memory (a few arrays of 32 MB).
HELD = 2**22
FEWEST, MOST = 64, 4000


def block(n: int) -> int:
    """Resamples of n examples that are computed at once."""
    return max(FEWEST, min(MOST, HELD // n))


def resamples(rng: np.random.Generator, clusters: np.ndarray, count: int) -> np.ndarray:
    """(n, count): how often each example is drawn, whole clusters at a time, as many clusters as there are.

    clusters (n,): cluster number of each example, from 0. Examples that share a text are not independent; drawn one by
    one they would make intervals too narrow.
    """
    size = int(clusters.max()) + 1
    # Sums of counts are at most n times the largest cluster's size, and must not overflow.
    largest = len(clusters) * int(np.bincount(clusters).max())
    counts = np.empty((count, size), dtype=np.int16 if largest < 2**15 else np.int32)
    for row, drawn in enumerate(rng.integers(0, size, (count, size), dtype=np.int32)):
        counts[row] = np.bincount(drawn, minlength=size)
    return np.ascontiguousarray(counts.T)[clusters]


def average_precision(scores: np.ndarray, label: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(k, r) average precision, Σ (recall step · precision) from the highest score down; equal scores are one step.

    scores (k, n), label (n,) of 0 and 1, counts (n, r). A resample without a positive has value 0, as in scikit-learn.
    """
    positives = counts[label == 1].sum(0, dtype=np.float64)
    out = np.zeros((len(scores), counts.shape[1]))
    for row, score in enumerate(scores):
        total, right = np.zeros_like(counts[0]), np.zeros_like(counts[0])
        before = right.copy()
        order = np.argsort(-score, kind="stable")
        ends = np.append(np.diff(score[order]) != 0, True)
        for example, positive, last in zip(order, label[order] == 1, ends, strict=True):
            total += counts[example]
            if positive:
                right += counts[example]
            if last and (step := right - before).any():
                out[row] += step * (right / np.maximum(total, 1))
                before[:] = right
    return np.divide(out, positives, out=np.zeros_like(out), where=positives > 0)


def spearman(scores: np.ndarray, target: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(k, r) Pearson correlation of mid-ranks; NaN where a side of a resample is constant. scores (k, n), target (n,),
    counts (n, r).
    """
    size = counts.sum(0, dtype=np.float64)
    ranks, squares = _twice_midranks(target, counts)
    # The target's ranks about their mean, times how often each example is drawn; shared by all scores.
    weighted = counts * (ranks - (size + 1))
    whole = size**3 - size
    out = np.empty((len(scores), counts.shape[1]))
    for row, score in enumerate(scores):
        product, own = _product(score, counts, weighted)
        # Σ (rank − mean)² of ranks with ties is (N³ − N − Σ (m³ − m)) / 12; here of twice the ranks.
        scale = np.sqrt(np.maximum(whole - own, 0)) * np.sqrt(np.maximum(whole - squares, 0)) / 3
        out[row] = np.divide(product, scale, out=np.full_like(product, np.nan), where=scale > 0)
    return out


def _groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """The ascending order of values, where each group of equal ones starts in it, and whether all are distinct."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(values[order]) != 0))
    return order, starts, len(starts) == len(values)


def _twice_midranks(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, r) twice each example's mid-rank among those drawn, and (r,) Σ (m³ − m) over groups of m equal values."""
    order, starts, _ = _groups(values)
    ranks = np.empty(counts.shape)
    below, ties = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    for part in np.split(order, starts[1:]):
        inside = counts[part].sum(0, dtype=np.float64)
        ranks[part] = 2 * below + inside + 1
        ties += inside**3 - inside
        below += inside
    return ranks, ties


def _product(score: np.ndarray, counts: np.ndarray, weighted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(r,) Σ of twice the score's mid-rank times `weighted`, and Σ (m³ − m) over groups of m equal scores."""
    order, starts, distinct = _groups(score)
    product, below = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    if distinct:
        drawn = counts.astype(np.float64)
        for example in order:
            # Twice the mid-rank is 2·below + inside, and 1 that adds nothing, as `weighted` sums to zero.
            below += drawn[example]
            product += below * weighted[example]
            below += drawn[example]
        return product, np.einsum("nr,nr,nr->r", drawn, drawn, drawn) - drawn.sum(0)
    ties = np.zeros(counts.shape[1])
    for part in np.split(order, starts[1:]):
        inside = counts[part].sum(0, dtype=np.float64)
        product += (2 * below + inside) * weighted[part].sum(0)
        ties += inside**3 - inside
        below += inside
    return product, ties


def mean(values: np.ndarray, target: np.ndarray | None, counts: np.ndarray) -> np.ndarray:
    """(k, r) mean of per-example values (k, n), such as reciprocal ranks of queries; `target` is not used."""
    return values @ counts / counts.sum(0)
