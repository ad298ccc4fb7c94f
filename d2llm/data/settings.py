"""The configuration section `data`: which source, and how much of the generated world."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from d2llm.section import Section

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=8)]


class WorldSettings(Section):
    """How much of the generated world is made; splits never share a composition of people, verb and object."""

    seed: Count = 1
    # Of the test sets alone: others draw test sets that no earlier run has been evaluated on.
    test_seed: Count = 1
    # Unlabelled texts for the base checkpoints.
    pretraining_texts: Size = 40000
    # Groups (a query and its candidates) the teacher is tuned on.
    teacher_symmetric: Size = 20000
    teacher_asymmetric: Size = 12000
    # Training pairs: premises (four hypotheses each), pairs of each STS set, queries of each retrieval set.
    nli_premises: Size = 2500
    sts_pairs: Size = 3000
    queries: Size = 2200
    # Pairs of each NLI and STS set, queries of each retrieval set.
    dev_pairs: Size = 600
    dev_queries: Size = 200
    test_pairs: Size = 2000
    test_queries: Size = 500


class DataSettings(Section):
    """Where texts come from."""

    source: Literal["world"] = "world"
    world: WorldSettings = WorldSettings()
