"""Writes a table that comes in parts as one Parquet file, holding one part at a time: tables of the hub have tens of
millions of rows.

What the parts are is left to their reader, which columns and rows are wanted to `download`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

# Two digests of a row, of eight bytes each: among a billion rows two differing ones share both once in 10^20 tables.
KEYS = ("d2llm-first-key-", "d2llm-other-key-")


def write_parts(parts: Iterable[pd.DataFrame], file: Path, scratch: Path, keep: Sequence[str] | None) -> int:
    """Write the parts one after the other, the columns of all, each of the type that holds its values in every part; of
    `keep`, where given, these columns alone, and of rows that are then equal the first. How many rows there are.

    Raises KeyError, with the columns there are, for one of `keep` that no part has.
    """
    schemas, digests, names, there = [], [], [], dict[str, None]()
    for number, part in enumerate(parts):
        there |= dict.fromkeys(part.columns)
        if keep is not None:  # what a part lacks has no type of its own
            part = part.assign(**{name: None for name in keep if name not in part.columns})[list(keep)]
        table = pa.Table.from_pandas(part, preserve_index=False)
        names.append(scratch / f"part-{number}.parquet")
        pq.write_table(table, names[-1], compression="zstd")
        schemas.append(table.schema)
        digests.append(np.empty(0) if keep is None else _digests(part))
    if keep is not None and (missing := [name for name in keep if name not in there]):
        raise KeyError(missing[0], list(there))
    schema, rows = pa.unify_schemas(schemas, promote_options="permissive"), 0
    first = None
    if keep is not None:
        whole = np.concatenate(digests)
        digests.clear()
        first = _first(whole)
        del whole
    with pq.ParquetWriter(file, schema.with_metadata(schemas[0].metadata), compression="zstd") as writer:
        for name in names:
            table = pq.read_table(name)
            name.unlink()
            if first is not None:
                table, first = table.filter(pa.array(first[: len(table)])), first[len(table) :]
            writer.write_table(_cast(table, writer.schema))
            rows += len(table)
    return rows


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns and types of a schema; what it lacks is missing in every row."""
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _digests(part: pd.DataFrame) -> np.ndarray:
    """(n, 2) of the rows, by their values."""
    plain = part if all(isinstance(kind, pd.StringDtype) for kind in part.dtypes) else part.map(_spelled)
    return np.stack([pd.util.hash_pandas_object(plain, index=False, hash_key=key).to_numpy() for key in KEYS], 1)


def _spelled(value: Any) -> str:
    """A value as a text, another for every other value; a whole number is the same with and without a point, and what
    is missing in whatever way.
    """
    if isinstance(value, str):
        return f"s{value}"
    if value is None or (isinstance(value, float) and value != value):
        return "n"
    whole = isinstance(value, float) and value.is_integer()
    return f"n{int(value) if whole or isinstance(value, bool) else value!r}"


def _first(digests: np.ndarray) -> np.ndarray:
    """(n,) whether a row is the first of its digests (n, 2)."""
    order = np.lexsort(digests.T)  # stable: of equal rows the first comes first
    again = np.ones(len(digests) - 1, dtype=bool)
    for column in digests.T:
        values = column[order]
        again &= values[1:] == values[:-1]
    first = np.ones(len(digests), dtype=bool)
    first[order[1:]] = ~again
    return first
