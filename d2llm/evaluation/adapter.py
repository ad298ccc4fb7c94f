"""The one way in which anything is evaluated by mteb: `SearchModel` wraps a scorer of pairs and searcher of passages.

A `PairScorer` is a trained student or a reference row (`rows/`). The adapter decides head,
argument order and both-order averaging by the task's type, keeps what it handed to mteb, and lets no NaN through.
It computes no metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from mteb.models.model_meta import ModelMeta, ScoringFunction

from d2llm.config.evaluation import SymmetricOrder
from d2llm.config.task_types import BY_MTEB_TYPE
from d2llm.run.errors import ArtifactError
from d2llm.search.ranking import by_id

# mteb's word for the side of a text.
_ROLES = {"query": "query", "document": "passage"}
_ORDER = ("query", "passage")

# Of every model in mteb's results; which one it is, the run's provenance says.
REVISION = "local"

# A query's passages, as their rows and scores, best first.
Hits = list[tuple[np.ndarray, np.ndarray]]


class PairScorer(Protocol):
    """What can be evaluated. Scores are logits or other unbounded numbers, higher is more similar."""

    # Word for the column `scorer`: iem, cosine, dot, cross_encoder, bm25, …
    kind: str
    # Which passages retrieval looks at: "all", or a description of the candidates.
    candidates: str
    # Whether anybody trained it. Equal scores throughout are then a failure; BM25 may well find no common word.
    trained: bool

    def begin(self, task: Any) -> None:
        """Told which task comes, as mteb describes it, whenever texts of it do."""

    def vectors(self, texts: Sequence[str], role: str, mode: str) -> np.ndarray:
        """(n, d) float array: embeddings, or anything finite for a scorer that has none (mteb asks for them)."""

    def score_pairs(self, pairs: Sequence[tuple[str, str]], mode: str) -> np.ndarray:
        """(n,) scores of (query, passage) pairs, in that order."""

    def search(self, queries: Sequence[str], passages: Sequence[str], depth: int, ties: np.ndarray) -> Hits:
        """For every query: indices of passages and their scores, best first, at most `depth`. Asymmetric head.

        Of passages with equal scores the one with the smaller of `ties` (m,) is first, and is kept where `depth` parts
        them (`d2llm.search.ranking`).
        """

    def forget(self) -> None:
        """Drops what is remembered of the last task."""


class SearchModel:
    """A `PairScorer` as mteb sees it: encoder and searcher with a similarity of its own.

    Pair classification and STS use the symmetric head on (query, passage), in this order, or the mean of both
    orders where the configuration says so; retrieval uses the asymmetric head on (query, passage), as deep as mteb
    asks. `predictions` is what mteb was last given: (n,) float64 in row order, or {query id: {document id: score}},
    best first.

    Raises (while evaluating):
        ArtifactError: the scorer gives NaN or infinity; names method and task.
    """

    def __init__(self, name: str, scorer: PairScorer, orders: SymmetricOrder | None = None) -> None:
        self.name = name
        self.scorer = scorer
        self.orders = orders or SymmetricOrder()
        self.predictions: Any = None
        self._sides: list[tuple[list[str], np.ndarray]] = []
        self._order = "as_given"
        self._task = ""
        self._corpus: tuple[list[str], list[str]] | None = None
        self.mteb_model_meta = ModelMeta(
            loader=None,
            name=f"d2llm/{name.replace('/', '-')}",
            revision=REVISION,
            release_date=None,
            languages=None,
            n_parameters=None,
            memory_usage_mb=None,
            max_tokens=None,
            embed_dim=None,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=[],
            similarity_fn_name=ScoringFunction.CUSTOM,
            use_instructions=None,
            training_datasets=None,
        )

    def encode(
        self, inputs: Iterable[Any], *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any
    ) -> np.ndarray:
        """(n, d) vectors of a loader's texts. On a symmetric task queries come in the first call, passages in the
        second.
        """
        mode = self._begin(task_metadata)
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type is not None:
            role = _ROLES[str(getattr(prompt_type, "value", prompt_type))]
        else:
            role = _ORDER[len(self._sides) % 2]
        vectors = self._require_finite(self.scorer.vectors(texts, role, mode), "embeddings")
        if mode == "symmetric":
            self._order = self.orders.of(BY_MTEB_TYPE[task_metadata.type].name)
            self._sides = [*self._sides[-1:], (texts, vectors)]
        return vectors

    def similarity_pairwise(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """(n,) float64 scores of the pairs last encoded, by the symmetric head."""
        if len(self._sides) != 2 or embeddings1 is not self._sides[0][1] or embeddings2 is not self._sides[1][1]:
            raise RuntimeError("similarity_pairwise scores the two sides that were encoded last, and was given others")
        pairs = list(zip(self._sides[0][0], self._sides[1][0], strict=True))
        self._sides = []
        self.predictions = self.score(pairs)
        return self.predictions

    def score(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """(n,) float64 scores of pairs, in the order, or orders, of the task begun last."""
        scores = self._require_finite(
            np.asarray(self.scorer.score_pairs(pairs, "symmetric"), dtype=np.float64), "scores"
        )
        if self._order == "average":
            turned = [(second, first) for first, second in pairs]
            other = np.asarray(self.scorer.score_pairs(turned, "symmetric"), dtype=np.float64)
            scores = (scores + self._require_finite(other, "scores")) / 2
        return scores

    def similarity(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
        """Not used: mteb asks `index` and `search` instead, which see texts and keep the head explicit."""
        raise NotImplementedError("retrieval goes through index and search")

    def index(self, corpus: Any, *, task_metadata: Any, **kwargs: Any) -> None:
        """Remembers the corpus (columns id, text and optionally title)."""
        if self._begin(task_metadata) != "asymmetric":
            raise RuntimeError(f"{task_metadata.name} is {task_metadata.type}: it cannot be searched")
        titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
        texts = [f"{title or ''} {text}".strip() for title, text in zip(titles, corpus["text"], strict=True)]
        self._corpus = (list(corpus["id"]), texts)

    def search(
        self, queries: Any, *, task_metadata: Any, top_k: int, top_ranked: Any = None, **kwargs: Any
    ) -> dict[str, dict[str, float]]:
        """{query id: {document id: score}} of the best documents, by the asymmetric head; equal scores by id,
        descending, as mteb ranks them.
        """
        if top_ranked is not None:
            raise NotImplementedError("re-ranking tasks are not part of the suite")
        if self._corpus is None:
            raise RuntimeError("search looks through the corpus indexed last, and none was since the last search")
        ids, texts = self._corpus
        self._corpus = None
        ties = by_id(ids)
        hits = self.scorer.search(list(queries["text"]), texts, top_k, ties)
        self._require_finite(np.concatenate([scores for _, scores in hits]), "scores")
        # trec_eval, inside mteb, compares float32: all metrics shall see the same ties.
        names = np.array(ids, dtype=object)
        self.predictions = {}
        for query, (rows, scores) in zip(queries["id"], hits, strict=True):
            rounded = scores.astype(np.float32)
            order = np.lexsort((ties[rows], -rounded))
            self.predictions[query] = dict(zip(names[rows[order]].tolist(), rounded[order].tolist(), strict=True))
        return self.predictions

    def _begin(self, task_metadata: Any) -> str:
        """The mode of a task, which the scorer is told of."""
        mode = _mode_of(task_metadata)
        self._task = task_metadata.name
        self.scorer.begin(task_metadata)
        return mode

    def _require_finite(self, array: np.ndarray, what: str) -> np.ndarray:
        wrong = ~np.isfinite(array)
        if wrong.any():
            raise ArtifactError(
                f"{self.name} on task {self._task}: {int(wrong.sum())} of {array.size} {what} are not finite (NaN or "
                "infinity); its training has diverged: train it again with a lower learning rate or clipped gradients"
            )
        return array


def _mode_of(task_metadata: Any) -> str:
    try:
        return BY_MTEB_TYPE[task_metadata.type].mode
    except KeyError:
        raise NotImplementedError(
            f"{task_metadata.name}: tasks of type {task_metadata.type} are not evaluated; known: "
            f"{', '.join(BY_MTEB_TYPE)}"
        ) from None
