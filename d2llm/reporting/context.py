"""What tables and figures need besides scores: their rows, in order, with their names, and how the scores came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from d2llm.reporting.style import REFERENCE_TITLES

if TYPE_CHECKING:
    from d2llm.config import Config


@dataclass(frozen=True)
class Context:
    """What a table or figure needs besides scores. `titles` names rows; `methods` and `references` are rows in their order."""

    tier: str
    methods: Sequence[str]
    references: Sequence[str] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
    generated: bool = True
    # Kinds of symmetric task that are scored as the mean of both orders of a pair.
    averaged: frozenset[str] = frozenset()
    # Confidence level of what is called significant.
    level: float = 0.95
    # The title of the method whose leads are judged.
    subject: str = "D2LLM"


def context(config: Config) -> Context:
    """Rows, their order and their names: references, baselines as configured, then D2LLM last, whoever is compared."""
    from d2llm.methods import method

    methods = sorted(config.methods, key=lambda name: name == "d2llm")
    orders = config.evaluation.symmetric_order.model_dump()
    return Context(
        tier=config.tier,
        methods=methods,
        references=list(config.references),
        titles={**REFERENCE_TITLES, **{name: method(name).title for name in methods}},
        generated=config.data.source == "world",
        averaged=frozenset(kind for kind, order in orders.items() if order == "average"),
        level=config.statistics.level,
        subject=method(config.statistics.subject).title,
    )
