"""Reads one's own files: JSONL, CSV, TSV or Parquet into frames whose columns are checked, with errors that name file,
row and column.

Rows are counted as an editor counts lines: from 1, the header of a CSV file included. What the frames mean is in
`examples`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from d2llm.data.files import delimited
from d2llm.data.files.labels import label_key, meanings
from d2llm.models.text import HALF, is_blank, is_text
from d2llm.run.errors import DataError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

    from d2llm.config.data import Quotes

KINDS = (".jsonl", ".csv", ".tsv", ".parquet")


def read_table(
    path: str | Path,
    columns: Sequence[str] | None = None,
    kind: str | None = None,
    keep: Sequence[str] | None = None,
    quotes: Quotes | None = None,
) -> pd.DataFrame:
    """A file as a frame of plain objects (texts, numbers, lists, None), packed (.gz) or not, whose index holds the
    lines.

    `columns` names those of a CSV or TSV file that has no header; `kind` is its format where its ending does not say
    it; of `keep`, where given, only these columns are read, as far as they are there; `quotes`, or that of an
    `OwnPath`, says how quotation marks of a CSV or TSV file are read (`delimited.read`).

    Raises DataError for one that is missing, damaged or of no known format.
    """
    (frame,) = read_pieces(path, None, columns, kind, keep, quotes)
    return frame


def read_pieces(
    path: str | Path,
    size: int | None,
    columns: Sequence[str] | None = None,
    kind: str | None = None,
    keep: Sequence[str] | None = None,
    quotes: Quotes | None = None,
) -> Iterator[pd.DataFrame]:
    """The same in frames of `size` rows (None: one of all), of which one is in memory."""
    quotes = quotes or getattr(path, "quotes", None)
    path = Path(path)
    kind = f".{kind}" if kind else path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in KINDS:
        raise DataError(f"{path}: expected a file that ends in {', '.join(KINDS)}; found {kind or 'no ending'!r}")
    if quotes is not None and kind not in delimited.SEPARATORS:
        raise DataError(f"{path}: quotes is for CSV and TSV; leave it out")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    count = 0
    try:
        for frame in _pieces(path, kind, size, columns, keep, quotes):
            count += len(frame)
            if count:
                yield frame
    except DataError:
        raise
    except Exception as error:  # pandas and pyarrow raise many kinds for a damaged file
        raise DataError(f"{path}: cannot be read as {kind[1:]} ({first_line(error)})") from error
    if not count:
        raise DataError(f"{path}: no rows")


def _pieces(
    path: Path, kind: str, size: int | None, columns: Sequence[str] | None, keep: Sequence[str] | None,
    quotes: Quotes | None,
) -> Iterator[pd.DataFrame]:  # fmt: skip
    if kind in delimited.SEPARATORS:
        pieces = delimited.read(path, kind, columns, keep, quotes, size or delimited.CHUNK)
        yield from pieces if size else [pd.concat(list(pieces))]
    elif kind == ".jsonl":
        rows = _jsonl_rows(path, keep)
        while piece := list(islice(rows, size)):
            values = pd.Series([row for _, row in piece], dtype=object).tolist()
            yield pd.DataFrame(values, index=[number for number, _ in piece], dtype=object)
    else:
        yield from _parquet_pieces(path, keep, size)


def _jsonl_rows(path: Path, keep: Sequence[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their lines."""
    for number, line in enumerate(_read_lines(path), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            row = DECODER.decode(text)
        except UnicodeDecodeError as error:
            raise DataError(delimited.not_utf8(path, error)) from None
        except ValueError as error:
            raise DataError(f"{path}: line {number}: not JSON ({first_line(error)})") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number}: expected an object of columns and values; found {str(row)[:60]!r}")
        yield number, row if keep is None else {name: row[name] for name in keep if name in row}


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of a key that is there twice, json would keep the last value."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands in an object twice")
    return values


DECODER = json.JSONDecoder(object_pairs_hook=_make_object)


def _read_lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        yield from stream


def _parquet_pieces(path: Path, keep: Sequence[str] | None, size: int | None) -> Iterator[pd.DataFrame]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise DataError(f"{path}: expected every column once; found two of the name {again!r}")
    chosen = None if keep is None else [name for name in names if name in keep]
    if size is None:
        frame = from_arrow(file.read(chosen))
        yield frame.set_axis(range(1, len(frame) + 1))
        return
    start = 1
    for batch in file.iter_batches(size, columns=chosen):
        frame = from_arrow(pa.Table.from_batches([batch]))
        yield frame.set_axis(range(start, start + len(frame)))
        start += len(frame)


def from_arrow(table: pa.Table) -> pd.DataFrame:
    """An Arrow table's columns as plain objects: pandas' own would lose digits of whole numbers beside a missing one,
    or miss values in ways of their own.
    """
    import pyarrow as pa

    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        column = column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column
        values = column.to_pandas(integer_object_nulls=True).astype(object)
        values[column.is_null().to_numpy()] = None
        if pa.types.is_decimal(kind):
            number = float if kind.scale > 0 else int
            values = pd.Series([None if value is None else number(value) for value in values], dtype=object)
        columns[name] = values
    return pd.DataFrame(columns)


