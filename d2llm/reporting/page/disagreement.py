"""Stage `examples`: the test examples on which the trained methods disagree most, with their texts, for a reader to
look at.

Chooses and copies; scoring is left to the evaluation, laying out to the page. An example's *standing* with a method is
a number from 0 to 1 that does not depend on the scale of its scores: of a pair the share of the task's other pairs
scored lower (ties count half), of a query its reciprocal rank, 0 beyond the tenth (so that their mean is MRR@10).
Disagreement is the highest standing minus the lowest, of means over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d2llm.evaluation import tasks
from d2llm.evaluation.predictions import read_predictions
from d2llm.run.artifacts import MEND, write_json
from d2llm.run.errors import ArtifactError
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths
from d2llm.run.schemas import PREDICTIONS

if TYPE_CHECKING:
    from d2llm.config.schema import Config
    from d2llm.evaluation.tasks import Task

# Examples kept of a task, and characters kept of a text: they bound the file, and the page that shows it.
KEPT = 40
CHARACTERS = 300
# Ranks beyond it count as not found, as in MRR@10.
DEPTH = 10
_COLUMNS = {
    name: PREDICTIONS[name]
    for name in ("method", "seed", "query_id", "doc_id", "cluster", "score", "label", "phenomenon")
}


def run(config: Config) -> None:
    """Write `examples.json`. Raises ArtifactError where predictions are missing or of texts the tasks do not have."""
    paths = Paths.of(config)
    shown = []
    for name in tasks.names(paths.tasks, config.evaluation.tasks):
        task = tasks.read(paths.task(name), config.evaluation.split)
        where = {"variant": "base", "task": name, "method": [*config.rows(), *config.methods]}
        predictions = read_predictions(paths.predictions, _COLUMNS, where)
        shown.append(examples(task, predictions, list(config.methods)))
    write_json(paths.examples, {"kept": KEPT, "characters": CHARACTERS, "tasks": shown})
    get_logger(__name__).info("%d examples of %d tasks", sum(len(task["examples"]) for task in shown), len(shown))


def examples(task: Task, predictions: pd.DataFrame, methods: Sequence[str]) -> dict[str, Any]:
    """A task's `KEPT` most disagreeing examples, most first, one of each cluster (examples that share a text).

    `methods` are the trained ones, which are judged; others in `predictions` are reported beside them. Each example has
    its texts, its label, its phenomenon, `spread` (the disagreement), and by method `standing` and either `score`
    (pairs, mean over seeds) or `ranks` (queries: of the first right passage, a number a seed, null where it is not
    among the passages kept).
    """
    retrieval = task.type == "retrieval"
    each = queries(predictions) if retrieval else pairs(predictions)
    mean = each.groupby(["query_id", "method"], sort=True)["standing"].mean().unstack("method")
    judged = mean[[name for name in methods if name in mean]]
    details = predictions.drop_duplicates("query_id").set_index("query_id")[["cluster", "phenomenon"]]
    order = pd.DataFrame({"spread": (judged.max(axis=1) - judged.min(axis=1)).round(6)}).join(details).reset_index()
    order = order.sort_values(["spread", "query_id"], ascending=[False, True], kind="stable")
    chosen = order[order["spread"] > 0].drop_duplicates("cluster").head(KEPT)
    texts = TextsOf(task)
    of_chosen = each[each["query_id"].isin(set(chosen["query_id"]))]
    rows = dict(iter(of_chosen.groupby(["query_id", "method"], sort=False)))
    first = predictions[predictions["query_id"].isin(set(chosen["query_id"]))]
    if retrieval:
        first = first[first["seed"] == first.groupby("method")["seed"].transform("min")]
    entries = []
    for row in chosen.itertuples():
        by_method = {}
        for name in mean.columns:
            part = rows.get((row.query_id, name))
            if part is None:
                continue
            detail = (
                {"ranks": [None if np.isnan(rank) else int(rank) for rank in part["rank"]]}
                if retrieval
                else {"score": round(float(part["score"].mean()), 6)}
            )
            by_method[name] = {"standing": round(float(part["standing"].mean()), 6), **detail}
        shown = {"id": row.query_id, "phenomenon": row.phenomenon, "spread": row.spread, **texts.of(row.query_id)}
        if retrieval:
            shown["instead"] = instead(first[first["query_id"] == row.query_id], texts)
        entries.append(shown | {"methods": by_method})
    return {"task": task.name, "title": task.title, "type": task.type, "of": len(mean), "examples": entries}


def pairs(predictions: pd.DataFrame) -> pd.DataFrame:
    """Every prediction of a pair with its `standing` among those of its method and seed."""
    group = predictions.groupby(["method", "seed"])["score"]
    others = (group.transform("size") - 1).clip(lower=1)
    return predictions.assign(standing=(group.rank() - 1) / others)


def queries(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row a method, seed and query: `rank` of its first right passage from 1 (NaN where none was kept), `standing`.

    Equal scores are ordered by id, descending, as the evaluation does.
    """
    keys = ["method", "seed", "query_id"]
    unit = predictions.groupby(keys, sort=True).ngroup().to_numpy()
    doc = pd.factorize(predictions["doc_id"], sort=True)[0]
    order = np.lexsort((-doc, -predictions["score"].to_numpy(), unit))
    sorted_unit = unit[order]
    starts = np.flatnonzero(np.append(True, np.diff(sorted_unit) != 0))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order)))) + 1
    right = predictions["label"].to_numpy() > 0
    ranked = predictions[keys].assign(rank=np.where(right, ranks, np.nan))
    first = ranked.groupby(keys, sort=True)["rank"].min().reset_index()
    return first.assign(standing=np.where(first["rank"] <= DEPTH, 1 / first["rank"], 0.0))


