"""How closely students follow the teacher: D2LLM's score against the teacher's, and every method's rank correlation
with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.analysis.agreement import paired, spearman
from d2llm.reporting.collected import given
from d2llm.reporting.drawing.figures import empty, note
from d2llm.reporting.style import BAND, GROUP_TITLES, look
from d2llm.run.schemas import SUBJECT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 6
READS = ("scores", "predictions")
CAPTION = {
    "section": "breakdown",
    "title": "Agreement with the teacher",
    "text": (
        "Above: D2LLM's score against the teacher's on the same examples. Below: the rank correlation of every "
        "method's scores with the teacher's. Of the usual methods D2LLM alone has seen its scores of training pairs."
    ),
    "alt": (
        "Density plots, a panel a kind of task, rising from lower left to upper right where the two agree, and a "
        "dot plot of correlations."
    ),
}


def draw(data: Data) -> Figure:
    """Draw above the density for each kind of task, below a line for each task with marks of the methods, means over
    seeds.
    """
    from matplotlib import pyplot

    if "teacher" not in data.context.references:
        return empty("No agreement to show: this needs the teacher among the references.")
    names = [*data.context.methods, *data.context.references]
    predictions = given(data.collected.predictions, "predictions")
    shown = predictions["method"].isin(names)
    pairs = paired(predictions if shown.all() else predictions[shown])  # a study has millions of rows
    tasks = data.scores.drop_duplicates("task").set_index("task")[["group", "task_title"]].sort_index()
    groups = [group for group in GROUP_TITLES if group in set(tasks["group"])]
    shared = set(pairs["task"].unique())
    order = [task for group in groups for task in tasks.index[tasks["group"] == group] if task in shared]
    if not order:
        return empty("No agreement to show: no example was scored by the teacher and by a method.")

    figure = pyplot.figure(figsize=(6.9, 0.27 * len(order) + 3.35))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[2.15, 0.27 * len(order) + 0.8])[:, 0]
    subject = data.context.methods[-1]  # D2LLM where it is configured, else the last method
    of_subject = pairs[pairs["method"] == subject]
    of_subject = of_subject[of_subject["seed"] == of_subject["seed"].min()]
    _draw_densities(
        above, of_subject, {group: list(tasks.index[tasks["group"] == group]) for group in groups}, data, subject
    )
    _draw_correlations(below, spearman(pairs), order, tasks["task_title"], data)
    seeds = pairs.loc[pairs["method"].isin(data.context.methods), "seed"].nunique()
    many = f"above the first seed, below means over {seeds} seeds" if seeds > 1 else "one seed"
    note(
        figure,
        data,
        "Above: examples by the teacher's score (yes logit minus no logit) and "
        f"{data.context.titles.get(subject, subject)}'s; the darker, the more, on a log scale. Below: Spearman's rank "
        f"correlation of scores; {many}. Retrieval: only passages that both returned, of the teacher's candidates and "
        "a method's best, hence not the same for every method; the correlation is taken within a query and averaged "
        "over queries.",
    )
    return figure


def _draw_densities(
    figure: Figure, pairs: pd.DataFrame, tasks: dict[str, list[str]], data: Data, subject: str
) -> list[PolyCollection]:
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    drawn = []
    for axis, (group, names) in zip(axes, tasks.items(), strict=True):
        of_group = pairs[pairs["task"].isin(names)]
        axis.grid(False)
        axis.set_title(
            f"{GROUP_TITLES[group]} ({len(of_group):,} {'passages' if (of_group['doc_id'] != '').any() else 'pairs'})"
        )
        axis.set_xlabel(f"{data.context.titles.get(subject, subject)}'s score")
        if len(of_group):
            # Thousands of polygons would be a large file: an image inside the vector formats.
            drawn.append(
                axis.hexbin(
                    of_group["score"],
                    of_group["teacher"],
                    gridsize=36,
                    bins="log",
                    mincnt=1,
                    cmap="cividis_r",
                    linewidths=0.1,
                    rasterized=True,
                )
            )
    axes[0].set_ylabel("Teacher's score")
    return drawn


def _draw_correlations(figure: Figure, table: pd.DataFrame, order: list[str], titles: pd.Series, data: Data) -> Axes:
    axis = figure.subplots()
    names = [name for name in [*data.context.references, *data.context.methods] if name in table.index]
    for place, task in enumerate(order):
        axis.axhspan(place - 0.42, place + 0.42, color=BAND, lw=0, zorder=0)
        for step, name in enumerate(names):
            color, marker = look(name, data.context.methods, data.context.published)
            # A little apart in height, so that equal numbers do not hide each other.
            height = place + (step - (len(names) - 1) / 2) * 0.08
            label = data.context.titles.get(name, name) if place == 0 else None
            size = 5.5 if name == SUBJECT else 9 if name in data.context.references else 4.5
            axis.plot(
                table.loc[name].get(task),
                height,
                marker,
                color=color,
                label=label,
                linestyle="none",
                markersize=size,
                zorder=4,
            )
    axis.set_yticks(range(len(order)), [titles[task] for task in order])
    axis.set_ylim(len(order) - 0.5, -0.5)
    axis.grid(False, axis="y")
    axis.set_xlabel("Spearman's rank correlation with the teacher")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(8, len(labels)), handletextpad=0.2, columnspacing=1.1
    )
    return axis
