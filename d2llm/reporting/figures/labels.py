"""What labels are worth: scores of variants against the number of labelled queries, wrong positives and false
negatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from d2llm.config.recipes import LabelSettings
from d2llm.config.task_types import HEADLINE, METRIC_TITLES
from d2llm.config.values import canonical, plain
from d2llm.reporting.collected import given
from d2llm.reporting.drawing.figures import empty, note
from d2llm.reporting.style import GROUP_TITLES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 14
READS = ("scores", "about")
SETTINGS = (
    "variants",
    "sweeps",
    "include",
    "seeds",
    "variant_seeds",
    "methods",
    "points",
    "training.labels",
    "training.pack",
)
CAPTION = {
    "section": "sweep",
    "title": "What labels are worth",
    "text": (
        "Scores of variants that differ in nothing but how much, or how rightly, they are told of their training pairs: "
        "the number of labelled queries, the share of wrong positives, the share of queries with a false negative."
    ),
    "alt": "Panels of lines, a row a setting of labels and a column a kind of task; a line a series of variants.",
}
# What each key of `labels` is called on its axis.
AXES = {
    "share": "labelled queries",
    "noise": "wrong positives, of labelled queries",
    "false_negatives": "queries with a false negative, of those with a second positive",
}
LOOKS = (
    *(("#D55E00", "D"), ("#0072B2", "o"), ("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "P")),
    *(("#56B4E9", "s"), ("#332288", "X"), ("#7F7F7F", "h")),
)


class Series(NamedTuple):
    """A line: its title, and the training behind each value of its setting, as (method, variant)."""

    title: str
    points: dict[float, tuple[str, str]]


def draw(data: Data) -> Figure:
    """Draw a row of panels for each setting that at least three trainings differ in, a panel a kind of task."""
    from matplotlib import pyplot

    scores = given(data.collected.scores, "scores")
    shown = scores[(scores["phenomenon"] == "all") & (scores["metric"] == scores["task_type"].map(HEADLINE))]
    drawn = {key: lines for key in AXES if (lines := series(data, key))}
    groups = [group for group in GROUP_TITLES if group in set(shown["group"])]
    if not drawn or not groups:
        return empty("No variants of this run differ in their labels alone (`labels` of their settings).")
    titles = dict.fromkeys(line.title for lines in drawn.values() for line in lines)
    looks = {title: LOOKS[place % len(LOOKS)] for place, title in enumerate(titles)}
    height = 0.9 + 2.1 * len(drawn)
    figure, axes = pyplot.subplots(len(drawn), len(groups), figsize=(6.9, height), squeeze=False)
    for row, (key, lines) in zip(axes, drawn.items(), strict=True):
        for axis, group in zip(row, groups, strict=True):
            own = shown[shown["group"] == group]
            for line in lines:
                panel(axis, own, line, data, key, looks[line.title])
            axis.set_title(f"{GROUP_TITLES[group]}: {METRIC_TITLES[own['metric'].iloc[0]]}")
        row[len(groups) // 2].set_xlabel(AXES[key])
    handles = dict(pair for axis in axes.flat for pair in zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2)
    seeds = data.config.seeds_of_variants()
    many = f"mean of {len(seeds)} seeds, bars from lowest to highest" if len(seeds) > 1 else f"seed {seeds[0]}"
    split = "/".join(sorted(set(shown["split"])))
    note(
        figure,
        data,
        f"Tier {data.context.tier}, {split} split, {many}; mean over the tasks of a kind. All trainings take as many updates.",
    )
    return figure


def series(data: Data, key: str) -> list[Series]:
    """The lines of a setting: trainings whose recipes are the same but for it, at three values of it at least."""
    config, lines = data.config, dict[str, Series]()
    owners = {(method, "base"): (method, "base") for method in config.methods} | config.points()
    for (method, name), owner in owners.items():
        recipe: dict[str, Any] = config.recipe(method, name).model_dump(mode="json")
        value = recipe["labels"].pop(key)
        line = lines.setdefault(canonical([method, recipe]), Series(named(data, method, name, key), {}))
        line.points.setdefault(value, owner)
    return [line for line in lines.values() if len(line.points) > 2]


def named(data: Data, method: str, name: str, key: str) -> str:
    """A line's title: that of its first training, whose last words, behind a comma, tell the setting where it is not
    the usual one.
    """
    own, variants = data.context.label(method), data.config.variants
    if name == "base":
        return own
    title = variants[name].title if name in variants and variants[name].title else name
    usual = LabelSettings.model_fields[key].default
    labels: Any = data.config.recipe(method, name).labels
    whole = getattr(labels, key) == usual or ", " not in title
    return f"{own}, {title if whole else title.rpartition(', ')[0]}"


def panel(axis: Axes, scores: pd.DataFrame, line: Series, data: Data, key: str, look: tuple[str, str]) -> None:
    """Draw one line: means over tasks, then seeds."""
    values = sorted(line.points)
    tables = []
    for value in values:
        method, variant = line.points[value]
        own = scores[(scores["method"] == method) & (scores["variant"] == variant)]
        tables.append(own[own["seed"].isin(data.config.seeds_of_variants())].groupby("seed")["value"].mean())
    places = [queries(data, value) for value in values] if key == "share" else values
    color, marker = look
    means = [table.mean() for table in tables]
    axis.plot(places, means, color=color, marker=marker, markersize=3.8, label=line.title)
    axis.vlines(
        places, [table.min() for table in tables], [table.max() for table in tables], color=color, linewidth=0.8
    )
    if key == "share":
        axis.set_xscale("log", base=2)
    axis.set_xticks(places, [f"{place:,}" if key == "share" else plain(place) for place in places], rotation=30)
    axis.minorticks_off()


def queries(data: Data, share: float) -> int:
    """How many queries are labelled: of every data set whole packs; per thousand where the run's record is not there."""
    labels = LabelSettings(share=share)
    report, pack = given(data.collected.about, "about").get("negatives"), data.config.training.pack
    if not report:
        return round(1000 * share)
    return pack * sum(labels.labelled(one["queries"] // pack) for one in report.values())
