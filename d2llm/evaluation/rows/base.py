"""What rows share: vectors of texts that are remembered, and what stands for them where there are none."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np


class Remembered:
    """Vectors of texts by side (any key), each text embedded once until `clear`: a pair task repeats its premises, and
    both orders need the same texts twice.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[dict[str, int], np.ndarray]] = {}

    def of(self, side: Hashable, texts: Sequence[str], embed: Callable[[list[str]], np.ndarray]) -> np.ndarray:
        """(n, d) vectors; `embed` is given those texts that are new."""
        place, table = self._known.get(side, (dict[str, int](), None))
        new = [text for text in dict.fromkeys(texts) if text not in place]
        if new or table is None:
            fresh = embed(new)
            table = fresh if table is None else np.concatenate([table, fresh])
            place |= zip(new, range(len(place), len(place) + len(new)), strict=True)
            self._known[side] = place, table
        return table[np.fromiter(map(place.__getitem__, texts), np.int64, len(texts))]

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()


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