def instead(predictions: pd.DataFrame, texts: TextsOf) -> list[dict[str, Any]]:
    """The wrong passages of a query that methods rank first, each once with those methods (their first seed)."""
    ordered = predictions.sort_values(["score", "doc_id"], ascending=False, kind="stable")
    top = ordered.drop_duplicates("method")
    methods_of: dict[str, list[str]] = {}
    for row in top[top["label"] <= 0].sort_values("method").itertuples():
        methods_of.setdefault(row.doc_id, []).append(row.method)
    return [{"methods": names, "text": texts.passage(doc)} for doc, names in methods_of.items()]


class TextsOf:
    """The texts of a task by id. Raises ArtifactError for an id it does not have."""

    def __init__(self, task: Task) -> None:
        self.name = task.name
        if task.type == "retrieval":
            corpus, queries, qrels = task.searched()
            self.queries = queries.set_index("id")["text"].to_dict()
            self.corpus = corpus.set_index("id")["text"].to_dict()
            right = qrels[qrels["relevance"] > 0].sort_values(
                ["relevance", "doc_id"], ascending=[False, True], kind="stable"
            )
            self.right = right.groupby("query_id")["doc_id"].agg(list).to_dict()
        else:
            self.pairs = task.paired().set_index("id").rename(columns={task.target: "target"}).to_dict("index")

    def of(self, identity: str) -> dict[str, Any]:
        """`query`, `passage` and `label` of a pair; of a query one right passage ("" without one), the number of them
        as `right`.
        """
        try:
            if hasattr(self, "pairs"):
                pair = self.pairs[identity]
                return {"query": cut(pair["query"]), "passage": cut(pair["passage"]), "label": pair["target"]}
            right = self.right.get(identity, [])
            passage = self.passage(right[0]) if right else ""
            return {"query": cut(self.queries[identity]), "passage": passage, "right": len(right)}
        except KeyError as error:
            raise ArtifactError(f"task {self.name}: predictions of {error}, which it does not have; {MEND}") from None

    def passage(self, identity: str) -> str:
        """A passage of the corpus, cut."""
        if identity not in self.corpus:
            raise ArtifactError(
                f"task {self.name}: predictions of passage {identity!r}, which it does not have; {MEND}"
            )
        return cut(self.corpus[identity])


def cut(text: str) -> str:
    """A text's first `CHARACTERS` characters."""
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"
