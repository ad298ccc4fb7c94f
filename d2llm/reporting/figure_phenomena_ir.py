"""Retrieval by phenomenon: the mean reciprocal rank over the queries of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.evaluation.headline import HEADLINE
from d2llm.reporting import heatmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d2llm.reporting.figures import Data

BREAKDOWN = heatmap.Breakdown(
    task_type="retrieval",
    kind="retrieval",
    metrics={HEADLINE["retrieval"]: None},
    labels={},
    said="MRR@10 over the queries of a phenomenon; the teacher re-ranks candidates only.",
    counted="the queries",
)


def draw(data: Data) -> Figure:
    """A heat map a task, phenomena by methods."""
    return heatmap.draw(data, BREAKDOWN)
