"""Renders a table by name as CSV, Markdown, LaTeX and HTML.

A table is a module of `reporting/tables/`: a head (`config.catalogue`) and `TABLE`, whose `build` makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from d2llm.config.catalogue import entries
from d2llm.reporting.collected import Collected, collected
from d2llm.reporting.context import Context, context
from d2llm.reporting.layout import formats as layout
from d2llm.run.artifacts import write_text
from d2llm.run.errors import ConfigError
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from d2llm.config.schema import Config


class Spec(Protocol):
    """What makes a table of collected files."""

    def build(self, collected: Collected, context: Context, config: Config) -> layout.AnyTable: ...


FORMATS: dict[str, Callable[[layout.AnyTable], str]] = {
    "csv": layout.to_csv,
    "md": layout.to_markdown,
    "tex": layout.to_latex,
    "html": layout.to_html,
}


def run(config: Config, name: str) -> None:
    """Writes `tables/<name>.csv`, `.md`, `.tex` and `.html` from the collected files its head names.

    Raises:
        ConfigError: no table of that name. ArtifactError: scores missing, damaged or without a configured method.
    """
    tables, paths = entries("table"), Paths.of(config)
    if name not in tables:
        raise ConfigError(f"no table named {name!r}; known: {', '.join(tables)}")
    spec: Spec = import_module(tables[name].module).TABLE
    table = spec.build(collected(paths, tables[name].reads), context(config), config)
    for extension, render in FORMATS.items():
        write_text(paths.table(name, extension), render(table))
