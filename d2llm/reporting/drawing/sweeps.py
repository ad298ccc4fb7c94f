"""Panels of the sweep figures (the paper's Figures 3 and 4): a score against one setting of D2LLM, all others as
configured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from d2llm.config.task_types import HEADLINE, METRIC_TITLES
from d2llm.config.validation import at
from d2llm.config.values import plain
from d2llm.reporting.collected import given
from d2llm.reporting.drawing.figures import empty, note
from d2llm.reporting.style import AVERAGE_TITLE, GROUP_TITLES
from d2llm.run.schemas import SUBJECT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

SYMBOLS = {"alpha": "α (RI-PHN)", "beta": "β (RI-EHN)", "gamma": "γ (FI)"}
# Lines of tasks, in their order; the average is black.
LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "P"))


def draw_group(data: Data, group: str) -> Figure:
    """Draw a panel for each swept setting, with a line for each task of the group and, of three tasks and more, one for
    their average.
    """
    from matplotlib import pyplot

    axes_of = data.config.sweeps.get(SUBJECT, {}) if "sweeps" in data.config.include else {}
    scores = given(data.collected.scores, "scores")
    shown = scores[(scores["method"] == SUBJECT) & (scores["group"] == group) & (scores["phenomenon"] == "all")]
    shown = shown[shown["metric"] == shown["task_type"].map(HEADLINE)]
    if not axes_of or shown.empty:
        return empty(
            "Nothing was swept: this needs sweeps of d2llm in the config, `sweeps` in its key `include`, and a task "
            "of this kind."
        )
    figure, axes = pyplot.subplots(1, len(axes_of), figsize=(6.9, 2.7), squeeze=False, sharey=True)
    for axis, (key, values) in zip(axes[0], axes_of.items(), strict=True):
        panel(axis, shown, data, key, values)
    metric = shown["metric"].iloc[0]
    axes[0, 0].set_ylabel(f"{GROUP_TITLES.get(group, group)}: {METRIC_TITLES.get(metric, metric)}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)))
    swept, seeds = data.config.seeds_of_variants(), data.config.seeds
    text = (
        f"Tier {data.context.tier}, {'/'.join(sorted(set(shown['split'])))} split. One setting at a time; filled: as "
        "configured. "
    )
    text += f"Mean of {len(swept)} seeds, bars from lowest to highest. " if len(swept) > 1 else f"Seed {swept[0]}. "
    if len(seeds) > 1:
        text += (
            f"Bands: mean ± one standard deviation of the configured D2LLM over {len(seeds)} seeds; two points whose "
            "distance is small beside a band may differ by the luck of training alone."
        )
    note(figure, data, text)
    return figure


def panel(axis: Axes, scores: pd.DataFrame, data: Data, key: str, values: list[Any]) -> None:
    """Draw one swept setting. Its values stand at equal distances, as they lie on a logarithmic scale with 0 added."""
    points = data.config.points()
    owners = [points[SUBJECT, f"{key}={plain(value)}"][1] for value in values]
    configured = at(data.config.recipe(SUBJECT).model_dump(), tuple(key.split(".")))
    titles = scores.drop_duplicates("task").set_index("task")["task_title"].sort_index().to_dict()
    lines = {title: curve(scores, [task], owners, data.config.seeds_of_variants()) for task, title in titles.items()}
    centre = {
        title: scores[(scores["variant"] == "base") & (scores["task"] == task)].set_index("seed")["value"]
        for task, title in titles.items()
    }
    if len(titles) > 2:
        lines[AVERAGE_TITLE] = curve(scores, list(titles), owners, data.config.seeds_of_variants())
        centre[AVERAGE_TITLE] = scores[scores["variant"] == "base"].groupby("seed")["value"].mean()
    places = range(len(values))
    for number, (title, table) in enumerate(lines.items()):
        color, marker = ("#000000", "D") if title == AVERAGE_TITLE else LOOKS[number % len(LOOKS)]
        mean = table.mean(axis=1)
        axis.plot(
            places, mean, color=color, marker=marker, markerfacecolor="white", label=title, markersize=4.5, zorder=3
        )
        if table.shape[1] > 1:
            axis.vlines(places, table.min(axis=1), table.max(axis=1), color=color, linewidth=0.8, zorder=2)
        if configured in values:
            place = values.index(configured)
            axis.plot(place, mean.iloc[place], marker, color=color, markersize=5.5, zorder=4)
        if len(centre[title]) > 1:
            middle, spread = centre[title].mean(), centre[title].std(ddof=1)
            axis.axhspan(middle - spread, middle + spread, color=color, alpha=0.1, linewidth=0, zorder=1)
    axis.set_xticks(places, [plain(value) for value in values])
    axis.set_xlim(-0.4, len(values) - 0.6)
    axis.set_title(SYMBOLS.get(key, key))
    axis.grid(False, axis="x")


def curve(scores: pd.DataFrame, tasks: list[str], owners: list[str], seeds: list[int]) -> pd.DataFrame:
    """(point, seed) scores: the mean over the tasks of the run that stands for each point."""
    used = scores[scores["task"].isin(tasks) & scores["seed"].isin(seeds)]
    table = used.groupby(["variant", "seed"])["value"].mean().unstack("seed")
    return table.reindex(owners)
