"""What a training step is made of, as types: texts, the teacher's targets, embeddings. What computes with them is
elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from d2llm.config.recipes import Mode


@dataclass(frozen=True)
class TextIds:
    """Numbers of a batch's passages, one a normal form: positives (B,), negatives (B, K).

    right, row (R,): text `right[r]` is right for the query of row `row[r]`, or is the query itself.
    """

    positives: np.ndarray
    negatives: np.ndarray
    right: np.ndarray
    row: np.ndarray

    def narrowed(self, count: int) -> TextIds:
        """With the first `count` negatives of each query."""
        return replace(self, negatives=self.negatives[:, :count])

    def are_right(self, passages: np.ndarray) -> np.ndarray:
        """(B, …) booleans for numbers of passages (…): whether each is right for each query of the batch, or that query
        itself.
        """
        texts, place = np.unique(passages, return_inverse=True)
        at = np.searchsorted(texts, self.right)
        there = at < len(texts)
        there[there] = texts[at[there]] == self.right[there]
        table = np.zeros((len(self.positives), len(texts)), dtype=bool)
        table[self.row[there], at[there]] = True
        return table[:, place.reshape(passages.shape)]


@dataclass(frozen=True)
class TeacherTargets:
    """What the teacher said about a batch; logits are (yes, no), index 0 is yes.

    positive_logits (B, 2); negative_logits (B, K, 2); easy_logits (B, E, 2) of easy negatives, which are the positives
    at the batch positions easy_index (B, E), NaN where it was not asked; features (B, K+1, K+1), cosine matrix of the
    pair features over the positive (index 0) and the K negatives, NaN likewise.
    """

    positive_logits: Tensor
    negative_logits: Tensor
    easy_logits: Tensor
    easy_index: Tensor
    features: Tensor

    def to(self, device: torch.device) -> TeacherTargets:
        """The same on another device."""
        return TeacherTargets(**{part.name: getattr(self, part.name).to(device) for part in fields(self)})


@dataclass(frozen=True)
class Batch:
    """One step's texts, of one dataset and mode: B queries, their positives and K hard negatives each.

    Rows with fewer than K negatives are filled up with any text and marked False in `negative_mask` (B, K), a boolean
    tensor, or None when every row is full. `labelled` (B,) is False where a positive is no known one, so that the
    teacher alone tells of a query; None: all are known. `text_ids` numbers the passages and tells which are right for
    which query, with all that the training set marks; without them (a batch made by hand) only the batch's own rows
    tell (`contrast.text_ids`).
    """

    dataset: str
    mode: Mode
    queries: list[str]
    positives: list[str]
    negatives: list[list[str]]
    teacher: TeacherTargets | None = None
    negative_mask: Tensor | None = None
    text_ids: TextIds | None = None
    labelled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def negative_count(self) -> int:
        """K, hard negatives of each query."""
        return len(self.negatives[0]) if self.negatives else 0

    def narrowed(self, count: int | None) -> Batch:
        """The batch with the first `count` hard negatives of each query (`Recipe.hard_negatives`); all of them for
        None.
        """
        if count is None or count >= self.negative_count:
            return self
        teacher, mask = self.teacher, self.negative_mask
        if teacher is not None:
            teacher = replace(
                teacher,
                negative_logits=teacher.negative_logits[:, :count],
                features=teacher.features[:, : 1 + count, : 1 + count],
            )
        return replace(
            self,
            negatives=[row[:count] for row in self.negatives],
            teacher=teacher,
            negative_mask=None if mask is None else mask[:, :count],
            text_ids=None if self.text_ids is None else self.text_ids.narrowed(count),
        )


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a batch, in its order: q (B, d), p (B, d) of the positives, n (B, K, d) of the hard negatives."""

    q: Tensor
    p: Tensor
    n: Tensor
