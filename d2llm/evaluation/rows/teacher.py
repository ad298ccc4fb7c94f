"""The teacher as a reference row, the upper bound: a cross-encoder that reads both texts of a pair at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from d2llm.config.evaluation import Bm25Settings, TeacherCandidates
from d2llm.data.negatives.bm25 import Bm25
from d2llm.evaluation.rows.base import TextOnly, grouped
from d2llm.run.paths import Paths
from d2llm.teacher.parts import logits_of

if TYPE_CHECKING:
    from d2llm.config.schema import Config, Run
    from d2llm.evaluation.adapter import Hits
    from d2llm.run.checkpoint import Resume

TITLE = "Teacher (cross-encoder)"
# Colour, mark in plots by row, mark in the plane.
LOOK = ("#000000", "|", "p")
NEEDS = ("teacher", "encoder")

# (queries, passages, depth, ties) → for every query the indices of its nearest passages, best first.
DenseRanks = Callable[[Sequence[str], Sequence[str], int, np.ndarray], Sequence[np.ndarray]]


def load(config: Config, run: Run) -> TeacherReference:
    """The main teacher, over candidates of BM25 and of the pipeline's encoder."""
    from d2llm.data.negatives.encoder import dense_ranks
    from d2llm.teacher.load import load as load_teacher

    return TeacherReference(
        load_teacher(Paths.of(config).teacher_model, config.teacher),
        config.evaluation.teacher_candidates,
        config.evaluation.bm25,
        lambda queries, passages, depth, ties: dense_ranks(config, list(queries), list(passages), depth, ties=ties),
    )


class TeacherReference(TextOnly):
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
        # Set by the stage: where it keeps what it has scored.
        self.resume: Resume | None = None

    def score_pairs(self, pairs: Sequence[tuple[str, str]], mode: str) -> np.ndarray:
        groups = grouped(pairs)
        group_scores = self._score_groups(
            [(query, [pairs[row][1] for row in rows]) for query, rows in groups.items()], mode
        )
        scores = np.empty(len(pairs))
        for rows, values in zip(groups.values(), group_scores, strict=True):
            scores[rows] = values
        return scores

    def search(self, queries: Sequence[str], passages: Sequence[str], depth: int, ties: np.ndarray) -> Hits:
        index = Bm25(passages, self.bm25.tokens, self.bm25.k1, self.bm25.b)
        ranked = [[index.top(query, self.depths.bm25, ties)[0]] for query in queries]
        if self.depths.dense:
            nearest = self.dense_ranks(queries, passages, self.depths.dense, ties)
            for ranks, dense in zip(ranked, nearest, strict=True):
                ranks.append(np.asarray(dense)[: self.depths.dense])
        rows = [np.unique(np.concatenate(ranks)).astype(np.int64) for ranks in ranked]
        texts = [[passages[row] for row in candidates] for candidates in rows]
        # Each text once: in two places of a batch, rounding could tell equal passages apart.
        groups = [(query, list(dict.fromkeys(candidates))) for query, candidates in zip(queries, texts, strict=True)]
        hits: Hits = []
        for (_, distinct), candidates, row_texts, values in zip(
            groups, rows, texts, self._score_groups(groups, "asymmetric"), strict=True
        ):
            score_of = dict(zip(distinct, values, strict=True))
            scores = np.array([score_of[text] for text in row_texts])
            best = np.lexsort((ties[candidates], -scores))[:depth]
            hits.append((candidates[best], scores[best]))
        return hits

    def _score_groups(self, groups: list[tuple[str, list[str]]], mode: str) -> list[np.ndarray]:
        # All at once: the teacher sorts texts of like length together and shows its own progress.
        if self.resume is None:
            logits = self.teacher.score(groups, mode)
        else:
            logits = logits_of(self.teacher, groups, mode, self.resume)
        return [np.asarray(pair[:, 0] - pair[:, 1], dtype=np.float32) for pair in logits]
