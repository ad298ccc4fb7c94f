"""NLI by phenomenon: how well each method tells what makes a pair hard, as area under the ROC curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.reporting.drawing import heatmap
from d2llm.run.schemas import FORWARD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 3
READS = ("scores",)
CAPTION = {
    "section": "breakdown",
    "title": "NLI by phenomenon",
    "text": (
        "How well each method tells the pairs of one phenomenon from the pairs of the other label: area under the "
        "ROC curve, where 1 is perfect and 0.5 is chance."
    ),
    "alt": ("Heat map, a panel a task, with a row a phenomenon and a column a method; every cell shows its number."),
    "generated": (
        "Phenomena are what the generator changed: a word replaced by a more general one, roles exchanged, a denial, …"
    ),
    "files": (
        "Groups of the data (by a column such as genre, by word overlap, length or negation) are measured each by "
        "itself; direction is the share of right pairs that score higher than their own reverse."
    ),
}

BREAKDOWN = heatmap.Breakdown(
    task_type="pair_classification",
    kind="pair classification",
    # A method whose score has no direction falls below chance where only the direction differs.
    metrics={"auc": 0.0},
    labels={"auc": "AUC (0.5: chance)"},
    note="AUC, area under the ROC curve, by phenomenon. A phenomenon of pairs that are not entailed is set against "
    "all that are, and the other way round.",
    shared=True,
    beside=(
        FORWARD,
        "Direction: the share of right pairs that score higher than their own reverse; 0.5 for a score without direction.",
    ),
)


def draw(data: Data) -> Figure:
    """Draw a heat map for each task, phenomena by methods."""
    return heatmap.draw(data, BREAKDOWN)
