"""The paper's Figure 3: how NLI scores of D2LLM move with the weights of its losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.reporting.sweeps import draw_group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d2llm.reporting.figures import Data


def draw(data: Data) -> Figure:
    """A panel a setting, a line a task."""
    return draw_group(data, "nli")
