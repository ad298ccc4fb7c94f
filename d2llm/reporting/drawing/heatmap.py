"""Heat maps of scores by phenomenon, one for each kind of task: what makes an example hard, by methods.

Draws the figures `phenomena`, `phenomena_sts` and `phenomena_ir`, each by its `Breakdown`. Which metrics a breakdown
has is decided in d2llm/evaluation/metrics.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING

import pandas as pd

from d2llm.config.task_types import METRIC_TITLES
from d2llm.reporting.drawing.figures import empty, in_short, note, sampled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from d2llm.reporting.drawing.figures import Data

# More tasks than these do not stand below each other, each with its own rows; more methods than these crowd three maps
# side by side.
STACKED, CROWDED = 3, 6
# Values of a group that have an order of their own, from the least on.
ORDINAL = ("low", "short", "easy", "middle", "medium", "high", "long", "hard")
# Above this share of the colour range a cell is light and its number black.
LIGHT = 0.6


@dataclass(frozen=True)
class Breakdown:
    """What a heat map shows of a kind of task.

    `metrics`: a task is shown by the first of these that it has, with the lower end of its colours; None is the lowest
    score drawn, rounded down to a tenth. The upper end is 1. `shared`: all tasks have the same phenomena, so their maps
    stand side by side with one order of rows; so do more than `STACKED` tasks. `counted` names what a number is
    computed on. `beside`: a metric whose rows stand below the others, on the same scale, and what it says.
    """

    task_type: str
    kind: str
    metrics: Mapping[str, float | None]
    note: str
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
    shared = breakdown.shared or len(chosen) > STACKED
    tables = _make_tables(used, chosen, names, data.context.methods, shared, beside)
    figure, axes, down = _make_panels(tables, shared, len(names))
    lows = {
        metric: _find_lowest(breakdown.metrics[metric], [tables[task] for task in tables if chosen[task] == metric])
        for metric in dict.fromkeys(chosen.values())
    }
    images: dict[str, list[AxesImage]] = {}
    for (task, table), axis in zip(tables.items(), axes, strict=True):
        shown = used[(used["task"] == task) & (used["metric"] == chosen[task])]
        images.setdefault(chosen[task], []).append(_draw_map(axis, table, lows[chosen[task]], 6 if down > 1 else 7))
        counts = pd.concat([shown, beside[beside["task"] == task]]).groupby("phenomenon")["n"].max()
        rows = list(table.index) if shared else [f"{name} ({counts[name]})" for name in table.index]
        axis.set_yticks(range(len(table)), rows)
        axis.set_title(in_short(shown["task_title"].iloc[0]))
    titles = [column_title(data.context.titles.get(name, name)) for name in names]
    for axis in axes:
        if breakdown.shared or len(axes) > STACKED or len(names) > 9 or max(map(len, titles)) > 9:
            axis.set_xticks(range(len(names)), titles, rotation=45, ha="right", rotation_mode="anchor")
        else:
            axis.set_xticks(range(len(names)), titles)
    for place, (metric, drawn) in enumerate(images.items()):
        label = breakdown.labels.get(metric, METRIC_TITLES.get(metric, metric))
        if down == 1:
            _draw_colorbar(figure, drawn, lows[metric], label)
        elif place == 0:
            _draw_colorbar(figure, drawn, lows[metric], label, axes, 30)
        else:  # no room for a bar of its own
            for image in drawn:
                image.axes.set_title(
                    f"{image.axes.get_title(loc='left')}: {METRIC_TITLES[metric]}, {lows[metric]:g} to 1"
                )
    note(figure, data, _write_note(breakdown, used, beside, shared) + sampled(used["task_title"]))
    return figure


def _write_note(breakdown: Breakdown, used: pd.DataFrame, beside: pd.DataFrame, shared: bool) -> str:
    """What the numbers are, by what the run has: phenomena, groups (name: value), pairs against their reverse."""
    grouped = used["phenomenon"].str.contains(": ")
    sentences = [breakdown.note] if not grouped.all() else []
    if grouped.any():
        sentences.append(
            "A group (name: value) is measured by itself, its own right pairs against its own wrong ones."
            if breakdown.task_type != "retrieval"
            else "A group (name: value) is of its own queries."
        )
    if breakdown.beside and len(beside):
        sentences.append(breakdown.beside[1])
    if not shared:
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

    def place(row: str) -> tuple[int, int]:
        family, _, value = row.partition(": ")
        if not value:
            return (len(families) + 1 if row in last else 0), 0
        return families.index(family) + 1, ORDINAL.index(value) if value in ORDINAL else 0

    return sorted(rows, key=place)


def column_title(title: str) -> str:
    """A row's title as a column has room for it: without what stands in brackets, long ones on two lines."""
    return "\n".join(textwrap.wrap(title.split(" (")[0], 12)[:2])


def _make_panels(tables: Mapping[str, pd.DataFrame], shared: bool, names: int) -> tuple[Figure, list[Axes], int]:
    """(figure, a panel a task, how many rows of panels share a grid)."""
    from matplotlib import pyplot

    rows = [len(table) for table in tables.values()]
    if shared:
        # As many panels in a row as leave a number its width.
        across = min(len(rows), STACKED - 1 if names > CROWDED else STACKED)
        down = -(-len(rows) // across)
        size = (6.9, 0.2 * max(rows) * down + 0.3 * (down - 1) + 1.15)
        figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False, sharey=True, sharex=True)
        for unused in axes.flat[len(rows) :]:
            unused.remove()
        return figure, list(axes.flat[: len(rows)]), down
    size = (6.9, 0.2 * sum(rows) + 0.24 * len(rows) + 0.75)
    figure, axes = pyplot.subplots(
        len(rows), 1, figsize=size, squeeze=False, sharex=True, gridspec_kw={"height_ratios": rows}
    )
    return figure, list(axes[:, 0]), 1


def _find_lowest(low: float | None, tables: list[pd.DataFrame]) -> float:
    """Where the colours of a metric begin: one scale for all tasks shown by it."""
    if low is not None:
        return low
    lowest = min(float(table.min(axis=None)) for table in tables)
    return min(floor(lowest * 10) / 10, 0.9)


def _draw_map(axis: Axes, table: pd.DataFrame, low: float, fontsize: int) -> AxesImage:
    image = axis.imshow(table.to_numpy(), aspect="auto", cmap="cividis", vmin=low, vmax=1.0)
    for row, column in ((r, c) for r in range(table.shape[0]) for c in range(table.shape[1])):
        value = table.iat[row, column]
        if value == value:
            color = "white" if (value - low) / (1.0 - low) < LIGHT else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=fontsize, color=color)
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return image


def _draw_colorbar(
    figure: Figure,
    images: list[AxesImage],
    low: float,
    label: str,
    beside: Sequence[Axes] | None = None,
    aspect: int = 12,
) -> None:
    """Draw one bar beside all maps of a metric, or all that are drawn, with an arrow at its end where scores lie below
    its colours.
    """
    drawn = [values for image in images if (values := image.get_array()) is not None]
    beyond = "min" if any(float(values.min()) < low for values in drawn) else "neither"
    axes = [image.axes for image in images] if beside is None else list(beside)
    figure.colorbar(images[0], ax=axes, shrink=0.8, pad=0.01, aspect=aspect, extend=beyond, label=label)
