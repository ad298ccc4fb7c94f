"""mteb's task classes over a checked local `Task`: nothing is downloaded, mteb's own evaluators compute the metrics.

A set of mteb's is measured by its own class, with every rule of that class (`ignore_identical_ids`, `k_values`, bounds,
column names …); any other by mteb's class of its type.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mteb
from datasets import Dataset, DatasetDict
from mteb import abstasks
from mteb.abstasks.task_metadata import TaskMetadata

from d2llm.config.task_types import TASK_TYPES
from d2llm.data.conditions import whole_relevance
from d2llm.evaluation.tasks import Task

# mteb wants 1 among them; its default goes on to 1000.
K_VALUES = (1, 3, 5, 10, 20, 100)


class Measured(NamedTuple):
    """A task of mteb's (an `AbsTask`, whose class decides its attributes) with its data loaded, and the split and
    subset that are evaluated.
    """

    task: Any
    split: str
    subset: str


def mteb_task(task: Task) -> Measured:
    """The mteb task that evaluates `task`."""
    if task.mteb is None:
        measured = Measured(_make_local_task(task), task.split, "default")
    else:
        subsets = [task.mteb.subset] if task.mteb.subset else None
        known = mteb.get_task(task.mteb.name, eval_splits=[task.mteb.split], hf_subsets=subsets)
        if not task.mteb.whole:  # mteb's name is of the whole set alone
            known.metadata = _describe(task, task.mteb.split, known.metadata)
        measured = Measured(known, task.mteb.split, task.mteb.subset or "default")
    measured.task.dataset = _make_dataset(measured, task)
    measured.task.data_loaded = True
    return measured


def _make_local_task(task: Task) -> Any:
    """mteb's class of a type, for a set that mteb does not know."""
    rules: dict[str, dict[str, Any]] = {
        "pair_classification": {},
        "sts": {"min_score": task.min_score, "max_score": task.max_score},
        "retrieval": {"k_values": K_VALUES, "ignore_identical_ids": task.ignore_identical_ids},
    }
    base = getattr(abstasks, TASK_TYPES[task.type].mteb_class)
    return type("Local", (base,), rules[task.type] | {"metadata": _describe(task, task.split)})()


def _describe(task: Task, split: str, known: TaskMetadata | None = None) -> TaskMetadata:
    """The metadata of a set under the name it has here; `known` is that of the set in mteb which it is part of."""
    identity = {"name": task.name, "dataset": {"path": f"local/{task.name}", "revision": task.revision}}
    if known is not None:
        return known.model_copy(update=identity)
    return TaskMetadata.model_validate(
        identity
        | {
            "description": task.description,
            "type": TASK_TYPES[task.type].mteb_type,
            "category": "t2t",
            "main_score": TASK_TYPES[task.type].mteb_main,
            "eval_langs": [task.language],
            "eval_splits": [split],
        }
    )


def _make_dataset(measured: Measured, task: Task) -> Any:
    """The data in the form and under the column names that the class expects."""
    split, subset = measured.split, measured.subset
    if task.type == "retrieval":
        return {subset: {split: _make_retrieval_split(task)}}
    pairs, evaluated = task.paired(), measured.task
    if task.type == "sts":
        names = (*evaluated.column_names, "score")
    else:
        names = (evaluated.input1_column_name, evaluated.input2_column_name, evaluated.label_column_name)
    columns = ("query", "passage", task.target)
    rows = Dataset.from_dict({name: pairs[column].tolist() for name, column in zip(names, columns, strict=True)})
    data = DatasetDict({split: rows})
    return {subset: data} if evaluated.metadata.is_multilingual else data


def _make_retrieval_split(task: Task) -> dict[str, Any]:
    corpus, queries, qrels = task.searched()
    relevant: dict[str, dict[str, int]] = {}
    columns = (qrels["query_id"], qrels["doc_id"], whole_relevance(qrels["relevance"]))
    for query, doc, relevance in zip(*columns, strict=True):
        relevant.setdefault(query, {})[doc] = int(relevance)
    return {
        "corpus": Dataset.from_dict(
            {"id": corpus["id"].tolist(), "title": [""] * len(corpus), "text": corpus["text"].tolist()}
        ),
        "queries": Dataset.from_dict({name: queries[name].tolist() for name in ("id", "text")}),
        "relevant_docs": relevant,
        "top_ranked": None,
    }
