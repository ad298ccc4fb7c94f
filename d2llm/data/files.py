"""Reads one's own files: JSONL, CSV, TSV or Parquet into frames whose columns are checked, with errors that name file, row and column.

Rows are counted as an editor counts lines: from 1, the header of a CSV file included. What the frames mean is in `examples`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from d2llm.errors import DataError

# First line of the data, by format.
FIRST = {".jsonl": 1, ".csv": 2, ".tsv": 2, ".parquet": 1}


def read_table(path: str | Path) -> pd.DataFrame:
    """A file as a frame whose index holds the lines. Raises DataError for one that is missing, damaged or of no known format."""
    path = Path(path)
    if path.suffix not in FIRST:
        raise DataError(
            f"{path}: expected a file that ends in {', '.join(FIRST)}; found {path.suffix or 'no ending'!r}"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        frame = {".jsonl": _jsonl, ".parquet": pd.read_parquet}.get(path.suffix, _csv)(path)
    except DataError:
        raise
    except Exception as error:  # pandas and pyarrow raise many kinds for a damaged file
        raise DataError(f"{path}: cannot be read as {path.suffix[1:]} ({str(error).splitlines()[0]})") from error
    if not len(frame):
        raise DataError(f"{path}: no rows")
    if path.suffix != ".jsonl":
        frame.index = pd.RangeIndex(FIRST[path.suffix], FIRST[path.suffix] + len(frame))
    return frame


def _jsonl(path: Path) -> pd.DataFrame:
    rows, lines = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: expected an object of columns and values; found {str(row)[:60]!r}")
        rows.append(row)
        lines.append(number)
    return pd.DataFrame(pd.Series(rows, dtype=object).tolist(), index=lines, dtype=object)


def _csv(path: Path) -> pd.DataFrame:
    separator = "\t" if path.suffix == ".tsv" else ","
    # As text: which columns are numbers is the configuration's to say, and "NA" is a word.
    return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8")


def texts(path: str | Path, frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of texts, none of them empty."""
    values = _column(path, frame, column)
    _each(path, column, values, lambda value: isinstance(value, str) and bool(value.strip()), "a text")
    return values.astype(object)


def numbers(path: str | Path, frame: pd.DataFrame, column: str, least: float, most: float) -> pd.Series:
    """A column of numbers within bounds, as floats."""
    values = _column(path, frame, column)
    found = pd.to_numeric(values, errors="coerce").astype(float)
    within = found.between(least, most) & ~values.map(lambda value: isinstance(value, bool))
    _each(path, column, values, within, f"a number from {least:g} to {most:g}")
    return found


def labels(path: str | Path, frame: pd.DataFrame, column: str, yes: list[Any]) -> pd.Series:
    """A column of labels as booleans: whether each is among `yes`. 1 and "1" are one label, as CSV knows texts only.

    Raises DataError for a row without a label, and where no row has one of `yes`.
    """
    values = _column(path, frame, column)
    _each(path, column, values, lambda value: not _missing(value), "a label")
    known = {_plain(value) for value in yes}
    found = values.map(lambda value: _plain(value) in known).astype(bool)
    if not found.any():
        seen = ", ".join(map(repr, list(dict.fromkeys(values))[:5]))
        raise DataError(f"{path}: column {column!r}: no row is one of {', '.join(map(repr, yes))}; found {seen}")
    return found


def ids(path: str | Path, frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of ids as texts, none missing; 1, 1.0 and "1" are one id, as formats differ in what they keep."""
    values = _column(path, frame, column)
    _each(path, column, values, lambda value: not _missing(value), "an id")
    return values.map(lambda value: str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))


def lists(path: str | Path, frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of lists of texts; a single text is a list of one."""
    values = _column(path, frame, column).map(
        lambda value: (
            [value] if isinstance(value, str) else list(value) if isinstance(value, list | np.ndarray) else value
        )
    )
    right = values.map(
        lambda value: isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value)
    )
    _each(path, column, values, right, "a text or a list of texts")
    return values


def _column(path: str | Path, frame: pd.DataFrame, column: str) -> pd.Series:
    if column not in frame.columns:
        raise DataError(f"{path}: no column {column!r}; found {', '.join(map(str, frame.columns))}")
    return frame[column]


def _each(
    path: str | Path, column: str, values: pd.Series, right: pd.Series | Callable[[Any], bool], expected: str
) -> None:
    """Raises for the first row that is not right."""
    good = (values.map(right) if callable(right) else right).astype(bool)
    if not good.all():
        line = values.index[~good][0]
        more = f" (and {int((~good).sum()) - 1} more rows)" if (~good).sum() > 1 else ""
        raise DataError(
            f"{path}: line {line}, column {column!r}: expected {expected}; found {_shown(values[line])}{more}"
        )


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))


def _plain(value: Any) -> str:
    """One spelling of a label, whatever type its file gave it."""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    text = str(value)
    return {"true": "1", "false": "0"}.get(text.lower(), text)


def _shown(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_pairs(path: str, columns: Mapping[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(the table, a frame of its text columns under the names they are to have)."""
    frame = read_table(path)
    return frame, pd.DataFrame({name: texts(path, frame, column) for name, column in columns.items()})
