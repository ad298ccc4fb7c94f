"""Which of equal scores ranks first: one rule for all that ranks, that of trec_eval and mteb. What is scored, and how,
is others' to say.

Higher scores come first, compared as float32. Of equal ones the passage with the smaller tie number does: `by_id` gives
numbers by which ids descend; without any, passages keep the order they stand in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def by_id(ids: Sequence[str]) -> np.ndarray:
    """(m,) tie numbers of passages: the place of each id among all, in descending order.

    >>> by_id(["7", "10", "9"]).tolist()
    [1, 2, 0]
    """
    ties = np.empty(len(ids), dtype=np.int64)
    ties[sorted(range(len(ids)), key=ids.__getitem__, reverse=True)] = np.arange(len(ids))
    return ties


class AsGiven:
    """Tie numbers of rows that keep the order they stand in."""

    def __getitem__(self, rows: Tensor) -> Tensor:
        return rows


def best(scores: Tensor, rows: Tensor, ties: Tensor | AsGiven, depth: int) -> tuple[Tensor, Tensor]:
    """The `depth` best of each query, best first: scores (n, depth) and the rows they are of.

    scores, rows (n, m): row `rows[i, j]` has `scores[i, j]` for query i; ties: the tie number of every row.
    """
    return ranked(*kept(scores, rows, ties, depth), ties)


def kept(scores: Tensor, rows: Tensor, ties: Tensor | AsGiven, depth: int) -> tuple[Tensor, Tensor]:
    """The same, equal scores in any order: which of them are among the best is decided, which stands first is not."""
    depth = min(depth, scores.shape[1])
    # One more than is asked for tells whether the last place is tied: a full sort would cost more than the scores.
    top, columns = scores.topk(min(depth + 1, scores.shape[1]), dim=1)
    last, columns = top[:, depth - 1 : depth], columns[:, :depth]
    torn = (top[:, depth:] == last).any(1)
    if torn.any():
        some, last = scores[torn], last[torn]
        tied = torch.where(some == last, ties[rows[torn]], torch.iinfo(torch.int64).max)
        columns[torn] = torch.where(some > last, -1, tied).topk(depth, dim=1, largest=False).indices
    return scores.gather(1, columns), rows.gather(1, columns)


def ranked(scores: Tensor, rows: Tensor, ties: Tensor | AsGiven) -> tuple[Tensor, Tensor]:
    """Scores and rows (n, m), best first."""
    order = ties[rows].argsort(dim=1)
    scores, again = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
    return scores, rows.gather(1, order.gather(1, again))
