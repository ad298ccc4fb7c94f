"""Whatever one's own files hold, they are read or refused in one line that names file and place. `campaigns/spoil.py` tries thousands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from spoiled_data import SETTINGS, Spoiled, clean, outcome, spoiled, written

from d2llm.data.files import read as files
from d2llm.run.errors import DataError


@settings(
    max_examples=2000 if "CI" in os.environ else 200,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(made=spoiled())
def test_spoiled_files_are_read_or_refused_in_one_line(made: Spoiled, tmp_path_factory: pytest.TempPathFactory) -> None:
    outcome(made, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("ending", ["jsonl.gz", "parquet", "csv"])
def test_unspoiled_ones_are_read(kind: str, ending: str, tmp_path: Path) -> None:
    if kind == "triple" and ending == "csv":
        ending = "jsonl"  # a list in a CSV field is a text
    rows = {name: (ending, written(found, ending)) for name, found in clean(kind).items()}
    assert outcome(Spoiled(kind, SETTINGS[kind], rows), tmp_path) == "read"


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    """JSON can write one; Parquet, which the text would go to, cannot."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": "whole", "n": ["b"]}\n' + json.dumps({"a": "half \ud800", "n": ["\udc00"]}) + "\n")
    frame = files.read_table(path)
    for read, column in ((files.texts, "a"), (files.ids, "a"), (files.lists, "n")):
        with pytest.raises(DataError, match=rf"t\.jsonl: line 2, column '{column}': expected .*ud[8c]00"):
            read(path, frame, column)


def test_parquet_whose_text_is_no_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"a": ["first", "second"]}).to_parquet(path, compression=None)
    path.write_bytes(path.read_bytes().replace(b"second", b"s\xe7cond", 1))
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as parquet"):
        files.texts(path, files.read_table(path), "a")


def test_column_names_do_not_break_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"b\\nc": 1}\n')
    with pytest.raises(DataError) as error:
        files.texts(path, files.read_table(path), "a")
    assert str(error.value) == f"{path}: no column 'a'; found 'b\\nc'"
