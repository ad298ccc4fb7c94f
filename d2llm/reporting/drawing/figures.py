"""Renders a figure by name as PDF, SVG and PNG, from the collected files alone; no torch.

A figure is a module of `reporting/figures/`: a head (`config.catalogue`) and `draw(data) -> matplotlib Figure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.config.catalogue import entries
from d2llm.reporting.collected import Collected, collected, given
from d2llm.reporting.context import Context, context
from d2llm.reporting.style import CONTROLLED_TEXT
from d2llm.run.artifacts import atomic
from d2llm.run.errors import ConfigError
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from d2llm.config.schema import Config

# No dates and versions in the files: equal results, equal bytes.
FORMATS: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}
STYLE = Path(__file__).with_name("suite.mplstyle")


@dataclass(frozen=True)
class Data:
    """What figures are made of: the collected files a figure asks for (`READS`), its rows with titles, the settings."""

    collected: Collected
    context: Context
    config: Config

    @property
    def scores(self) -> pd.DataFrame:
        """Scores of the methods as configured, no variants."""
        scores = given(self.collected.scores, "scores")
        return scores[scores["variant"] == "base"]

    @property
    def curves(self) -> pd.DataFrame:
        """Losses and development scores of the methods as configured, no variants."""
        curves = given(self.collected.curves, "curves")
        return curves[curves["variant"] == "base"]

    @property
    def comparisons(self) -> pd.DataFrame:
        """The subject against every baseline."""
        return given(self.collected.comparisons, "comparisons")

    @property
    def runtime(self) -> pd.DataFrame:
        """Times of the configured methods and reference rows."""
        return given(self.collected.runtime, "runtime")


def run(config: Config, name: str) -> None:
    """Write `figures/<name>.pdf`, `.svg` and `.png`. Raises ConfigError for a figure nobody knows."""
    figures, paths = entries("figure"), Paths.of(config)
    if name not in figures:
        raise ConfigError(f"no figure named {name!r}; known: {', '.join(figures)}")
    also = (file for file in figures[name].also if getattr(paths, file).exists())
    data = Data(collected(paths, [*figures[name].reads, *also]), context(config), config)
    render(import_module(figures[name].module).draw, data, {ext: paths.figure(name, ext) for ext in FORMATS})


def render(draw: Callable[[Data], Figure], data: Data, files: dict[str, Path]) -> None:
    """Draw once in the suite's style and write every format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.style.context(STYLE):
        figure = draw(data)
        settle(figure)
        for ext, path in files.items():
            with atomic(path) as temporary:
                figure.savefig(temporary, format=ext, metadata=FORMATS[ext])
        pyplot.close(figure)


def settle(figure: Figure) -> None:
    """Lay out once for all formats, and to a millionth of the page: the last bits of a layout are not the same in every
    process.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(side, 6) for side in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def empty(message: str) -> Figure:
    """A figure that only says why there is nothing to show."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(6.9, 0.8))
    figure.text(0.5, 0.5, message, ha="center", va="center")
    return figure


# Characters of a legend's line, with what a mark takes.
LEGEND, MARK = 100, 5


def columns_of(labels: Sequence[str]) -> int:
    """How many of a legend's columns fit, each as wide as its longest label."""
    for columns in range(len(labels), 1, -1):
        rows, longer = divmod(len(labels), columns)  # matplotlib's columns: the first ones are longer by one
        ends = [rows * place + min(place, longer) for place in range(columns + 1)]
        widths = [max(map(len, labels[start:end])) + MARK for start, end in pairwise(ends)]
        if sum(widths) <= LEGEND:
            return columns
    return 1


def in_short(title: str) -> str:
    """A set's title as an axis has room for it; `sampled` says what the number is.

    >>> in_short("ATEC (sample of 600)")
    'ATEC (600)'
    """
    return title.replace(" (sample of ", " (")


def sampled(titles: Iterable[str]) -> str:
    """What a number in brackets after a title is; nothing where no title has one."""
    return (
        " In brackets behind a set: a sample of that many." if any("(sample of " in title for title in titles) else ""
    )


def note(figure: Figure, data: Data, text: str) -> None:
    """Write the line below a figure; every figure of a run on generated text says that it is one."""
    import textwrap

    if data.context.generated:
        text += f" {CONTROLLED_TEXT}"
    width = int(figure.get_figwidth() * 18.5)
    figure.supxlabel(textwrap.fill(text, width), fontsize=7, color="#444444", x=0.01, ha="left")
