"""BM25 over Chinese (or other) text: words by jieba or single characters, scores by bm25s.

Serves negatives, the teacher's candidates and the reference row; each chooses its own documents and ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np

from d2llm.run.home import own


def tokens(text: str, kind: Literal["words", "characters"]) -> list[str]:
    """The lower-case words (jieba) or characters of `text`, without white space and punctuation."""
    text = text.lower()
    if kind == "characters":
        return [character for character in text if character.isalnum()]
    return [word for word in _load_jieba().cut(text) if any(character.isalnum() for character in word)]


@cache
def _load_jieba() -> Any:
    """The package, with a cache of its dictionary by its version: its own, /tmp/jieba.cache, may be of any version and
    of anybody.
    """
    import jieba

    jieba.setLogLevel(logging.WARNING)
    jieba.dt.tmp_dir = str(own(f"jieba-{jieba.__version__}"))
    return jieba


class Bm25:
    """An index of documents. Score of (query, document), Lucene's form:

    sum over query words w of ln(1 + (N − n_w + ½)/(n_w + ½)) · f/(f + k1·(1 − b + b·|d|/mean|d|)),
    N documents, n_w of them with w, f the count of w in document d of |d| words.
    """

    def __init__(
        self,
        documents: Sequence[str],
        kind: Literal["words", "characters"] = "words",
        k1: float = 1.5,
        b: float = 0.75,
    ) -> None:
        import bm25s

        self.kind = kind
        # Ids in order of first occurrence: bm25s itself numbers words by a set, whose order changes between processes.
        self._ids: dict[str, int] = {}
        ids = [[self._ids.setdefault(word, len(self._ids)) for word in tokens(text, kind)] for text in documents]
        self._size = len(documents)
        self._index = None
        if self._ids:
            self._index = bm25s.BM25(method="lucene", k1=k1, b=b)
            self._index.index((ids, dict(self._ids)), create_empty_token=False, show_progress=False)

    def scores(self, query: str) -> np.ndarray:
        """(number of documents,) float32; a word the query repeats counts again, an unknown one not at all."""
        ids = [self._ids[word] for word in tokens(query, self.kind) if word in self._ids]
        if self._index is None or not ids:
            return np.zeros(self._size, dtype=np.float32)
        return np.asarray(self._index.get_scores_from_ids(ids), dtype=np.float32)

    def top(self, query: str, depth: int, ties: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Indices and scores of the `depth` best documents, best first; of equal scores the smaller of `ties` first
        (None: the order of the documents).
        """
        scores = self.scores(query)
        candidates = np.arange(len(scores))
        if 0 < depth < len(scores):  # sorting only what can be among them is ten times as fast
            candidates = np.flatnonzero(scores >= np.partition(scores, -depth)[-depth])
        order = np.lexsort((candidates if ties is None else ties[candidates], -scores[candidates]))
        best = candidates[order][:depth]
        return best, scores[best]