def texts(path: str | Path, frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of texts, each of which shows something."""
    values = _get_column(path, frame, column)
    _check_each(path, column, values, is_text, "a text")
    return values.astype(object)


def numbers(path: str | Path, frame: pd.DataFrame, column: str, least: float, most: float) -> pd.Series:
    """A column of numbers within bounds, as floats."""
    values = _get_column(path, frame, column)
    parsed = pd.to_numeric(values, errors="coerce").astype(float)
    within = parsed.between(least, most) & ~values.map(lambda value: isinstance(value, bool))
    _check_each(path, column, values, within, f"a number from {least:g} to {most:g}")
    return parsed


def labels(
    path: str | Path, frame: pd.DataFrame, column: str, yes: Sequence[Any], no: Sequence[Any] | None = None
) -> pd.Series:
    """A column of labels as booleans: True for one of `yes`, False for one of `no` (None: 0), by `labels.label_key`.

    Raises DataError for a row without a label or with any other, and where no row means yes.
    """
    meaning_of = _map_meanings(path, yes, no)
    values = _get_column(path, frame, column)
    _check_each(path, column, values, lambda value: not _is_missing(value), "a label")
    keys = values.map(label_key)
    named = " or ".join(
        f"{', '.join(key for key in meaning_of if meaning_of[key] is meaning)} ({word})"
        for meaning, word in ((True, "yes"), (False, "no"))
    )
    fix = "name the label in `yes` or `no`, or leave such rows out by `incomplete: drop`"
    _check_each(path, column, values, keys.isin(list(meaning_of)), named, fix)
    positive = keys.map(meaning_of).astype(bool)
    if not positive.any():
        examples = ", ".join(map(_write_value, list(dict.fromkeys(values))[:5]))
        raise DataError(f"{path}: column {column!r}: no row is one of {', '.join(map(repr, yes))}; found {examples}")
    return positive


def categories(path: str | Path, frame: pd.DataFrame, column: str, most: int) -> pd.Series:
    """A column's values to group rows by, in one spelling each; "" where a row has none. Raises DataError for more
    than `most`.
    """
    values = _get_column(path, frame, column)
    keys = values.map(lambda value: "" if _is_missing(value) else label_key(value))
    if keys.nunique() > most:
        raise DataError(
            f"{path}: column {column!r}: expected at most {most} values to group by; found {keys.nunique()}"
        )
    return keys


def ids(path: str | Path, frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of ids as texts, none missing; 1, 1.0 and "1" are one id, as formats differ in what they keep."""
    values = _get_column(path, frame, column)
    _check_each(path, column, values, lambda value: not _is_missing(value) and not HALF.search(str(value)), "an id")
    return values.map(lambda value: str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))


def unique_ids(path: str | Path, frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of `ids`, each of which stands there once: nobody could tell two rows of one id apart."""
    keys = ids(path, frame, column)
    again = keys.duplicated()
    if again.any():
        line = keys.index[again][0]
        first = keys.index[keys == keys[line]][0]
        raise DataError(
            f"{path}: line {line}, column {column!r}: expected every id once; found {keys[line]!r}, as in line {first}"
        )
    return keys


def lists(path: str | Path, frame: pd.DataFrame, column: str) -> pd.Series:
    """A column of lists of texts; a single text is a list of one, an object counts by its `text`."""
    values = _get_column(path, frame, column).map(_list_texts)
    right = values.map(lambda value: isinstance(value, list) and all(map(is_text, value)))
    _check_each(path, column, values, right, "a text or a list of texts")
    return values


def _list_texts(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | np.ndarray):
        return [item.get("text") if isinstance(item, dict) else item for item in value]
    return value


def complete(frame: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """The rows with something in each of these columns: no blank text, no empty list, no missing value. Blank members
    leave their lists.
    """
    rows = frame
    for column in columns:
        if column not in rows:
            continue  # named by whoever reads it
        values = rows[column]
        if values.map(lambda value: isinstance(value, list | np.ndarray)).any():
            values = values.map(
                lambda value: [x for x in _list_texts(value) or [] if isinstance(x, str) and not is_blank(x)]
            )
            rows = rows.assign(**{column: values})
        filled = values.map(lambda value: not is_blank(value) if isinstance(value, str) else _is_filled(value))
        rows = rows[filled.astype(bool)]
    return rows


def _is_filled(value: Any) -> bool:
    return len(value) > 0 if isinstance(value, list) else not _is_missing(value)


def _get_column(path: str | Path, frame: pd.DataFrame, column: str) -> pd.Series:
    if column not in frame.columns:
        raise DataError(f"{path}: no column {column!r}; found {', '.join(map(_write_name, frame.columns))}")
    return frame[column]


def _check_each(
    path: str | Path,
    column: str,
    values: pd.Series,
    right: pd.Series | Callable[[Any], bool],
    expected: str,
    fix: str = "",
) -> None:
    """Raises for the first row that is not right; `fix` tells what mends it, where that is not plain."""
    good = (values.map(right) if callable(right) else right).astype(bool)
    if not good.all():
        line = values.index[~good][0]
        others = f" (and {int((~good).sum()) - 1} more rows)" if (~good).sum() > 1 else ""
        raise DataError(
            f"{path}: line {line}, column {column!r}: expected {expected}; found {_write_value(values[line])}{others}"
            + (f"; {fix}" if fix else "")
        )


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))


def _write_name(column: Any) -> str:
    """A column as it stands in a line."""
    return text if (text := str(column)).isprintable() and len(text) <= 60 else _write_value(column)


def _write_value(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def other_labels(frame: pd.DataFrame, column: str, yes: Sequence[Any], no: Sequence[Any] | None) -> pd.Series:
    """Of rows with a label, the labels that are neither among `yes` nor among `no` (None: 0), by row; empty where all
    are.
    """
    keys = frame[column].map(label_key)
    return keys[~keys.isin(list(_map_meanings("labels", yes, no)))]


def _map_meanings(where: str | Path, yes: Sequence[Any], no: Sequence[Any] | None) -> Mapping[str, bool]:
    try:
        return meanings(yes, no)
    except ValueError as error:
        raise DataError(f"{where}: expected {error}") from None
