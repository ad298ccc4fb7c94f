"""`d2llm compare A B`: two runs task by task: every method of both, B minus A, with paired bootstrap intervals.

For two configurations, two versions of the code or two machines on the same test examples. How intervals and p-values
come about is `d2llm.analysis.comparison`'s; whether a fresh run may be called the same as a reference is
`verify`'s question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from d2llm.analysis.comparison import check, compare, least, whole_kind
from d2llm.analysis.inference import holm
from d2llm.analysis.verdicts import standing
from d2llm.config.task_types import HEADLINE, METRIC_TITLES
from d2llm.evaluation.predictions import read_predictions
from d2llm.reporting.style import AVERAGE_TITLE, number, signed
from d2llm.run.artifacts import read_csv
from d2llm.run.errors import ArtifactError
from d2llm.run.logs import progress
from d2llm.run.schemas import AVERAGE, PREDICTIONS, SCORES

_PREDICTIONS = {name: kind for name, kind in PREDICTIONS.items() if name not in ("tier", "phenomenon")}
A, B = "run A", "run B"
COLUMNS = (
    "method",
    "variant",
    "group",
    "task",
    "metric",
    "a",
    "b",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "verdict",
    "seeds",
    "n",
)


@dataclass(frozen=True)
class Side:
    """One of the two: its scores, and where its predictions are (None: not there)."""

    scores: pd.DataFrame
    predictions: Path | None


def side(path: Path) -> Side:
    """A results folder, or a scores.csv with predictions.parquet beside it or not. Raises ArtifactError."""
    file = path / "scores.csv" if path.is_dir() else path
    beside = file.with_name("predictions.parquet")
    return Side(read_csv(file, SCORES), beside if beside.exists() else None)


def two_runs(
    first: Side,
    second: Side,
    *,
    variants: bool = False,
    resamples: int = 20000,
    level: float = 0.95,
    seed: int = 1,
    equivalent: float = 0.01,
) -> pd.DataFrame:
    """One row a method (and variant), task and average of a group: columns `COLUMNS`; `a`, `b` and `difference` are
    means over the seeds both have. Without predictions of both, interval and p-values are NaN.

    Raises ArtifactError when the two share no method, task or seed, or are of other examples.
    """
    shared = common(first.scores, second.scores, variants)
    same_sizes(first.scores, second.scores, list(shared["task"].unique()))
    tasks = first.scores[first.scores["task"].isin(shared["task"])].drop_duplicates("task").set_index("task")
    tasks = tasks[["task_type", "group"]]
    runs = [(str(m), str(v)) for m, v in shared[["method", "variant"]].drop_duplicates().itertuples(index=False)]
    files = {name: part.predictions for name, part in ((A, first), (B, second)) if part.predictions is not None}
    both = len(files) == 2
    count = max(resamples, least(len(runs) * tasks["group"].nunique(), level))
    rows = []
    for method, variant in progress(runs, "compare"):
        of_run = (shared["method"] == method) & (shared["variant"] == variant)
        seeds = sorted(map(int, shared.loc[of_run, "seed"].unique()))
        scores = pd.concat(
            [_scores_of(part, method, variant, seeds, name) for name, part in ((A, first.scores), (B, second.scores))]
        )
        if not both:
            rows.append(plain_differences(scores, tasks).assign(method=method, variant=variant, seeds=len(seeds)))
            continue
        read = partial(_predictions_of, files, {"method": method, "variant": variant, "seed": seeds})
        comparisons = compare(read, tasks, [A, B], seeds, count, level, seed, subject=B)
        check(comparisons, scores)
        comparisons = comparisons.rename(columns={"value": "b"})
        rows.append(comparisons.assign(a=comparisons["b"] - comparisons["difference"], method=method, variant=variant))
    table = pd.concat(rows, ignore_index=True)
    return judged(table, equivalent)


def judged(table: pd.DataFrame, equivalent: float) -> pd.DataFrame:
    """The rows with p_holm, corrected over what is tested (whole kinds of task, of more than one seed), and the verdict
    of B: better, worse, as good (within `equivalent`), or undecided.
    """
    tested = (table["seeds"] > 1) & whole_kind(table)
    verdicts = [_judge(row, equivalent) for row in table.itertuples()]
    return table.assign(p_holm=holm(table["p"].where(tested)), verdict=verdicts)[list(COLUMNS)]


def _judge(row: Any, equivalent: float) -> str:
    """Of B: by the interval, but for the luck of one training, which no interval knows; nothing without predictions."""
    if math.isnan(row.low):
        return ""
    same = row.low == row.high == 0
    return standing(row.low, row.high, equivalent) if row.seeds > 1 or same else "undecided"


def _predictions_of(files: Mapping[str, Path], where: Mapping[str, Any], task: str) -> pd.DataFrame:
    """Those of both runs on a task, as of methods of the runs' names."""
    return pd.concat(
        read_predictions(file, _PREDICTIONS, {**where, "task": task}).assign(method=name)
        for name, file in files.items()
    )


def _scores_of(scores: pd.DataFrame, method: str, variant: str, seeds: list[int], name: str) -> pd.DataFrame:
    """The scores of a method and variant on these seeds, as those of a method called `name`."""
    rows = scores[(scores["method"] == method) & (scores["variant"] == variant) & scores["seed"].isin(seeds)]
    return rows.assign(method=name, variant="base")


