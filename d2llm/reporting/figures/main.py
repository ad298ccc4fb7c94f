"""The results in one picture: every method on every task by its headline metric, between BM25 and the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from d2llm.config.task_types import HEADLINE, METRIC_TITLES
from d2llm.reporting.drawing.figures import columns_of, in_short, note, sampled
from d2llm.reporting.style import AVERAGE_TITLE, BAND, BAND_AVERAGE, GROUP_TITLES, look
from d2llm.run.schemas import AVERAGE, SUBJECT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 1
READS = ("scores",)
CAPTION = {
    "section": "main",
    "title": "Every method on every task",
    "text": (
        "One mark a method on each task's headline metric, the mean over seeds; further right is better. The "
        "cross-encoder teacher and BM25 frame the methods and are not ranked with them. Scales differ between "
        "panels."
    ),
    "alt": (
        "Dot plot, a panel a kind of task and a line a task, with one mark for every method; the tables of this "
        "section hold the same numbers."
    ),
}


def draw(data: Data) -> Figure:
    """Draw a panel for each kind of task with a line for each task and for their average; marks are means over seeds,
    bars their range.
    """
    from matplotlib import pyplot

    scores = data.scores[data.scores["phenomenon"] == "all"]
    scores = scores[scores["metric"] == scores["task_type"].map(HEADLINE)]
    groups = [group for group in GROUP_TITLES if group in set(scores["group"])]
    rows = [scores.loc[scores["group"] == group, "task"].nunique() + 1.6 for group in groups]
    figure, axes = pyplot.subplots(
        len(groups), 1, figsize=(6.9, 0.34 * sum(rows) + 1.25), squeeze=False, gridspec_kw={"height_ratios": rows}
    )
    for axis, group in zip(axes[:, 0], groups, strict=True):
        _draw_panel(axis, scores[scores["group"] == group], group, data)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    columns = columns_of(labels)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, handletextpad=0.2, columnspacing=1.1)
    seeds = scores.loc[scores["method"].isin(data.context.methods), "seed"].nunique()
    many = f"mean of {seeds} seeds, bars from lowest to highest" if seeds > 1 else "one seed"
    note(
        figure,
        data,
        f"Tier {data.context.tier}, {'/'.join(sorted(set(scores['split'])))} split, {many}. Higher is better; scales "
        f"differ.{sampled(scores['task_title'])}",
    )
    return figure


def _draw_panel(axis: Axes, scores: pd.DataFrame, group: str, data: Data) -> None:
    titles = scores.drop_duplicates("task").set_index("task")["task_title"].map(in_short).sort_index()
    table = scores.pivot_table(index=["method", "seed"], columns="task", values="value")[titles.index]
    if len(titles) > 1:
        table[AVERAGE] = table.mean(axis=1)
        titles[AVERAGE] = AVERAGE_TITLE
    names = [*data.context.methods, *data.context.references]
    # The methods set the scale; a reference row far below them is named at the edge instead of squeezing them together.
    inner = table.loc[list(data.context.methods)]
    low, high = float(inner.min(axis=None)), float(table.max(axis=None))
    # Room at the left for the names of those beyond it.
    far = table.loc[list(data.context.references)].min(axis=None) < low - 0.06 * (high - low)
    low, high = low - (0.12 if far else 0.06) * (high - low), high + 0.03 * (high - low)
    for place, task in enumerate(table.columns):
        axis.axhspan(place - 0.42, place + 0.42, color=BAND if task != AVERAGE else BAND_AVERAGE, lw=0, zorder=0)
        for step, name in enumerate(names):
            values = table.loc[name, task]
            color, marker = look(name, data.context.methods, data.context.published)
            title = data.context.titles.get(name, name)
            label = title if place == 0 else None
            if name in data.context.references:
                if values.mean() < low:
                    axis.plot(low, place, "<", color=color, markersize=4, clip_on=False, zorder=2)
                    axis.annotate(
                        title + f" {values.mean():.2f}".replace("-", "−"),
                        (low, place + 0.29),
                        (1, 0),
                        textcoords="offset points",
                        va="center",
                        fontsize=7,
                        color=color,
                    )
                    axis.plot([], [], marker, color=color, label=label, linestyle="none", markersize=10)
                    continue
                axis.plot(
                    values.mean(),
                    place,
                    marker,
                    color=color,
                    label=label,
                    linestyle="none",
                    markersize=15 if marker == "|" else 9,
                    markeredgewidth=1.6,
                    zorder=2,
                )
                continue
            # Methods stand a little apart in height, so that equal scores do not hide each other.
            height = place + (step - (len(data.context.methods) - 1) / 2) * 0.11
            size = 5.5 if name == SUBJECT else 4.5
            axis.plot(
                values.mean(), height, marker, color=color, label=label, linestyle="none", markersize=size, zorder=4
            )
            if len(values) > 1:
                axis.plot([values.min(), values.max()], [height, height], color=color, linewidth=0.8, zorder=3)
    axis.set_xlim(low, high)
    axis.set_yticks(range(len(table.columns)), [titles[task] for task in table.columns])
    axis.set_ylim(len(table.columns) - 0.5, -0.5)
    axis.grid(False, axis="y")
    metric = scores["metric"].iloc[0]
    axis.set_title(f"{GROUP_TITLES[group]}: {METRIC_TITLES.get(metric, metric)}")
