"""The paper's Figure 4: how retrieval scores of D2LLM move with the weights of its losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.reporting.drawing.sweeps import draw_group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 8
READS = ("scores",)
SETTINGS = ("sweeps", "include", "seeds", "variant_seeds", "methods", "points")
CAPTION = {
    "section": "sweep",
    "title": "Weights of the losses, retrieval",
    "text": (
        "Mean reciprocal rank of D2LLM on {ir} when one weight is changed, as in the figure for NLI. The paper's "
        "Figure 4."
    ),
    "alt": ("Panels of lines, one a setting, with a mark at every value and a filled one at the configured value."),
}


def draw(data: Data) -> Figure:
    """Draw a panel for each setting, with a line for each task."""
    return draw_group(data, "ir")