def common(first: pd.DataFrame, second: pd.DataFrame, variants: bool) -> pd.DataFrame:
    """(method, variant, seed, task) of the headline scores both have. Raises ArtifactError where there is none."""
    key = ["method", "variant", "seed", "task"]
    sides = []
    for scores in (first, second):
        headline = scores[(scores["phenomenon"] == "all") & (scores["metric"] == scores["task_type"].map(HEADLINE))]
        sides.append(headline if variants else headline[headline["variant"] == "base"])
    shared = sides[0][key].merge(sides[1][key], on=key)
    if shared.empty:
        values = ", ".join(f"{name} {sorted(set(sides[0][name]))} and {sorted(set(sides[1][name]))}" for name in key)
        raise ArtifactError(f"the two runs have no score in common (method, variant, seed and task alike): {values}")
    # Every task with every seed: a mean over other seeds would be another one.
    whole = shared.groupby(["method", "variant", "seed"])["task"].transform("nunique") == shared["task"].nunique()
    if not whole.any():
        raise ArtifactError("no run of the two has been evaluated on all tasks they share")
    return shared[whole]


def same_sizes(first: pd.DataFrame, second: pd.DataFrame, tasks: list[str]) -> None:
    """Raises ArtifactError naming the tasks whose scores are of other splits or numbers of examples: all that scores
    alone tell of them.
    """
    sizes = []
    for scores in (first, second):
        whole = scores[scores["phenomenon"] == "all"].drop_duplicates("task").set_index("task")
        sizes.append({task: f"{whole.loc[task, 'n']} of {whole.loc[task, 'split']}" for task in tasks})
    other = [
        f"{task} ({sizes[0][task]} in A, {sizes[1][task]} in B)" for task in tasks if sizes[0][task] != sizes[1][task]
    ]
    if other:
        raise ArtifactError(
            f"the two runs were evaluated on other examples: {', '.join(other)}; only runs on the same test sets can "
            "be compared"
        )


def plain_differences(scores: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """Differences of collected scores alone, tasks and then averages as `compare` orders them."""
    used = scores[(scores["phenomenon"] == "all") & (scores["metric"] == scores["task_type"].map(HEADLINE))]
    means = used.groupby(["task", "method"])["value"].mean().unstack()
    rows = []
    for group, members in tasks.groupby("group", sort=False):
        names = list(members.index)
        metric = HEADLINE[members["task_type"].iloc[0]]
        size = used.drop_duplicates("task").set_index("task")["n"]
        for name, part in [(task, [task]) for task in names] + ([(AVERAGE, names)] if len(names) > 1 else []):
            a, b = means.loc[part, A].mean(), means.loc[part, B].mean()
            kind = HEADLINE[members.loc[part[0], "task_type"]] if name != AVERAGE else metric
            rows.append(
                {
                    "group": group,
                    "task": name,
                    "metric": kind,
                    "a": a,
                    "b": b,
                    "difference": b - a,
                    "n": int(size[part].sum()),
                }
            )
    return pd.DataFrame(rows).assign(low=float("nan"), high=float("nan"), p=float("nan"))


def text(table: pd.DataFrame, names: tuple[str, str], level: float, equivalent: float = 0.01) -> str:
    """The table for a terminal: marks as in the tables of a run, ↑ where B is significantly above A, ↓ below."""
    intervals = bool(table["p"].notna().any())
    head = ["method", "task", "metric", "A", "B", "B − A"]
    head += [f"{level:.0%} interval", "p", "p (Holm)", "B is", ""] if intervals else []
    body = [_write_cells(row, level, intervals) for row in table.itertuples()]
    lines = [f"A  {names[0]}", f"B  {names[1]}", "", *_align([head, *body]), ""]
    seeds = sorted(set(table["seeds"]))
    note = f"Headline metrics, means over the seeds both have ({' or '.join(map(str, seeds))} of them)."
    if intervals:
        luck = (
            ", and the spread of seeds" if max(seeds) > 1 else "; of one seed, so the luck of a training is not in them"
        )
        note += (
            f" Intervals: paired bootstrap over examples{luck}. ↑ ↓: B significantly above or below A after Holm's "
            f"correction over the {table['p_holm'].notna().sum()} rows that are tested: whole kinds of task, of several "
            f"seeds. B is better, worse or equivalent (within {equivalent:g}) by the interval of each row alone."
        )
    else:
        note += (
            " Scores alone are compared, without intervals or p-values, as predictions.parquet is not beside both "
            "scores.csv: of the examples only splits and numbers are known to be the same."
        )
    return "\n".join([*lines, note])


def _write_cells(row: Any, level: float, intervals: bool) -> list[str]:
    """The cells of a row of `two_runs`."""
    cells = [
        row.method if row.variant == "base" else f"{row.method} {row.variant}",
        f"{AVERAGE_TITLE} {row.group}" if row.task == AVERAGE else row.task,
        METRIC_TITLES.get(row.metric, row.metric),
        number(row.a),
        number(row.b),
        signed(row.difference),
    ]
    if intervals:
        mark = "" if not row.p_holm < 1 - level or row.difference == 0 else "↑" if row.difference > 0 else "↓"
        corrected = "–" if math.isnan(row.p_holm) else f"{row.p_holm:.4f}"
        cells += [f"{signed(row.low)} to {signed(row.high)}", f"{row.p:.4f}", corrected, row.verdict, mark]
    return cells


def _align(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines of columns: the first three from the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < 3 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
