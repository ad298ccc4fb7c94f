"""What reference rows share that have no vectors of texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class TextOnly:
    """mteb asks every model for vectors; these scorers have none, so each text gets its own harmless number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def begin(self, task: object) -> None:
        """One task is as another."""

    def vectors(self, texts: Sequence[str], role: str, mode: str) -> np.ndarray:
        """(n, 2): a running number of the text, and 1. mteb's cosine on them means nothing and is not read."""
        return np.array([[self._numbers.setdefault(text, len(self._numbers)), 1.0] for text in texts])

    def forget(self) -> None:
        self._numbers.clear()


def grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, list[int]]:
    """Rows of the pairs by their first text, in the order of first occurrence."""
    groups: dict[str, list[int]] = {}
    for row, (first, _) in enumerate(pairs):
        groups.setdefault(first, []).append(row)
    return groups
