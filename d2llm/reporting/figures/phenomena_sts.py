"""STS by phenomenon: AUC where pairs are alike or not, Spearman's correlation within a phenomenon where likeness is
graded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.reporting.drawing import heatmap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 4
READS = ("scores",)
CAPTION = {
    "section": "breakdown",
    "title": "Similarity by phenomenon",
    "text": (
        "How well each method orders the pairs of one phenomenon: area under the ROC curve where the truth is same"
        " or different, Spearman's rank correlation within the phenomenon where it is graded."
    ),
    "alt": ("Heat map, a panel a task, with a row a phenomenon and a column a method; every cell shows its number."),
    "files": ("Groups of the data (by a column, by word overlap, length or negation) are measured each by itself."),
}

BREAKDOWN = heatmap.Breakdown(
    task_type="sts",
    kind="STS",
    # Tasks of two targets have an AUC only, graded ones a correlation only; both scales run from chance to perfect.
    metrics={"auc": 0.5, "spearman": 0.0},
    labels={"auc": "AUC (0.5: chance)", "spearman": "Spearman\n(0: chance)"},
    note="Where pairs are alike or not: AUC of a phenomenon's pairs against all pairs of the other label. Where "
    "likeness is graded: Spearman's correlation of scores and targets within the phenomenon, whose targets span "
    "a part of the scale only.",
    counted="the pairs",
)


def draw(data: Data) -> Figure:
    """Draw a heat map for each task, phenomena by methods."""
    return heatmap.draw(data, BREAKDOWN)
