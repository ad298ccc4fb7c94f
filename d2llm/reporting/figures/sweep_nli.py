"""The paper's Figure 3: how NLI scores of D2LLM move with the weights of its losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.reporting.drawing.sweeps import draw_group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d2llm.reporting.drawing.figures import Data

PLACE = 7
READS = ("scores",)
SETTINGS = ("sweeps", "include", "seeds", "variant_seeds", "methods", "points")
CAPTION = {
    "section": "sweep",
    "title": "Weights of the losses, NLI",
    "text": (
        "Average precision of D2LLM on {nli} when one weight is changed: α of the rank imitation over hard "
        "negatives, β of that against easy negatives, γ of the feature imitation; 0 leaves the loss out. The "
        "paper's Figure 3."
    ),
    "alt": ("Panels of lines, one a setting, with a mark at every value and a filled one at the configured value."),
}


def draw(data: Data) -> Figure:
    """Draw a panel for each setting, with a line for each task."""
    return draw_group(data, "nli")
