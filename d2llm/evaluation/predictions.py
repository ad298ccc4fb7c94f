"""Reads a part of the collected predictions: a study has millions, and nobody needs all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.run.artifacts import MEND, check_column, require
from d2llm.run.errors import ArtifactError, first_line

if TYPE_CHECKING:
    import pandas as pd


def read_predictions(
    path: Path, columns: Mapping[str, str], where: Mapping[str, Any], coded: bool = False
) -> pd.DataFrame:
    """These columns (name: kind, as `artifacts.read_frame` has it) of the rows in which others equal a value, or one of
    several.

    With `coded`, texts come as categories, which takes a third of the time. Raises ArtifactError for a file that is
    missing, damaged, lacks a column or has no such row.
    """
    import pandas as pd
    import pyarrow.parquet

    texts = [name for name, kind in columns.items() if kind == "str"]
    wanted = [
        (name, "in", sorted(value)) if isinstance(value, list | set) else (name, "==", value)
        for name, value in where.items()
    ]
    path = require(path)
    try:
        table = pyarrow.parquet.read_table(
            path, columns=list(columns), filters=wanted, read_dictionary=texts if coded else None
        )
        frame = table.unify_dictionaries().to_pandas()
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        raise ArtifactError(f"{path}: damaged Parquet ({first_line(error)}); {MEND}") from error
    if not len(frame):
        conditions = ", ".join(f"{name} {value}" for name, value in where.items())
        raise ArtifactError(f"{path}: no rows of {conditions}; {MEND}")
    for name, kind in columns.items():
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype) and not column.isna().any():
            column = column.cat.categories.to_series().rename(name)
        check_column(path, column, kind)
    return frame
