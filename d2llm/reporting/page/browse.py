"""The rows of the report's part to browse: every collected score, variants beside each other, examples. Pure; the
template lays them out.

What is chosen, sorted and hidden is left to the page's script; without it all rows are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import TYPE_CHECKING, Any

from d2llm.config.task_types import HEADLINE, METRIC_TITLES
from d2llm.reporting.style import GROUP_TITLES, number

if TYPE_CHECKING:
    import pandas as pd

    from d2llm.reporting.context import Context

# What stands for the mean in the choice of seeds.
MEAN = "mean"


@dataclass(frozen=True)
class ScoreRow:
    """One metric of one task, of one seed or the mean over seeds; `cells` by method: (mean, sample deviation or None,
    highest).
    """

    task: str
    metric: str
    headline: bool
    phenomenon: str
    seed: str
    n: int
    cells: dict[str, tuple[float, float | None, bool] | None]


def score_rows(scores: pd.DataFrame, about: Context) -> list[ScoreRow]:
    """Rows in the order of tasks, of what makes examples hard (all first), of metrics; the mean before the single
    seeds.

    A reference row has one seed, which stands in every row. Without more seeds than one there are rows of that alone.
    """
    used = scores[scores["variant"] == "base"]
    seeds = sorted(used.loc[used["method"].isin(about.methods), "seed"].unique().tolist())
    used = used.assign(
        place=places(used["group"]),
        whole=used["phenomenon"] != "all",
        rank=(used["metric"] != used["task_type"].map(HEADLINE)),
    ).sort_values(["place", "task", "whole", "phenomenon", "rank", "metric"], kind="stable")
    rows = []
    for _, part in used.groupby(["place", "task", "phenomenon", "metric"], sort=False):
        first = part.iloc[0]
        values: dict[tuple[str, Any], list[float]] = {}
        for name, seed, value in zip(part["method"], part["seed"], part["value"], strict=True):
            values.setdefault((name, MEAN), []).append(value)
            values.setdefault((name, seed), []).append(value)
        for seed in [MEAN, *seeds] if len(seeds) > 1 else seeds:
            cells = {}
            for name in (*about.references, *about.methods):
                seed_values = values.get((name, MEAN if name in about.references else seed), [])
                sd = stdev(seed_values) if len(seed_values) > 1 else None
                cells[name] = (sum(seed_values) / len(seed_values), sd, False) if seed_values else None
            rows.append(
                ScoreRow(
                    task=first["task_title"],
                    metric=METRIC_TITLES.get(first["metric"], first["metric"]),
                    headline=not first["rank"],
                    phenomenon=first["phenomenon"],
                    seed=str(seed),
                    n=int(first["n"]),
                    cells=marked(cells, about.methods),
                )
            )
    return rows


def places(groups: pd.Series) -> pd.Series:
    """Where a task's group stands among the others."""
    order = {group: place for place, group in enumerate(GROUP_TITLES)}
    return groups.map(order).fillna(len(order))


def marked(cells: dict[str, Any], methods: Sequence[str]) -> dict[str, Any]:
    """The cells with the highest of the trained methods, as printed, marked."""
    best = max((number(cells[name][0]) for name in methods if cells[name]), key=float, default=None)
    return {
        name: cell and (cell[0], cell[1], name in methods and number(cell[0]) == best) for name, cell in cells.items()
    }


def variant_rows(
    scores: pd.DataFrame, about: Context
) -> tuple[list[tuple[str, str]], list[tuple[str, str, list[float | None]]]]:
    """Columns (task, metric) and rows (method, variant, values): headline metrics, means over the seeds variants have.

    The methods themselves are rows beside their variants, of those seeds; no variant, no row.
    """
    used = scores[(scores["phenomenon"] == "all") & (scores["metric"] == scores["task_type"].map(HEADLINE))]
    varied = used[used["variant"] != "base"]
    used = used[used["method"].isin(varied["method"]) & used["seed"].isin(varied["seed"])]
    tasks = used.drop_duplicates("task").assign(place=lambda rows: places(rows["group"])).sort_values(["place", "task"])
    means = used.groupby(["method", "variant", "task"])["value"].mean().to_dict()
    names = sorted({key[:2] for key in means}, key=lambda key: (key[0], key[1] != "base", key[1]))
    columns = [(row.task_title, METRIC_TITLES.get(row.metric, row.metric)) for row in tasks.itertuples()]
    return columns, [
        (about.titles.get(method, method), variant, [means.get((method, variant, task)) for task in tasks["task"]])
        for method, variant in names
    ]


def example_tables(examples: dict[str, Any], tasks: Sequence[str], about: Context) -> list[dict[str, Any]]:
    """`examples.json` with tasks in the order of their titles in `tasks`, methods in theirs, and what a cell says of
    each.
    """
    order = [*about.references, *about.methods]
    tables = []
    for task in examples["tasks"]:
        rows = []
        for example in task["examples"]:
            cells = {name: cell(example["methods"].get(name)) for name in order}
            instead = []
            for wrong in example.get("instead", ()):
                names = [name for name in order if name in wrong["methods"]]
                titles = ", ".join(about.titles.get(name, name) for name in names)
                instead.append((titles, wrong["text"], " ".join(names)))
            rows.append(example | {"cells": cells, "instead": instead})
        tables.append(task | {"examples": rows})
    return sorted(tables, key=lambda task: tasks.index(task["title"]) if task["title"] in tasks else len(tasks))


def cell(seen: dict[str, Any] | None) -> tuple[str, str] | None:
    """What one method makes of an example: its standing in hundredths (pairs) or reciprocal rank, and its score or
    ranks.
    """
    if seen is None:
        return None
    if "ranks" in seen:
        return f"{seen['standing']:.2f}", " ".join("–" if rank is None else str(rank) for rank in seen["ranks"])
    return f"{100 * seen['standing']:.0f}", f"{seen['score']:.3f}".replace("-", "−")
