"""The tables, figures and reference rows there are, each a module of `d2llm/reporting/tables/` or `figures/`, with what
its head says of it.

Heads are read, not imported, so that the workflow needs none of what draws. A head holds `PLACE` (its place among its
kind), `READS` (the collected files it is made of, by their names in `run.paths.Paths`), `CAPTION`, and where there is
need `ALSO` (files that add to it and may be away) and `SETTINGS` (keys of the config it shows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from d2llm.run.code import ROOT, constants
from d2llm.run.errors import ConfigError

Kind = Literal["table", "figure"]


@dataclass(frozen=True)
class Entry:
    """What a table or figure says of itself. `caption`: section, title, text, alt, and what is added to the text for
    generated data.
    """

    module: str
    place: int
    reads: tuple[str, ...]
    caption: Mapping[str, str]
    also: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


@cache
def row_names() -> list[str]:
    """The reference rows there are, each a file of `d2llm/evaluation/rows/` whose head names it."""
    files = (ROOT / "d2llm" / "evaluation" / "rows").glob("*.py")
    return sorted(file.stem for file in files if "TITLE" in row_head(file.stem))


def row_head(name: str) -> dict[str, Any]:
    """What the file of a reference row says of itself."""
    return constants(f"d2llm.evaluation.rows.{name}")


@cache
def entries(kind: Kind) -> dict[str, Entry]:
    """All of a kind by name, in their order."""
    package = f"d2llm.reporting.{kind}s"
    heads = {}
    for file in (ROOT / package.replace(".", "/")).glob("*.py"):
        if file.stem != "__init__":
            head = constants(f"{package}.{file.stem}")
            check_head(file, head)
            parts = {key.lower(): head[key] for key in ("PLACE", "READS", "CAPTION", "ALSO", "SETTINGS") if key in head}
            heads[file.stem] = Entry(f"{package}.{file.stem}", **parts)
    return dict(sorted(heads.items(), key=lambda item: (item[1].place, item[0])))


def check_head(file: Path, head: Mapping[str, Any]) -> None:
    """Refuse, by ConfigError, a table or figure whose head lacks a part, or has one that is no plain value: nobody
    would find it, or find out why.
    """
    for key, kind in (("PLACE", int), ("READS", tuple), ("CAPTION", dict)):
        if not isinstance(head.get(key), kind):
            raise ConfigError(
                f"{file.relative_to(ROOT)}: expected {key} at its head, a plain {kind.__name__} (docs/extending.md); "
                f"found {head.get(key, 'none')!r}"
            )
    if lacking := {"section", "title", "text"} - set(head["CAPTION"]):
        raise ConfigError(f"{file.relative_to(ROOT)}: CAPTION lacks {', '.join(sorted(lacking))} (docs/extending.md)")
