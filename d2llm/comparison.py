"""Stage `comparison`: D2LLM against every baseline on every task, from the collected predictions.

Paired bootstrap: all methods are scored on the same resampled examples and, where there are several, the same resampled
seeds; the metric is computed anew on each resample. Which differences are significant is judged after Holm's correction
over all of them. The methods of the computation are in `d2llm.statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from d2llm import statistics
from d2llm.artifacts import MEND, atomic, read_frame
from d2llm.errors import ArtifactError
from d2llm.evaluation.headline import HEADLINE
from d2llm.evaluation.metrics import per_query
from d2llm.logs import get_logger
from d2llm.paths import Paths

if TYPE_CHECKING:
    from d2llm.config import Config

SUBJECT = "d2llm"
AVERAGE = "average"
RESAMPLED = {
    "pair_classification": statistics.average_precision,
    "sts": statistics.spearman,
    "retrieval": statistics.mean,
}
COLUMNS = {
    "group": "str", "task": "str", "metric": "str", "method": "str", "baseline": "str", "strongest": "bool", "value": "float",
    "difference": "float", "low": "float", "high": "float", "p": "float", "p_holm": "float", "seeds": "int", "n": "int",
}  # fmt: skip
_SCORES = {"method": "str", "variant": "str", "seed": "int", "task": "str", "task_type": "str", "group": "str", "phenomenon": "str", "metric": "str", "value": "float"}  # fmt: skip
_PREDICTIONS = {"method": "str", "variant": "str", "seed": "int", "task": "str", "query_id": "str", "doc_id": "str", "score": "float", "label": "float", "relevant": "int"}  # fmt: skip


def run(config: Config) -> None:
    """Write `comparisons.csv`; without D2LLM or a baseline among the methods it has no row."""
    paths, settings = Paths.of(config), config.statistics
    scores = read_frame(paths.scores, _SCORES)
    predictions = read_frame(paths.predictions, _PREDICTIONS)
    predictions = predictions[(predictions["variant"] == "base") & predictions["method"].isin(config.methods)]
    tasks = scores.drop_duplicates("task").set_index("task")[["task_type", "group"]]
    found = compare(predictions, tasks, list(config.methods), settings.resamples, settings.level, settings.seed)
    check(found, scores)
    with atomic(paths.comparisons) as temporary:
        found.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")
    get_logger(__name__).info(
        "%d comparisons, %d significant", len(found), int((found["p_holm"] < 1 - settings.level).sum())
    )


def compare(
    predictions: pd.DataFrame, tasks: pd.DataFrame, methods: list[str], count: int, level: float, seed: int
) -> pd.DataFrame:
    """One row a baseline and task (or average of a group of tasks): columns `COLUMNS`.

    `tasks` is indexed by task with columns task_type and group; `methods` holds the subject and the baselines.
    """
    rows, drawn_of, observed_of = [], {}, {}
    seeds = sorted(predictions["seed"].unique().tolist())
    baselines = [name for name in methods if name != SUBJECT]
    if SUBJECT not in methods or not baselines:
        return pd.DataFrame(columns=list(COLUMNS))
    # The same seeds are drawn for every method and task.
    chosen = statistics.resamples(np.random.default_rng([seed, 0]), len(seeds), count) / len(seeds)
    for task in tasks.index:
        kind = tasks.loc[task, "task_type"]
        own = predictions[predictions["task"] == task]
        sides = {
            (name, s): examples(own[(own["method"] == name) & (own["seed"] == s)], kind)
            for name in methods
            for s in seeds
        }
        first = next(iter(sides.values()))
        for key, side in sides.items():
            if not side.index.equals(first.index):
                raise ArtifactError(
                    f"predictions of {key[0]}, seed {key[1]}, on {task} are of other examples than the others'; {MEND}"
                )
        counts = statistics.resamples(np.random.default_rng([seed, *task.encode()]), len(first), count)
        whole = np.ones((1, len(first)), dtype=np.int32)
        for name in methods:
            per_seed = [sides[name, s] for s in seeds]
            observed_of[name, task] = np.mean([_metric(kind, side, whole)[0] for side in per_seed])
            drawn_of[name, task] = (np.stack([_metric(kind, side, counts) for side in per_seed], axis=1) * chosen).sum(
                1
            )
        rows += _rows(task, tasks.loc[task, "group"], HEADLINE[kind], {n: observed_of[n, task] for n in methods},
                      {n: drawn_of[n, task] for n in methods}, baselines, level, len(seeds), len(first))  # fmt: skip
    for group, members in tasks.groupby("group", sort=False):
        if len(members) > 1:
            observed = {n: float(np.mean([observed_of[n, task] for task in members.index])) for n in methods}
            drawn = {n: np.mean([drawn_of[n, task] for task in members.index], axis=0) for n in methods}
            metric = HEADLINE[members["task_type"].iloc[0]]
            rows += _rows(AVERAGE, group, metric, observed, drawn, baselines, level, len(seeds), len(members))
    found = pd.DataFrame(rows)
    return found.assign(p_holm=statistics.holm(found["p"]))[list(COLUMNS)]


def examples(predictions: pd.DataFrame, kind: str) -> pd.DataFrame:
    """One row an example in the order of its id: `value`, and `target` where the metric needs it."""
    if kind != "retrieval":
        frame = predictions.rename(columns={"score": "value", "label": "target"}).set_index("query_id")
        return frame[["value", "target"]].sort_index()
    results: dict[str, dict[str, float]] = {}
    qrels: dict[str, dict[str, int]] = {}
    columns = (predictions[name] for name in ("query_id", "doc_id", "score", "label", "relevant"))
    for query, doc, score, label, relevant in zip(*columns, strict=True):
        results.setdefault(query, {})[doc] = score
        judged = qrels.setdefault(
            query, {"": int(relevant > 0)}
        )  # relevant documents that were not kept count for recall only
        judged[doc] = int(label)
    return per_query(results, qrels)[[HEADLINE[kind]]].set_axis(["value"], axis=1).sort_index()


def _metric(kind: str, side: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    target = side["target"].to_numpy() if "target" in side else None
    return RESAMPLED[kind](side["value"].to_numpy(), target, counts)


def _rows(
    task: str, group: str, metric: str, observed: Mapping[str, float], drawn: Mapping[str, np.ndarray], baselines: list[str], level: float,
    seeds: int, n: int,
) -> list[dict[str, object]]:  # fmt: skip
    strongest = max(baselines, key=lambda name: observed[name])
    rows = []
    for name in baselines:
        found = statistics.interval(observed[SUBJECT] - observed[name], drawn[SUBJECT] - drawn[name], level)
        rows.append(
            {"group": group, "task": task, "metric": metric, "method": SUBJECT, "baseline": name, "strongest": name == strongest,
             "value": observed[SUBJECT], **found._asdict(), "seeds": seeds, "n": n}
        )  # fmt: skip
    return rows


def check(found: pd.DataFrame, scores: pd.DataFrame) -> None:
    """Refuse predictions from which the collected scores do not follow: two truths in one folder.

    mteb rounds retrieval metrics to five digits, so that is how close they have to be.
    """
    base = scores[(scores["variant"] == "base") & (scores["phenomenon"] == "all")]
    values = base.groupby(["method", "task", "metric"])["value"].mean()
    for row in found[found["task"] != AVERAGE].itertuples():
        for method, value in ((row.method, row.value), (row.baseline, row.value - row.difference)):
            if abs(values[method, row.task, row.metric] - value) > 1e-5:
                raise ArtifactError(
                    f"{row.metric} of {method} on {row.task} is {values[method, row.task, row.metric]:.6f} in the scores and "
                    f"{value:.6f} by its predictions; {MEND}"
                )
