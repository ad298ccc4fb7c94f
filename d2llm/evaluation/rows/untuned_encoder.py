"""The encoder that students start from, untuned, as a reference row: did training help at all?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.evaluation.rows.untuned_decoder import untuned

if TYPE_CHECKING:
    from d2llm.config.schema import Config, Run
    from d2llm.evaluation.rows.student import StudentScorer

TITLE = "Untuned encoder"
# Colour, mark in plots by row, mark in the plane.
LOOK = ("#BBBBBB", "2", "H")
NEEDS = ("encoder",)


def load(config: Config, run: Run) -> StudentScorer:
    """The base encoder."""
    return untuned(config, "encoder")
