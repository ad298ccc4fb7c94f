"""How long embedding, scoring and searching take for a bi-encoder, D2LLM and the teacher (the paper's runtime
analysis).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from d2llm.reporting.drawing.figures import empty, note
from d2llm.reporting.style import duration, point, where
from d2llm.run.schemas import SUBJECT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 11
READS = ("runtime",)
CAPTION = {
    "section": "runtime",
    "title": "How long it takes",
    "text": (
        "Seconds to embed a text, to score a pair and to search a corpus of growing size, for a bi-encoder with "
        "cosine, D2LLM and the teacher that reads both texts. The paper's Figure 2."
    ),
    "alt": "Bars or points of times and lines of search time over corpus size, on logarithmic axes.",
}

ENCODING = {"encode_query": "Query", "encode_passage": "Passage"}


def draw(data: Data) -> Figure:
    """Draw three panels: seconds a text, seconds a pair, seconds a query against the size of the corpus. Open marks:
    extrapolated.
    """
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    times = data.runtime
    names = shown(data)
    if not names:
        return empty("No run times of D2LLM, a bi-encoder or the teacher.")
    figure, axes = pyplot.subplots(1, 3, figsize=(6.9, 3.0), gridspec_kw={"width_ratios": [1, 1, 1.7]})
    _draw_encoding(axes[0], times, names, data)
    _draw_scoring(axes[1], times, names, data)
    _draw_search(axes[2], times, names, data)
    handles = []
    for name in names:
        color, marker = point(name, data.context.methods, data.context.published)
        handles.append(Line2D([], [], color=color, marker=marker, label=_write_title(name, data)))
    again = times[(times["phase"] == "rerank") & times["method"].isin(names)]
    if len(again):
        color, marker = point("teacher", data.context.methods, data.context.published)
        label = f"Teacher re-ranking {int(again['batch'].iloc[0])}"
        handles.append(Line2D([], [], color=color, marker="1", linestyle=":", label=label))
    if times["extrapolated"].any():
        handles.append(
            Line2D([], [], color="#333333", marker="o", markerfacecolor="white", linestyle="--", label="extrapolated")
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.0, fontsize=7)
    note(figure, data, _write_note(times, names, data))
    return figure


def shown(data: Data) -> list[str]:
    """The first method whose index is its embeddings, D2LLM, and the teacher, as far as they were measured."""
    times = data.runtime
    plain = times[times["bytes_per_passage"].notna() & (times["bytes_per_passage"] == times["embedding_bytes"])]
    bi_encoders = [name for name in data.context.methods if name != SUBJECT and name in set(plain["method"])]
    return [name for name in [*bi_encoders[:1], SUBJECT, "teacher"] if name in set(times["method"])]


def _write_title(name: str, data: Data) -> str:
    title = data.context.titles.get(name, name)
    return title if name in (SUBJECT, "teacher") else f"{title} (bi-encoder)"


def _draw_encoding(axis: Axes, times: pd.DataFrame, names: list[str], data: Data) -> None:
    from matplotlib.ticker import LogLocator

    shown_times = times[times["phase"].isin(ENCODING) & times["method"].isin(names)]
    _draw_rows(
        axis,
        [(row, list(ENCODING).index(row.phase), names.index(row.method)) for row in shown_times.itertuples()],
        data,
    )
    labels = []
    for phase, title in ENCODING.items():
        batch = shown_times.loc[shown_times["phase"] == phase, "batch"]
        labels.append(
            f"{title}\n({'one at a time' if batch.max() == 1 else f'{batch.max()} at once'})" if len(batch) else title
        )
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    # The times of two bi-encoders are too close for decades alone.
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_title("Vectorisation")
    axis.set_xlabel("time per text")


def _draw_scoring(axis: Axes, times: pd.DataFrame, names: list[str], data: Data) -> None:
    shown_times = times[(times["phase"] == "score") & times["method"].isin(names)]
    _draw_rows(axis, [(row, names.index(row.method), 0) for row in shown_times.itertuples()], data)
    axis.set_yticks([])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_title("Scoring a pair")
    axis.set_xlabel("time per pair")


def _draw_rows(axis: Axes, places: list[tuple[Any, int, int]], data: Data) -> None:
    """Draw marks with bars from quartile to quartile, the number beside; `places`: a measurement, its line, its place
    within.
    """
    for row, line, step in places:
        color, marker = point(row.method, data.context.methods, data.context.published)
        height = line + 0.3 * step - (0.15 if step or len({s for *_, s in places}) > 1 else 0)
        axis.plot([row.q1, row.q3], [height, height], color=color, linewidth=1.1)
        axis.plot(row.median, height, marker, color=color)
        axis.annotate(
            duration(row.median),
            (row.median, height),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=color,
        )
    axis.grid(False, axis="y")
    axis.set_xscale("log")
    axis.margins(x=0.25)
    axis.xaxis.set_major_formatter(lambda value, _: duration(value))
    axis.xaxis.set_minor_formatter("")


def _draw_search(axis: Axes, times: pd.DataFrame, names: list[str], data: Data) -> None:
    for phase, style in (("search", "-"), ("rerank", ":")):
        for name in names:
            shown_times = times[(times["phase"] == phase) & (times["method"] == name)].sort_values("corpus")
            if shown_times.empty:
                continue
            color, marker = point(name, data.context.methods, data.context.published)
            marker = marker if phase == "search" else "1"
            measured, extrapolated = shown_times[~shown_times["extrapolated"]], shown_times[shown_times["extrapolated"]]
            axis.fill_between(
                shown_times["corpus"], shown_times["q1"], shown_times["q3"], color=color, alpha=0.2, linewidth=0
            )
            axis.plot(measured["corpus"], measured["median"], style, color=color, marker=marker)
            if len(extrapolated):
                # From the last measured point on; that point itself is drawn above.
                line = shown_times[shown_times["corpus"] >= measured["corpus"].max()] if len(measured) else shown_times
                axis.plot(line["corpus"], line["median"], "--", color=color, zorder=1.9)
                axis.plot(extrapolated["corpus"], extrapolated["median"], marker, color=color, markerfacecolor="white")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title("Searching a corpus")
    axis.set_xlabel("passages")
    axis.set_ylabel("time per query")
    axis.yaxis.set_major_formatter(lambda value, _: duration(value))
    axis.xaxis.set_major_formatter("{x:,.0f}")


def _write_note(times: pd.DataFrame, names: list[str], data: Data) -> str:
    batch = times.loc[times["phase"] == "score", "batch"].max()
    searched = times[(times["phase"] == "search") & times["method"].isin(names)].drop_duplicates("method")
    sizes = [
        f"{data.context.titles.get(row.method, row.method)} {row.bytes_per_passage:,.0f} bytes a passage (its "
        f"embedding alone: {row.embedding_bytes:,.0f})"
        for row in searched.itertuples()
        if row.bytes_per_passage == row.bytes_per_passage
    ]
    text = (
        f"Medians; bars and bands from first to third quartile; {where(times)}. Pairs: one query with {batch} "
        "passages, given vectors (the teacher reads both texts). A search embeds the query, scores every passage and "
        "keeps the best 10. "
    )
    if sizes:
        text += f"Index: {'; '.join(sizes)}. "
    if times["extrapolated"].any():
        text += "Open marks are extrapolated from the pairs read per second. "
    return text + "Times are of this machine and these models; compare ratios and slopes, not seconds."
