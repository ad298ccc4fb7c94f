"""The generated pages are current; docs/configuration.md tells every key, with the default and the limits that the schema enforces."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from d2llm.cli import main as cli
from d2llm.config import docs
from d2llm.config.section import Section

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"


@pytest.mark.parametrize(("of", "page"), [("keys", PAGE), ("commands", PAGE.with_name("commands.md"))])
def test_the_page_is_current(of: str, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config-docs", "--of", of]) == 0
    command = f"d2llm config-docs --of {of} --to docs/{page.name}"
    assert capsys.readouterr().out == page.read_text(encoding="utf-8"), f"run `{command}`"


def test_the_page_of_commands_has_every_argument() -> None:
    text = PAGE.with_name("commands.md").read_text(encoding="utf-8")
    assert {"`--tolerance`", "`--nprobe`", "`--to`", "`teacher-scores`", "`--shard`"} <= set(
        re.findall("`[^` ]+`", text)
    )


def test_every_key_has_a_row_with_its_meaning() -> None:
    rows: dict[tuple[str, str], list[str]] = {}
    for part in PAGE.read_text(encoding="utf-8").split("\n#")[1:]:
        heading = part.split("\n")[0].lstrip("# ").replace("&lt;", "<").replace("&gt;", ">")
        for line in part.splitlines():
            if line.startswith("| `"):
                key, *cells = line.strip("| ").split(" | ")
                rows[heading, key.strip("`")] = cells
    assert all(len(cells) == 3 and cells[2] for cells in rows.values())
    assert all((keys[0], name) in rows for section, keys in docs.places().items() for name in section.model_fields)
    assert rows["models.teacher (checkpoint)", "source"][1] == "needed"


class Example(Section):
    """A section to be described."""

    # A number of things.
    # Not few.
    count: Annotated[int, Field(ge=2)] = 3
    share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    names: list[str] = ["a"]
    which: Literal["x", "y"] = "x"
    needed: str


def test_types_are_put_into_words() -> None:
    assert docs.table(Example, "e", {"e.names": "as named"}).splitlines()[2:] == [
        "| `count` | integer ≥ 2 | `3` | A number of things. Not few. |",
        "| `share` | number > 0, < 1 or null | `null` |  |",
        '| `names` | list of texts | `["a"]` | As named. |',
        "| `which` | one of `x`, `y` | `x` |  |",
        "| `needed` | text | needed |  |",
    ]
