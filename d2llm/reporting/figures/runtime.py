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
    """Three panels: seconds a text, seconds a pair, seconds a query against the size of the corpus. Open marks:
    extrapolated.
    """
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    found = data.runtime
    names = shown(data)
    if not names:
        return empty("No run times of D2LLM, a bi-encoder or the teacher.")
    figure, axes = pyplot.subplots(1, 3, figsize=(6.9, 3.0), gridspec_kw={"width_ratios": [1, 1, 1.7]})
    _encoding(axes[0], found, names, data)
    _scoring(axes[1], found, names, data)
    _search(axes[2], found, names, data)
    handles = []
    for name in names:
        color, marker = point(name, data.context.methods)
        handles.append(Line2D([], [], color=color, marker=marker, label=_title(name, data)))
    again = found[(found["phase"] == "rerank") & found["method"].isin(names)]
    if len(again):
        color, marker = point("teacher", data.context.methods)
        label = f"Teacher re-ranking {int(again['batch'].iloc[0])}"
        handles.append(Line2D([], [], color=color, marker="1", linestyle=":", label=label))
    if found["extrapolated"].any():
        handles.append(
            Line2D([], [], color="#333333", marker="o", markerfacecolor="white", linestyle="--", label="extrapolated")
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.0, fontsize=7)
    note(figure, data, _said(found, names, data))
    return figure


def shown(data: Data) -> list[str]:
    """The first method whose index is its embeddings, D2LLM, and the teacher, as far as they were measured."""
    found = data.runtime
    plain = found[found["bytes_per_passage"].notna() & (found["bytes_per_passage"] == found["embedding_bytes"])]
    bi_encoders = [name for name in data.context.methods if name != SUBJECT and name in set(plain["method"])]
    return [name for name in [*bi_encoders[:1], SUBJECT, "teacher"] if name in set(found["method"])]


def _title(name: str, data: Data) -> str:
    title = data.context.titles.get(name, name)
    return title if name in (SUBJECT, "teacher") else f"{title} (bi-encoder)"


def _encoding(axis: Axes, found: pd.DataFrame, names: list[str], data: Data) -> None:
    from matplotlib.ticker import LogLocator

    own = found[found["phase"].isin(ENCODING) & found["method"].isin(names)]
    _rows(axis, [(row, list(ENCODING).index(row.phase), names.index(row.method)) for row in own.itertuples()], data)
    labels = []
    for phase, title in ENCODING.items():
        batch = own.loc[own["phase"] == phase, "batch"]
        labels.append(
            f"{title}\n({'one at a time' if batch.max() == 1 else f'{batch.max()} at once'})" if len(batch) else title
        )
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    # The times of two bi-encoders are too close for decades alone.
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_title("Vectorisation")
    axis.set_xlabel("time per text")


def _scoring(axis: Axes, found: pd.DataFrame, names: list[str], data: Data) -> None:
    own = found[(found["phase"] == "score") & found["method"].isin(names)]
    _rows(axis, [(row, names.index(row.method), 0) for row in own.itertuples()], data)
    axis.set_yticks([])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_title("Scoring a pair")
    axis.set_xlabel("time per pair")


def _rows(axis: Axes, places: list[tuple[Any, int, int]], data: Data) -> None:
    """Marks with bars from quartile to quartile, the number beside; `places`: a measurement, its line, its place
    within.
    """
    for row, line, step in places:
        color, marker = point(row.method, data.context.methods)
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


def _search(axis: Axes, found: pd.DataFrame, names: list[str], data: Data) -> None:
    for phase, style in (("search", "-"), ("rerank", ":")):
        for name in names:
            own = found[(found["phase"] == phase) & (found["method"] == name)].sort_values("corpus")
            if own.empty:
                continue
            color, marker = point(name, data.context.methods)
            marker = marker if phase == "search" else "1"
            known, guessed = own[~own["extrapolated"]], own[own["extrapolated"]]
            axis.fill_between(own["corpus"], own["q1"], own["q3"], color=color, alpha=0.2, linewidth=0)
            axis.plot(known["corpus"], known["median"], style, color=color, marker=marker)
            if len(guessed):
                # From the last measured point on; that point itself is drawn above.
                line = own[own["corpus"] >= known["corpus"].max()] if len(known) else own
                axis.plot(line["corpus"], line["median"], "--", color=color, zorder=1.9)
                axis.plot(guessed["corpus"], guessed["median"], marker, color=color, markerfacecolor="white")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title("Searching a corpus")
    axis.set_xlabel("passages")
    axis.set_ylabel("time per query")
    axis.yaxis.set_major_formatter(lambda value, _: duration(value))
    axis.xaxis.set_major_formatter("{x:,.0f}")


def _said(found: pd.DataFrame, names: list[str], data: Data) -> str:
    batch = found.loc[found["phase"] == "score", "batch"].max()
    searched = found[(found["phase"] == "search") & found["method"].isin(names)].drop_duplicates("method")
    sizes = [
        f"{data.context.titles.get(row.method, row.method)} {row.bytes_per_passage:,.0f} bytes a passage (its embedding alone: {row.embedding_bytes:,.0f})"
        for row in searched.itertuples()
        if row.bytes_per_passage == row.bytes_per_passage
    ]
    said = (
        f"Medians; bars and bands from first to third quartile; {where(found)}. Pairs: one query with {batch} passages, "
        "given vectors (the teacher reads both texts). A search embeds the query, scores every passage and keeps the best 10. "
    )
    if sizes:
        said += f"Index: {'; '.join(sizes)}. "
    if found["extrapolated"].any():
        said += "Open marks are extrapolated from the pairs read per second. "
    return said + "Times are of this machine and these models; compare ratios and slopes, not seconds."
