"""The inner product."""

from __future__ import annotations

from d2llm.models.scorers.base import Scorer

TITLE = "dot product"


class Dot(Scorer):
    """q · p."""

    name = "dot"
    inner = True


SCORER = Dot
