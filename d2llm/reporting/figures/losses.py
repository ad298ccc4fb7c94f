"""Training curves: every loss term of every method by update, the method's own pre-training before update 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from d2llm.reporting.drawing.figures import empty, note
from d2llm.reporting.style import TERM_TITLES, look, term_look
from d2llm.run.schemas import DEV, FINE_TUNING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 9
READS = ("curves",)
CAPTION = {
    "section": "training",
    "title": "Training curves",
    "text": "Every term of each method's loss over its updates, its own pre-training stages included.",
    "alt": "Small multiples of lines, a panel a method and stage.",
}

TOTAL = "loss"
# Logged steps in a running mean, of which each batch is of one data set; at the ends there are fewer.
WINDOW = 9


def draw(data: Data) -> Figure:
    """Draw a panel for each method with its terms and, where there are several, their sum: the mean over seeds, in a
    band from lowest to highest.
    """
    from matplotlib import pyplot

    curves = data.curves[data.curves["stage"] != DEV]
    methods = [name for name in data.context.methods if name in set(curves["method"])]
    if not methods:
        return empty("No method was trained.")
    columns = min(3, len(methods))
    rows = -(-len(methods) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(6.9, 2.05 * rows + 0.6), squeeze=False, sharex=True)
    for axis, method in zip(axes.flat, methods, strict=False):
        _draw_panel(axis, curves[curves["method"] == method], method, data)
    for axis in axes.flat[len(methods) :]:
        axis.set_visible(False)
    for place in range(columns):
        axis = axes[(len(methods) - 1 - place) // columns, place]
        axis.set_xlabel("update")
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("loss term")
    seeds = curves["seed"].nunique()
    many = f"mean of {seeds} seeds, bands from lowest to highest" if seeds > 1 else "one seed"
    text = (
        f"Tier {data.context.tier}, {many}. Running mean over {WINDOW} logged updates, of which each is one batch of "
        "one data set; weighted terms, logarithmic scales that differ."
    )
    if (curves["stage"] != FINE_TUNING).any():
        text += " Left of the dotted line: the method's own pre-training."
    note(figure, data, text)
    return figure


def _draw_panel(axis: Axes, curves: pd.DataFrame, method: str, data: Data) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    stages = list(dict.fromkeys(curves["stage"]))
    before = [stage for stage in stages if stage != FINE_TUNING]
    lengths = {stage: int(curves.loc[curves["stage"] == stage, "step"].max()) for stage in before}
    color, _ = look(method, list(data.context.methods))
    terms = list(dict.fromkeys(curves["name"]))
    labelled: set[str] = set()
    for stage in stages:
        of_stage = curves[curves["stage"] == stage]
        start = 0 if stage == FINE_TUNING else -sum(lengths[later] for later in before[before.index(stage) :])
        names = list(dict.fromkeys(of_stage["name"]))
        # The sum of a single term is that term.
        for name in [n for n in names if n != TOTAL or len(names) > 2]:
            table = of_stage[of_stage["name"] == name].pivot(index="step", columns="seed", values="value")
            table = table.apply(smooth)
            shade, line = (color, "-") if name == TOTAL else term_look(name, terms)
            label = None if name in labelled else TERM_TITLES.get(name, name)
            labelled.add(name)
            steps = table.index.to_numpy() + start
            axis.plot(
                steps,
                table.mean(axis=1),
                linestyle=line,
                color=shade,
                label=label,
                linewidth=1.8 if name == TOTAL else 1.1,
                zorder=2 if name == TOTAL else 3,
            )
            if table.shape[1] > 1:
                axis.fill_between(steps, table.min(axis=1), table.max(axis=1), color=shade, alpha=0.2, linewidth=0)
    if before:
        axis.axvline(0, color="#888888", linewidth=0.8, linestyle=":")
    axis.set_yscale("log")
    # Room below the title for the names of the lines.
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (high / low) ** (0.3 if len(labelled) > 2 else 0.16))
    # Plain numbers, and between powers of ten where there are few of those.
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 200 else (1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.legend(
        loc="upper right",
        ncols=2 if len(labelled) == 4 else 3,
        fontsize=7,
        handlelength=1.6,
        columnspacing=0.8,
        handletextpad=0.4,
        borderaxespad=0.1,
        labelspacing=0.2,
    )
    axis.set_title(data.context.titles.get(method, method))


def smooth(values: pd.Series) -> np.ndarray:
    """Centred running mean over WINDOW values; at the ends over those there are."""
    return values.rolling(WINDOW, center=True, min_periods=1).mean().to_numpy()
