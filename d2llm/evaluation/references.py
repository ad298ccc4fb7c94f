"""The rows that frame the methods: the teacher as a cross-encoder (within reach) and BM25 (what words alone give).

Both are `PairScorer`s and go through the same adapter, tasks and metrics as every student.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from d2llm.data.bm25 import Bm25
from d2llm.evaluation.settings import Bm25Settings, TeacherCandidates
from d2llm.paths import Paths

if TYPE_CHECKING:
    from d2llm.config import Config
    from d2llm.evaluation.adapter import Hits, PairScorer

# (queries, passages, depth, ties) → for every query the indices of its nearest passages, best first.
DenseRanks = Callable[[Sequence[str], Sequence[str], int, np.ndarray], Sequence[np.ndarray]]


class _TextOnly:
    """mteb asks every model for vectors; these scorers have none, so each text gets its own harmless number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def vectors(self, texts: Sequence[str], role: str, mode: str) -> np.ndarray:
        """(n, 2): a running number of the text, and 1. mteb's cosine on them means nothing and is not read."""
        return np.array([[self._numbers.setdefault(text, len(self._numbers)), 1.0] for text in texts])

    def forget(self) -> None:
        self._numbers.clear()


class Bm25Reference(_TextOnly):
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
        index = self._index(documents)
        scores = np.empty(len(pairs))
        for query, rows in _grouped(pairs).items():
            every = index.scores(query)
            for row in rows:
                scores[row] = every[place[pairs[row][1]]]
        return scores

    def search(self, queries: Sequence[str], passages: Sequence[str], depth: int, ties: np.ndarray) -> Hits:
        index = self._index(passages)
        return [index.top(query, depth, ties) for query in queries]

    def _index(self, documents: Sequence[str]) -> Bm25:
        return Bm25(documents, self.settings.tokens, self.settings.k1, self.settings.b)


class TeacherReference(_TextOnly):
    """The cross-encoder's yes logit minus its no logit.

    On retrieval it re-ranks, for each query, the union of the first `depths.bm25` of BM25 and the first `depths.dense`
    of a dense retriever; a passage outside them is not returned, which mteb counts as ranked below all that are.
    """

    kind = "cross_encoder"
    trained = True

    def __init__(self, teacher: Any, depths: TeacherCandidates, bm25: Bm25Settings, dense_ranks: DenseRanks) -> None:
        super().__init__()
        self.teacher = teacher
        self.depths = depths
        self.bm25 = bm25
        self.dense_ranks = dense_ranks
        self.candidates = str(depths)

    def score_pairs(self, pairs: Sequence[tuple[str, str]], mode: str) -> np.ndarray:
        groups = _grouped(pairs)
        found = self._score([(query, [pairs[row][1] for row in rows]) for query, rows in groups.items()], mode)
        scores = np.empty(len(pairs))
        for rows, values in zip(groups.values(), found, strict=True):
            scores[rows] = values
        return scores

    def search(self, queries: Sequence[str], passages: Sequence[str], depth: int, ties: np.ndarray) -> Hits:
        index = Bm25(passages, self.bm25.tokens, self.bm25.k1, self.bm25.b)
        ranked = [[index.top(query, self.depths.bm25, ties)[0]] for query in queries]
        if self.depths.dense:
            nearest = self.dense_ranks(queries, passages, self.depths.dense, ties)
            for ranks, more in zip(ranked, nearest, strict=True):
                ranks.append(np.asarray(more)[: self.depths.dense])
        rows = [np.unique(np.concatenate(ranks)).astype(np.int64) for ranks in ranked]
        texts = [[passages[row] for row in some] for some in rows]
        # Each text once: in two places of a batch, rounding could tell equal passages apart.
        groups = [(query, list(dict.fromkeys(some))) for query, some in zip(queries, texts, strict=True)]
        hits: Hits = []
        for (_, distinct), some, own, found in zip(groups, rows, texts, self._score(groups, "asymmetric"), strict=True):
            known = dict(zip(distinct, found, strict=True))
            scores = np.array([known[text] for text in own])
            best = np.lexsort((ties[some], -scores))[:depth]
            hits.append((some[best], scores[best]))
        return hits

    def _score(self, groups: list[tuple[str, list[str]]], mode: str) -> list[np.ndarray]:
        # All at once: the teacher sorts texts of like length together and shows its own progress.
        return [np.asarray(pair[:, 0] - pair[:, 1], dtype=np.float32) for pair in self.teacher.score(groups, mode)]


def _grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, list[int]]:
    """Rows of the pairs by their first text, in the order of first occurrence."""
    groups: dict[str, list[int]] = {}
    for row, (first, _) in enumerate(pairs):
        groups.setdefault(first, []).append(row)
    return groups


def _bm25(config: Config) -> PairScorer:
    return Bm25Reference(config.evaluation.bm25)


def _teacher(config: Config) -> PairScorer:
    from d2llm.data.negatives import dense_ranks
    from d2llm.teacher import Teacher

    return TeacherReference(
        Teacher.load(Paths.of(config).teacher_model, config.teacher),
        config.evaluation.teacher_candidates,
        config.evaluation.bm25,
        lambda queries, passages, depth, ties: dense_ranks(config, list(queries), list(passages), depth, ties=ties),
    )


# A new reference row is one entry here and its name in the configuration's `references`.
REFERENCES: dict[str, Callable[[Config], PairScorer]] = {"teacher": _teacher, "bm25": _bm25}
