"""Quality against latency: what each method finds, and how long a query takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from d2llm.config.task_types import HEADLINE, METRIC_TITLES
from d2llm.reporting.drawing.figures import empty, note
from d2llm.reporting.style import duration, point, where
from d2llm.run.schemas import SUBJECT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 12
READS = ("scores", "runtime")
CAPTION = {
    "section": "runtime",
    "title": "Quality against latency",
    "text": "Mean reciprocal rank on retrieval against the time of a whole search; upper left is better.",
    "alt": "Scatter plot, a point a method.",
}

METRIC = HEADLINE["retrieval"]
# How a row ranks passages where its quality was measured: the teacher re-ranks candidates, it cannot read a corpus.
PHASES = {"teacher": "rerank"}
# Between the middles of two labels, in points.
GAP = 9.5
# A label stands above the bar of its mark, in points.
RISE = 5.0


def draw(data: Data) -> Figure:
    """Draw a labelled mark for each method, teacher and BM25, with bars from first to third quartile of the time."""
    from matplotlib import pyplot

    measured = table(data)
    if measured.empty:
        return empty("No retrieval scores and run times of the same method.")
    figure, axis = pyplot.subplots(figsize=(6.9, 3.2))
    for row in measured.itertuples():
        color, marker = point(row.method, data.context.methods, data.context.published)
        axis.plot([row.q1, row.q3], [row.quality, row.quality], color=color, linewidth=1.1)
        axis.plot(row.median, row.quality, marker, color=color, markersize=6 if row.method == SUBJECT else 5)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: duration(value))
    axis.xaxis.set_minor_formatter("")
    axis.margins(x=0.12, y=0.12)
    axis.set_xlabel(f"time per query, corpus of {measured['corpus'].iloc[0]:,} passages")
    axis.set_ylabel(f"{METRIC_TITLES[METRIC]}, mean of {measured['tasks'].iloc[0]} retrieval sets")
    note(figure, data, _write_note(measured, data))
    titles = {name: data.context.titles.get(name, name).split(" (")[0] for name in measured["method"]}
    titles |= {
        row.method: f"{titles[row.method]} (re-ranks {row.batch})"
        for row in measured.itertuples()
        if row.phase == "rerank"
    }
    colors = {name: point(name, data.context.methods, data.context.published)[0] for name in measured["method"]}
    _write_labels(
        figure,
        axis,
        [(row.median, row.quality, titles[row.method], colors[row.method]) for row in measured.itertuples()],
    )
    return figure


def table(data: Data) -> pd.DataFrame:
    """A row a method or reference row with both numbers: quality, and times at the largest corpus measured for all of
    them.
    """
    scores = data.scores
    scores = scores[
        (scores["task_type"] == "retrieval") & (scores["phenomenon"] == "all") & (scores["metric"] == METRIC)
    ]
    quality = scores.groupby(["method", "seed"])["value"].mean().groupby("method").mean()
    names = [name for name in [*data.context.methods, *data.context.references] if name in quality.index]
    times = data.runtime
    times = times[
        (times["phase"] == times["method"].map(lambda name: PHASES.get(name, "search"))) & ~times["extrapolated"]
    ]
    times = times[times["method"].isin(names)]
    shared = times.groupby("corpus")["method"].nunique()
    shared = shared[shared == times["method"].nunique()]
    if shared.empty:
        return times.iloc[:0]
    times = times[times["corpus"] == shared.index.max()]
    return times.assign(quality=times["method"].map(quality), tasks=scores["task"].nunique()).reset_index(drop=True)


def _write_labels(figure: Figure, axis: Axes, points: list[tuple[float, float, str, str]]) -> None:
    """Names beside their marks, pushed apart where they would overlap, each with a line to its mark when it had to
    move.
    """
    figure.draw_without_rendering()  # settles the layout, so that distances on the page are known
    scale = 72 / figure.dpi
    placed: list[tuple[float, float, float]] = []  # left, right, middle of a label, in points
    for x, y, title, color in sorted(points, key=lambda spot: -spot[1]):
        left, middle = axis.transData.transform((x, y)) * scale
        left += 7
        right = left + 4.6 * len(title) + 4
        target = middle + RISE
        # Downwards past every label in the way; those above were placed first.
        while clash := [
            at for low, high, at in placed if low < right and left < high and abs(at - target) < GAP - 1e-6
        ]:
            target = min(clash) - GAP
        placed.append((left, right, target))
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
        axis.annotate(
            title,
            (x, y),
            (7, target - middle),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=color,
            arrowprops=arrow if target < middle + RISE else None,
        )


def _write_note(measured: pd.DataFrame, data: Data) -> str:
    text = (
        "Up and to the left is better. Median time of a whole search (embed the query, score every passage, keep the "
        f"best 10), bars from first to third quartile; {where(measured)}, one query at a time. Quality is measured on "
        "the retrieval sets' own corpora, whatever the size timed. "
    )
    if "teacher" in set(measured["method"]):
        count = int(measured.loc[measured["method"] == "teacher", "batch"].iloc[0])
        text += f"The teacher re-ranks {count} candidates, finding them included"
        whole = data.runtime[(data.runtime["method"] == "teacher") & (data.runtime["phase"] == "search")]
        whole = whole[whole["corpus"] == measured["corpus"].iloc[0]]
        if len(whole):
            guessed = " (extrapolated)" if whole["extrapolated"].iloc[0] else ""
            text += f"; reading the whole corpus would take {duration(whole['median'].iloc[0])}{guessed}"
        text += ". "
    return text + "Times are of this machine and these models; compare ratios, not seconds."
