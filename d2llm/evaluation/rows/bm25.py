"""BM25 as a reference row, the lower bound: what the words of two texts tell without any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from d2llm.config.evaluation import Bm25Settings
from d2llm.data.negatives.bm25 import Bm25
from d2llm.evaluation.rows.base import TextOnly, grouped

if TYPE_CHECKING:
    from d2llm.config.schema import Config, Run
    from d2llm.evaluation.adapter import Hits

TITLE = "BM25"
# Colour, mark in plots by row, mark in the plane.
LOOK = ("#7F7F7F", "|", "8")


def load(config: Config, run: Run) -> Bm25Reference:
    """BM25 with the settings of the config."""
    return Bm25Reference(config.evaluation.bm25)


class Bm25Reference(TextOnly):
    """BM25(query = first text, document = second text); of a pair task the distinct second texts are the corpus."""

    kind = "bm25"
    candidates = "all"
    trained = False

    def __init__(self, settings: Bm25Settings | None = None) -> None:
        super().__init__()
        self.settings = settings or Bm25Settings()

    def score_pairs(self, pairs: Sequence[tuple[str, str]], mode: str) -> np.ndarray:
        documents = list(dict.fromkeys(second for _, second in pairs))
        place = {text: row for row, text in enumerate(documents)}
        index = self._build_index(documents)
        scores = np.empty(len(pairs))
        for query, rows in grouped(pairs).items():
            every = index.scores(query)
            for row in rows:
                scores[row] = every[place[pairs[row][1]]]
        return scores

    def search(self, queries: Sequence[str], passages: Sequence[str], depth: int, ties: np.ndarray) -> Hits:
        index = self._build_index(passages)
        return [index.top(query, depth, ties) for query in queries]

    def _build_index(self, documents: Sequence[str]) -> Bm25:
        return Bm25(documents, self.settings.tokens, self.settings.k1, self.settings.b)
