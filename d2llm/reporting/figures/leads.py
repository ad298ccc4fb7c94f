"""How far the subject (D2LLM as a rule) is ahead of, or behind, each baseline on each task, with its confidence
interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.config.task_types import METRIC_TITLES
from d2llm.reporting.drawing.figures import empty, in_short, note, sampled
from d2llm.reporting.style import AVERAGE_TITLE, BAND, BAND_AVERAGE, GROUP_TITLES, look
from d2llm.run.schemas import AVERAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 2
READS = ("scores", "comparisons")
CAPTION = {
    "section": "claims",
    "title": "{subject}'s lead over each baseline",
    "text": (
        "{subject}'s score minus each baseline's, with its confidence interval. Right of zero {subject} is ahead. "
        "Filled marks are significant after correction over all that is tested (the strongest baseline of each kind of task, of several trainings), open ones are not."
    ),
    "alt": (
        "Interval plot of {subject} minus each baseline on every task and on the average of each kind of task; the"
        " strongest baseline's row is in the table at the top of the report."
    ),
}


# Sets of a panel, and characters of a title, that leave room for panels side by side.
SETS, CHARACTERS = 4, 10


def _make_panels(counts: list[int], longest: int) -> tuple[Figure, list[Axes]]:
    """A panel a kind of task: side by side where titles and sets are few, else below each other."""
    from matplotlib import pyplot

    if max(counts) <= SETS and longest <= CHARACTERS:
        figure, axes = pyplot.subplots(1, len(counts), figsize=(6.9, 3.6), squeeze=False)
        return figure, list(axes[0])
    heights = [count + 1.2 for count in counts]
    size = (6.9, 0.42 * sum(heights) + 1.1)
    figure, axes = pyplot.subplots(len(counts), 1, figsize=size, squeeze=False, gridspec_kw={"height_ratios": heights})
    return figure, list(axes[:, 0])


def draw(data: Data) -> Figure:
    """Draw a panel for each kind of task. Filled marks are significant after correction, open ones are not."""
    from matplotlib.lines import Line2D

    comparisons = data.comparisons
    if not len(comparisons):
        return empty(
            f"Nothing to compare: this needs {data.config.statistics.subject} and a baseline among the methods."
        )
    own = data.scores.drop_duplicates("task").set_index("task")["task_title"]
    titles = own.map(in_short).to_dict() | {AVERAGE: AVERAGE_TITLE}
    groups = [group for group in GROUP_TITLES if group in set(comparisons["group"])]
    baselines = [name for name in data.context.methods if name in set(comparisons["baseline"])]
    counts = [comparisons.loc[comparisons["group"] == group, "task"].nunique() for group in groups]
    figure, axes = _make_panels(counts, max(map(len, titles.values())))
    for axis, group in zip(axes, groups, strict=True):
        shown = comparisons[comparisons["group"] == group]
        tasks = [*sorted(set(shown["task"]) - {AVERAGE}), *({AVERAGE} & set(shown["task"]))]
        axis.axvline(0, color="#333333", linewidth=0.8, zorder=1)
        for place, task in enumerate(tasks):
            axis.axhspan(place - 0.42, place + 0.42, color=BAND if task != AVERAGE else BAND_AVERAGE, lw=0, zorder=0)
            for step, name in enumerate(baselines):
                row = shown[(shown["task"] == task) & (shown["baseline"] == name)].iloc[0]
                color, marker = look(name, data.context.methods)
                height = place + (step - (len(baselines) - 1) / 2) * 0.15
                fill = color if row["p_holm"] < 1 - data.context.level else "white"
                axis.plot([row["low"], row["high"]], [height, height], color=color, linewidth=1.1, zorder=2)
                axis.plot(row["difference"], height, marker, color=color, markerfacecolor=fill, markersize=4, zorder=3)
        axis.set_yticks(range(len(tasks)), [titles[task] for task in tasks])
        axis.set_ylim(len(tasks) - 0.5, -0.5)
        axis.grid(False, axis="y")
        metric = shown["metric"].iloc[0]
        axis.set_title(f"{GROUP_TITLES.get(group, group)}: {METRIC_TITLES.get(metric, metric)}")
    handles = [
        Line2D(
            [],
            [],
            color=look(name, data.context.methods)[0],
            marker=look(name, data.context.methods)[1],
            label=data.context.titles.get(name, name),
        )
        for name in baselines
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4)
    tested = int(comparisons["p_holm"].notna().sum())
    seeds, subject = int(comparisons["seeds"].iloc[0]), data.context.subject
    note(
        figure,
        data,
        f"{subject} minus the baseline; right of 0 {subject} is better. Bars: {data.context.level:.0%} intervals, "
        "paired bootstrap over "
        f"examples{' and spread of seeds' if seeds > 1 else '; one seed, so the spread of training is not in them'}. "
        + (
            f"Filled marks: significant after Holm's correction over {tested} comparisons."
            if tested
            else "Nothing is tested."
        )
        + sampled(own),
    )
    return figure
