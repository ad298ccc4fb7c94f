"""Texts as numbers, so that a training step can tell which passages of its batch are right for a query without
comparing texts.

Texts are compared once, by their normal form, when the training pairs are loaded (or a batch is made by hand). What is
hidden by them is in `contrast`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from d2llm.models.batch import TextIds
from d2llm.models.normal_form import normal_form, right_forms


class PairTextIds:
    """Numbers of all texts of training pairs, rows of one or several sets: negatives (n, K), the others one a row.

    `marked`: the texts that a row's set marks as right for its query, the row's positive or not.
    """

    def __init__(
        self,
        datasets: Sequence[str],
        queries: Sequence[str],
        positives: Sequence[str],
        negatives: Sequence[Sequence[str]],
        marked: Sequence[Iterable[str]],
    ) -> None:
        numbers: dict[str, int] = {}  # by normal form

        def number(form: str) -> int:
            return numbers.setdefault(form, len(numbers))

        # A text stands in many rows: its normal form is made once.
        known = dict.fromkeys([*positives, *(text for row in negatives for text in row)], 0)
        for text in known:
            known[text] = number(normal_form(text))
        self.positives = np.array([known[text] for text in positives], dtype=np.int32)
        self.negatives = np.array([[known[text] for text in row] for row in negatives], dtype=np.int32)
        self.right: list[np.ndarray] = [np.empty(0, dtype=np.int32)] * len(queries)
        for name in dict.fromkeys(datasets):
            rows = [row for row, owner in enumerate(datasets) if owner == name]
            right = right_forms((queries[row], positives[row], marked[row]) for row in rows)
            ids = {query: np.array(sorted(map(number, forms)), dtype=np.int32) for query, forms in right.items()}
            for row in rows:
                self.right[row] = ids[normal_form(queries[row])]

    def of(self, rows: Sequence[int] | np.ndarray) -> TextIds:
        """The numbers of a batch of these rows."""
        right = [self.right[row] for row in rows]
        return TextIds(
            self.positives[rows],
            self.negatives[rows],
            np.concatenate(right),
            np.repeat(np.arange(len(rows)), [len(texts) for texts in right]),
        )
