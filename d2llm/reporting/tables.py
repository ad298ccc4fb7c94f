"""Renders a table by name as CSV, Markdown, LaTeX and HTML.

A new table is a module whose object has a `build`, and one entry in `TABLES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from d2llm.artifacts import write_text
from d2llm.errors import ConfigError
from d2llm.paths import Paths
from d2llm.reporting import catalogue, layout
from d2llm.reporting.ablation_table import ABLATION
from d2llm.reporting.collected import Collected, collected
from d2llm.reporting.context import Context, context
from d2llm.reporting.main_tables import IR, NLI, STS
from d2llm.reporting.settings_table import SETTINGS

if TYPE_CHECKING:
    from d2llm.config import Config


class Spec(Protocol):
    """What makes a table of collected files."""

    def build(self, collected: Collected, context: Context, config: Config) -> layout.AnyTable: ...


FORMATS: dict[str, Callable[[layout.AnyTable], str]] = {
    "csv": layout.to_csv,
    "md": layout.to_markdown,
    "tex": layout.to_latex,
    "html": layout.to_html,
}
TABLES: dict[str, Spec] = {"nli": NLI, "sts": STS, "ir": IR, "ablation": ABLATION, "settings": SETTINGS}


def run(config: Config, name: str) -> None:
    """Writes `tables/<name>.csv`, `.md`, `.tex` and `.html` from the collected files the catalogue names.

    Raises:
        ConfigError: no table of that name. ArtifactError: scores missing, damaged or without a configured method.
    """
    if name not in TABLES:
        raise ConfigError(f"no table named {name!r}; known: {', '.join(TABLES)}")
    paths = Paths.of(config)
    table = TABLES[name].build(collected(paths, catalogue.TABLES[name]), context(config), config)
    for extension, render in FORMATS.items():
        write_text(paths.table(name, extension), render(table))
