"""Whatever one's own files hold, they are read or refused in one line that names file and place. `campaigns/spoil.py`
tries thousands."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from spoiled_data import SETTINGS, Spoiled, clean, outcome, spoiled, written

from d2llm.data.files import read as files
from d2llm.run.errors import DataError


@settings(
    max_examples=2000 if "CI" in os.environ else 80,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(spoiled_set=spoiled())
def test_spoiled_files_are_read_or_refused_in_one_line(spoiled_set: Spoiled, tmp_path_factory) -> None:
    outcome(spoiled_set, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("kind", SETTINGS)
def test_unspoiled_ones_are_read(kind: str, tmp_path: Path) -> None:
    for ending in ("jsonl.gz", "parquet", "csv")[: 2 if kind == "triple" else 3]:  # a list in a CSV field is a text
        tables = {name: (ending, written(table, ending)) for name, table in clean(kind).items()}
        assert outcome(Spoiled(kind, tables), tmp_path) == "read"


def test_parquet_whose_text_is_no_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"a": ["first", "second"]}).to_parquet(path, compression=None)
    path.write_bytes(path.read_bytes().replace(b"second", b"s\xe7cond", 1))
    with pytest.raises(DataError, match=r"t\.parquet: cannot be read as parquet"):
        files.texts(path, files.read_table(path), "a")
