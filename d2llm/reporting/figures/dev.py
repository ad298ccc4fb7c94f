"""Development curves: how good each method is while it trains, on a small sample of the dev sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.config.task_types import HEADLINE, METRIC_TITLES
from d2llm.reporting.collected import given
from d2llm.reporting.drawing.figures import empty, note
from d2llm.reporting.style import GROUP_TITLES, look
from d2llm.run.schemas import DEV, SUBJECT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 10
READS = ("curves", "scores")
SETTINGS = ("training.dev_sample",)
CAPTION = {
    "section": "training",
    "title": "Development curves",
    "text": "How good each method is while it trains, on a small fixed sample of development data.",
    "alt": "Panels of lines, a panel a kind of task and a line a method.",
}


def draw(data: Data) -> Figure:
    """Draw a panel for each kind of task with a line for each method: the mean over tasks and seeds, in a band from
    the lowest to the highest seed.
    """
    from matplotlib import pyplot

    tasks = given(data.collected.scores, "scores").drop_duplicates("task").set_index("task")
    curves = data.curves[(data.curves["stage"] == DEV) & data.curves["name"].isin(tasks.index)]
    if curves.empty:
        return empty("No development scores were measured in training (training.dev_every is 0).")
    curves = curves.assign(group=curves["name"].map(tasks["group"]))
    groups = [group for group in GROUP_TITLES if group in set(curves["group"])]
    methods = list(data.context.methods)
    figure, axes = pyplot.subplots(1, len(groups), figsize=(6.9, 2.9), squeeze=False)
    for axis, group in zip(axes[0], groups, strict=True):
        shown = curves[curves["group"] == group]
        whole = shown["name"].nunique()
        for method in methods:
            # A step at which a task was not defined has no mean that compares with the others.
            steps = shown[shown["method"] == method].groupby(["step", "seed"])["value"].agg(["mean", "size"])
            table = steps.loc[steps["size"] == whole, "mean"].unstack("seed")
            if table.empty:
                continue
            color, marker = look(method, methods)
            axis.plot(
                table.index,
                table.mean(axis=1),
                marker=marker,
                color=color,
                markersize=3.8 if method == SUBJECT else 3.2,
                label=data.context.titles.get(method, method),
                zorder=3 if method == SUBJECT else 2,
            )
            if table.shape[1] > 1:
                axis.fill_between(
                    table.index, table.min(axis=1), table.max(axis=1), color=color, alpha=0.15, linewidth=0
                )
        metric = HEADLINE[tasks.loc[shown["name"].iloc[0], "task_type"]]
        axis.set_title(f"{GROUP_TITLES[group]}: {METRIC_TITLES[metric]}")
        axis.set_xlabel("update")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(8, len(labels)), columnspacing=1.1)
    seeds = curves["seed"].nunique()
    many = f"mean of {seeds} seeds, bands from lowest to highest" if seeds > 1 else "one seed"
    size = data.config.training.dev_sample
    note(
        figure,
        data,
        f"Tier {data.context.tier}, dev split, {many}; mean over the tasks of a kind. Small fixed samples (at most "
        f"{size} pairs, or {max(1, size // 4)} queries over part of the passages): these numbers do not compare with "
        "those of the tables.",
    )
    return figure
