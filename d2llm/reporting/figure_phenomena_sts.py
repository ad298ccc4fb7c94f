"""STS by phenomenon: AUC where pairs are alike or not, Spearman's correlation within a phenomenon where likeness is graded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.reporting import heatmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d2llm.reporting.figures import Data

BREAKDOWN = heatmap.Breakdown(
    task_type="sts",
    kind="STS",
    # Tasks of two targets have an AUC only, graded ones a correlation only; both scales run from chance to perfect.
    metrics={"auc": 0.5, "spearman": 0.0},
    labels={"auc": "AUC (0.5: chance)", "spearman": "Spearman\n(0: chance)"},
    said="Where pairs are alike or not: AUC of a phenomenon's pairs against all pairs of the other label. Where likeness is graded: "
    "Spearman's correlation of scores and targets within the phenomenon, whose targets span a part of the scale only.",
    counted="the pairs",
)


def draw(data: Data) -> Figure:
    """A heat map a task, phenomena by methods."""
    return heatmap.draw(data, BREAKDOWN)
