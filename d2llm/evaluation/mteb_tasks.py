"""mteb's task classes over a checked local `Task`: nothing is downloaded, mteb's own evaluators compute the metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskPairClassification, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from d2llm.evaluation.tasks import Task


def mteb_task(task: Task) -> LocalTask:
    """The mteb task that evaluates `task`; its only split is its `split`."""
    classes: dict[str, Callable[[Task], LocalTask]] = {
        "pair_classification": _Pairs,
        "sts": _STS,
        "retrieval": _Retrieval,
    }
    return classes[task.type](task)


class _Local(ABC):
    """What the three classes share: metadata and data come from a `Task` given to the constructor."""

    mteb_type: Literal["PairClassification", "STS", "Retrieval"]
    main: str
    # Of mteb's classes; they differ in what a data set is.
    data_loaded: bool
    dataset: Any

    def __init__(self, task: Task, **kwargs: Any) -> None:
        self.task = task
        # One of mteb's own sets goes by mteb's names, so that mteb's tools take its results for what they are.
        known = task.mteb or {}
        self.split = known.get("split", task.split)
        self.metadata = TaskMetadata(
            name=known.get("name", task.name),
            description=task.description,
            type=self.mteb_type,
            category="t2t",
            main_score=known.get("main_score", self.main),
            eval_langs=[task.language],
            eval_splits=[self.split],
            dataset={
                "path": known.get("repo", f"local/{task.name}"),
                "revision": known.get("revision", task.revision),
            },
        )
        super().__init__(**kwargs)

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        if not self.data_loaded:
            self.dataset = self._data()
            self.data_loaded = True

    @abstractmethod
    def _data(self) -> Any:
        """The data set in the form of its class in mteb."""


class _Pairs(_Local, AbsTaskPairClassification):
    mteb_type = "PairClassification"
    main = "similarity_ap"

    def _data(self) -> DatasetDict:
        pairs = self.task.paired()
        columns = {name: pairs[name].tolist() for name in ("sentence1", "sentence2")}
        return DatasetDict({self.split: Dataset.from_dict(columns | {"labels": pairs["label"].tolist()})})


class _STS(_Local, AbsTaskSTS):
    mteb_type = "STS"
    main = "spearman"

    def __init__(self, task: Task, **kwargs: Any) -> None:
        super().__init__(task, **kwargs)
        # Declared as int by mteb, which computes with them as with any number.
        self.min_score = task.min_score  # type: ignore[assignment]
        self.max_score = task.max_score  # type: ignore[assignment]

    def _data(self) -> DatasetDict:
        pairs = self.task.paired()
        columns = {name: pairs[name].tolist() for name in ("sentence1", "sentence2", "score")}
        return DatasetDict({self.split: Dataset.from_dict(columns)})


class _Retrieval(_Local, AbsTaskRetrieval):
    mteb_type = "Retrieval"
    main = "ndcg_at_10"
    # mteb wants 1 among them; its default goes to 1000, ten times what the suite keeps.
    k_values = (1, 3, 5, 10, 20, 100)

    def _data(self) -> dict[str, Any]:
        corpus, queries, qrels = self.task.searched()
        relevant: dict[str, dict[str, int]] = {}
        for row in qrels.itertuples():
            relevant.setdefault(row.query_id, {})[row.doc_id] = int(row.relevance)
        split = {
            "corpus": Dataset.from_dict(
                {"id": corpus["id"].tolist(), "title": [""] * len(corpus), "text": corpus["text"].tolist()}
            ),
            "queries": Dataset.from_dict({name: queries[name].tolist() for name in ("id", "text")}),
            "relevant_docs": relevant,
            "top_ranked": None,
        }
        return {"default": {self.split: split}}


LocalTask = _Pairs | _STS | _Retrieval
