"""docs/configuration.md is current, tells every key, and each key's default and limits are those the schema enforces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from d2llm.cli import main as cli
from d2llm.config import docs as config_docs
from d2llm.config.schema import Config
from d2llm.config.section import Section

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"


def rows() -> dict[tuple[str, str], list[str]]:
    """(heading, key): type, default, meaning."""
    found, heading = {}, ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ").replace("&lt;", "<").replace("&gt;", ">")
        if line.startswith("| `"):
            key, *cells = line.strip("| ").split(" | ")
            found[heading, key.strip("`")] = cells
    return found


def test_the_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config-docs"]) == 0
    made = capsys.readouterr().out
    assert made == PAGE.read_text(encoding="utf-8"), "run `d2llm config-docs --to docs/configuration.md`"


def test_every_key_is_told_with_its_meaning() -> None:
    told = rows()
    assert all(len(cells) == 3 and cells[2] for cells in told.values()), [key for key, cells in told.items() if len(cells) != 3]  # fmt: skip
    for section, keys in config_docs.places().items():
        for name in section.model_fields:
            assert (keys[0], name) in told
    assert {name for heading, name in told if heading == "Top level"} <= set(Config.model_fields)
    assert ("methods.d2llm", "alpha") in told and ("methods.bge", "instruction") in told


def test_defaults_are_the_schemas() -> None:
    told, config = rows(), Config()
    assert told["training", "steps"][:2] == ["integer ≥ 1", f"`{config.training.steps}`"]
    assert told["statistics", "level"][:2] == ["number > 0.5, < 1", "`0.95`"]
    assert told["methods.sgpt", "tuning"][1] == "`{kind: bitfit}`"
    assert told["models.teacher (checkpoint)", "source"][1] == "needed"
    assert told["Top level", "references"][0] == "list (one of `teacher`, `bm25`)"


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
    assert config_docs.table(Example, "e", {"e.names": "as named"}).splitlines()[2:] == [
        "| `count` | integer ≥ 2 | `3` | A number of things. Not few. |",
        "| `share` | number > 0, < 1 or null | `null` |  |",
        '| `names` | list of texts | `["a"]` | As named. |',
        "| `which` | one of `x`, `y` | `x` |  |",
        "| `needed` | text | needed |  |",
    ]
    with pytest.raises(ValidationError):
        Example(needed="n", count=1)


def test_comments_of_yaml_are_found_by_key() -> None:
    text = "a: 1  # one\nb:  # two\n  c: '#x'   # three\n  d: 4\ne: 5\n"
    assert config_docs.beside_keys(text) == {"a": "one", "b": "two", "b.c": "three"}
