"""Renders a table by name as CSV, Markdown and LaTeX.

A new table is a module whose object has a `build`, and one entry in `TABLES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from d2llm.artifacts import read_csv, read_frame, write_text
from d2llm.comparison import COLUMNS as COMPARISONS
from d2llm.errors import ConfigError
from d2llm.paths import Paths
from d2llm.reporting import layout
from d2llm.reporting.context import Context, context
from d2llm.reporting.main_tables import IR, NLI, STS

if TYPE_CHECKING:
    import pandas as pd

    from d2llm.config import Config


class Spec(Protocol):
    """What makes a table of collected scores."""

    def build(
        self, scores: pd.DataFrame, context: Context, comparisons: pd.DataFrame | None = None
    ) -> layout.Table: ...


TABLES: dict[str, Spec] = {"nli": NLI, "sts": STS, "ir": IR}

# What a table relies on; the collected scores hold more.
_TEXTS = "method variant split task task_title task_type group candidates phenomenon metric"
_COLUMNS = {**dict.fromkeys(_TEXTS.split(), "str"), "seed": "int", "value": "float"}


def run(config: Config, name: str) -> None:
    """Writes `tables/<name>.csv`, `.md` and `.tex` from the collected scores and comparisons.

    Raises:
        ConfigError: no table of that name. ArtifactError: scores missing, damaged or without a configured method.
    """
    if name not in TABLES:
        raise ConfigError(f"no table named {name!r}; known: {', '.join(TABLES)}")
    paths = Paths.of(config)
    scores, comparisons = read_frame(paths.scores, _COLUMNS), read_csv(paths.comparisons, COMPARISONS)
    table = TABLES[name].build(scores, context(config), comparisons)
    for extension, render in (("csv", layout.to_csv), ("md", layout.to_markdown), ("tex", layout.to_latex)):
        write_text(paths.table(name, extension), render(table))
