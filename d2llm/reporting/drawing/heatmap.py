"""Heat maps of scores by phenomenon, one for each kind of task: what makes an example hard, by methods.

Draws the figures `phenomena`, `phenomena_sts` and `phenomena_ir`, each by its `Breakdown`. Which metrics a breakdown
has is decided in d2llm/evaluation/metrics.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING

import pandas as pd

from d2llm.config.task_types import METRIC_TITLES
from d2llm.reporting.drawing.figures import empty, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from d2llm.reporting.drawing.figures import Data

# Above this share of the colour range a cell is light and its number black.
LIGHT = 0.6


@dataclass(frozen=True)
class Breakdown:
    """What a heat map shows of a kind of task.

    `metrics`: a task is shown by the first of these that it has, with the lower end of its colours; None is the lowest
    score drawn, rounded down to a tenth. The upper end is 1. `shared`: all tasks have the same phenomena, so their maps
    stand side by side with one order of rows. `counted` names what a number is computed on. `beside`: a metric whose
    rows stand below the others, on the same scale, and what it says.
    """

    task_type: str
    kind: str
    metrics: Mapping[str, float | None]
    said: str
    labels: Mapping[str, str]
    shared: bool = False
    counted: str = "the examples"
    beside: tuple[str, str] | None = None


def draw(data: Data, breakdown: Breakdown) -> Figure:
    """Draw a map for each task: phenomena, easiest for the methods first, by methods; means over seeds."""
    scores = data.scores
    used = scores[(scores["task_type"] == breakdown.task_type) & (scores["phenomenon"] != "all")]
    beside = used[used["metric"] == (breakdown.beside or [""])[0]]
    used = used[used["metric"].isin(breakdown.metrics)]
    if used.empty:
        return empty(f"No {breakdown.kind} task with phenomena was evaluated.")
    chosen = _choose_metrics(used, breakdown)
    names = [*data.context.methods, *(name for name in data.context.references if name in set(used["method"]))]
    tables = _make_tables(used, chosen, names, data.context.methods, breakdown.shared, beside)
    figure, axes = _make_panels(tables, breakdown.shared)
    lows = {
        metric: _find_lowest(breakdown.metrics[metric], [tables[task] for task in tables if chosen[task] == metric])
        for metric in dict.fromkeys(chosen.values())
    }
    images: dict[str, list[AxesImage]] = {}
    for (task, table), axis in zip(tables.items(), axes, strict=True):
        shown = used[(used["task"] == task) & (used["metric"] == chosen[task])]
        images.setdefault(chosen[task], []).append(_draw_map(axis, table, lows[chosen[task]]))
        counts = pd.concat([shown, beside[beside["task"] == task]]).groupby("phenomenon")["n"].max()
        rows = list(table.index) if breakdown.shared else [f"{name} ({counts[name]})" for name in table.index]
        axis.set_yticks(range(len(table)), rows)
        axis.set_title(shown["task_title"].iloc[0])
    titles = [data.context.titles.get(name, name).split(" (")[0] for name in names]
    for axis in axes:
        if breakdown.shared or len(names) > 9:
            axis.set_xticks(range(len(names)), titles, rotation=45, ha="right", rotation_mode="anchor")
        else:
            axis.set_xticks(range(len(names)), titles)
    for metric, drawn in images.items():
        _draw_colorbar(figure, drawn, lows[metric], breakdown.labels.get(metric, METRIC_TITLES.get(metric, metric)))
    note(figure, data, _write_note(breakdown, used, beside))
    return figure


def _write_note(breakdown: Breakdown, used: pd.DataFrame, beside: pd.DataFrame) -> str:
    """What the numbers are, by what the run has: phenomena, groups (name: value), pairs against their reverse."""
    grouped = used["phenomenon"].str.contains(": ")
    sentences = [breakdown.said] if not grouped.all() else []
    if grouped.any():
        sentences.append(
            "A group (name: value) is measured by itself, its own right pairs against its own wrong ones."
            if breakdown.task_type != "retrieval"
            else "A group (name: value) is of its own queries."
        )
    if breakdown.beside and len(beside):
        sentences.append(breakdown.beside[1])
    if not breakdown.shared:
        sentences.append(f"In brackets: {breakdown.counted} they are computed on.")
    return " ".join(sentences)


def _choose_metrics(used: pd.DataFrame, breakdown: Breakdown) -> dict[str, str]:
    """The metric each task is shown by; tasks of one metric follow each other, so that they share a colour bar."""
    measured = used.groupby("task")["metric"].agg(set)
    chosen = {
        task: next(metric for metric in breakdown.metrics if metric in measured[task])
        for task in sorted(measured.index)
    }
    order = list(breakdown.metrics)
    return dict(sorted(chosen.items(), key=lambda item: order.index(item[1])))


def _make_tables(
    used: pd.DataFrame,
    chosen: Mapping[str, str],
    names: list[str],
    methods: Sequence[str],
    shared: bool,
    beside: pd.DataFrame,
) -> dict[str, pd.DataFrame]:
    """(phenomenon × method) scores of every task; tasks that share their rows have all rows of any, in one order."""
    tables: dict[str, pd.DataFrame] = {}
    order: list[str] = []
    for task, metric in chosen.items():
        shown = pd.concat([used[(used["task"] == task) & (used["metric"] == metric)], beside[beside["task"] == task]])
        table = shown.pivot_table(index="phenomenon", columns="method", values="value").reindex(columns=names)
        easiest = table[list(methods)].mean(axis=1).sort_values(ascending=False, kind="stable").index
        order = [*order, *(name for name in easiest if name not in order)] if shared else list(easiest)
        tables[task] = table.loc[_by_family(order, beside) if not shared else list(easiest)]
    rows = _by_family(order, beside)
    return {task: table.reindex(rows) for task, table in tables.items()} if shared else tables


def _by_family(rows: Sequence[str], beside: pd.DataFrame) -> list[str]:
    """Phenomena first, then the groups of each name together, then what stands beside them; else in their order."""
    families = list(dict.fromkeys(row.partition(": ")[0] for row in rows if ": " in row))
    last = set(beside["phenomenon"])

    def place(row: str) -> int:
        return len(families) + 1 if row in last else families.index(row.partition(": ")[0]) + 1 if ": " in row else 0

    return sorted(rows, key=place)


def _make_panels(tables: Mapping[str, pd.DataFrame], shared: bool) -> tuple[Figure, list[Axes]]:
    from matplotlib import pyplot

    rows = [len(table) for table in tables.values()]
    if shared:
        size = (6.9, 0.2 * max(rows) + 1.15)
        figure, axes = pyplot.subplots(1, len(rows), figsize=size, squeeze=False, sharey=True)
        return figure, list(axes[0])
    size = (6.9, 0.2 * sum(rows) + 0.24 * len(rows) + 0.75)
    figure, axes = pyplot.subplots(
        len(rows), 1, figsize=size, squeeze=False, sharex=True, gridspec_kw={"height_ratios": rows}
    )
    return figure, list(axes[:, 0])


def _find_lowest(low: float | None, tables: list[pd.DataFrame]) -> float:
    """Where the colours of a metric begin: one scale for all tasks shown by it."""
    if low is not None:
        return low
    lowest = min(float(table.min(axis=None)) for table in tables)
    return min(floor(lowest * 10) / 10, 0.9)


def _draw_map(axis: Axes, table: pd.DataFrame, low: float) -> AxesImage:
    image = axis.imshow(table.to_numpy(), aspect="auto", cmap="cividis", vmin=low, vmax=1.0)
    for row, column in ((r, c) for r in range(table.shape[0]) for c in range(table.shape[1])):
        value = table.iat[row, column]
        if value == value:
            color = "white" if (value - low) / (1.0 - low) < LIGHT else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return image


def _draw_colorbar(figure: Figure, images: list[AxesImage], low: float, label: str) -> None:
    """Draw one bar beside all maps of a metric, with an arrow at its end where scores lie below its colours."""
    drawn = [values for image in images if (values := image.get_array()) is not None]
    beyond = "min" if any(float(values.min()) < low for values in drawn) else "neither"
    axes = [image.axes for image in images]
    figure.colorbar(images[0], ax=axes, shrink=0.8, pad=0.01, aspect=12, extend=beyond, label=label)
