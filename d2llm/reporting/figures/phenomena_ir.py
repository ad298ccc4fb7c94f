"""Retrieval by phenomenon: the mean reciprocal rank over the queries of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.config.task_types import HEADLINE
from d2llm.reporting.drawing import heatmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 5
READS = ("scores",)
CAPTION = {
    "section": "breakdown",
    "title": "Retrieval by phenomenon",
    "text": "Mean reciprocal rank of the right passage over the queries of one phenomenon.",
    "alt": ("Heat map, a panel a task, with a row a phenomenon and a column a method; every cell shows its number."),
    "files": ("Groups are of queries: by a column, by length, by the words shared with the right passage."),
}

BREAKDOWN = heatmap.Breakdown(
    task_type="retrieval",
    kind="retrieval",
    metrics={HEADLINE["retrieval"]: None},
    labels={},
    note="MRR@10 over the queries of a phenomenon; the teacher re-ranks candidates only.",
    counted="the queries",
)


def draw(data: Data) -> Figure:
    """Draw a heat map for each task, phenomena by methods."""
    return heatmap.draw(data, BREAKDOWN)
