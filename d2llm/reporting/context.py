"""What tables and figures need besides scores: their rows in order and with titles, and how the scores came about.

Taken from the config alone; results are read by `collected`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from d2llm.config.data import TASKS
from d2llm.config.registry import declared
from d2llm.run.schemas import SUBJECT

if TYPE_CHECKING:
    from d2llm.config.schema import Config

# The mark of a row without training.
UNTRAINED = "†"


@dataclass(frozen=True)
class Context:
    """What a table or figure needs besides scores. `titles` names rows; `methods` and `references` are rows in their
    order.
    """

    tier: str
    methods: Sequence[str]
    references: Sequence[str] = ()
    titles: Mapping[str, str] = field(default_factory=dict)
    # Reference rows that are models as published.
    published: Sequence[str] = ()
    # Reference rows that nothing here was trained for; every table marks them.
    untrained: Sequence[str] = ()
    generated: bool = True
    # Kinds of symmetric task that are scored as the mean of both orders of a pair.
    averaged: frozenset[str] = frozenset()
    # Confidence level of what is called significant.
    level: float = 0.95
    # A difference smaller than this is none that matters.
    equivalent: float = 0.01
    # The title of the method whose leads are judged.
    subject: str = "D2LLM"
    # What each method stands on: decoder or encoder.
    kinds: Mapping[str, str] = field(default_factory=dict)
    # Title and description of the evaluation sets of each group.
    sets: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)

    def label(self, name: str) -> str:
        """The title of a row in a table: marked, where nothing was trained for it."""
        return self.titles.get(name, name) + (UNTRAINED if name in self.untrained else "")

    @property
    def note(self) -> str:
        """What the mark means; empty where no row has it."""
        return f"{UNTRAINED} Nothing was trained for it here: taken as published, or without training." * bool(
            self.untrained
        )


def context(config: Config) -> Context:
    """Rows, their order and their names: references, baselines as configured, then D2LLM last, whoever is compared."""
    methods = sorted(config.methods, key=lambda name: name == SUBJECT)
    orders = config.evaluation.symmetric_order.model_dump()
    return Context(
        tier=config.tier,
        methods=methods,
        references=list(config.rows()),
        titles=config.rows() | {name: declared(name).title for name in methods},
        published=list(config.published()),
        untrained=config.untrained(),
        generated=config.data.source == "world",
        averaged=frozenset(kind for kind, order in orders.items() if order == "average"),
        level=config.statistics.level,
        equivalent=config.statistics.equivalent,
        subject=declared(config.statistics.subject).title,
        kinds={name: declared(name).kind for name in methods},
        sets=evaluation_sets(config),
    )


def evaluation_sets(config: Config) -> dict[str, list[tuple[str, str]]]:
    """Title and description of what is evaluated, by group, in the order of the names."""
    entries: dict[str, tuple[str, str, str]] = {name: (entry[2], entry[0], entry[3]) for name, entry in TASKS.items()}
    if config.data.source == "files":
        tasks = config.data.files.tasks
        # Without a title, as scores name it.
        entries = {
            name: (task.group, str(task.title or getattr(task, "mteb", name)), task.description)
            for name, task in tasks.items()
        }
    sets: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(entries if config.evaluation.tasks == "all" else config.evaluation.tasks):
        group, title, description = entries[name]
        sets.setdefault(group, []).append((title, description))
    return sets
