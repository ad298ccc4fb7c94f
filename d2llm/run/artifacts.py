"""Reading and writing the files of the results folder: whole or not at all, and checked when read.

A killed job leaves at most a temporary sibling (`.name.tmp-…`), never half a file under the real name; the next one to
write there removes it.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.run.errors import ArtifactError, first_line

if TYPE_CHECKING:
    import pandas

MEND = "remove it and run `snakemake --cores all` again"

# What a column may be asked to hold; `list` is a list of strings or numbers.
KINDS = ("str", "int", "float", "bool", "list")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`, to be written as a file or made a folder; it takes the name at the block's
    end.

    An existing file is replaced in one step; an existing folder is moved aside first, as folders cannot be swapped
    portably. After an exception `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    # The suffix stays last: some writers choose a format by it.
    temporary = path.with_name(f".{path.stem}.tmp-{platform.node()}-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written for {path}")
        if temporary.is_dir() and path.is_dir():
            aside = temporary.with_name(f"{temporary.name}.old")
            os.replace(path, aside)
            os.replace(temporary, path)
            remove(aside)
        else:
            os.replace(temporary, path)
    finally:
        remove(temporary)


def remove_leftovers(path: Path) -> None:
    """Remove what processes of this machine that are no more left behind on the way to `path`."""
    for stale in path.parent.glob(f".{glob.escape(path.stem)}.tmp-{glob.escape(platform.node())}-*"):
        process = stale.name.rpartition("-")[2].split(".")[0]
        if process.isdigit() and not running(int(process)):
            remove(stale)


def running(process: int) -> bool:
    """Whether a process of this machine is alive."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def in_future(path: Path) -> bool:
    """Whether a file's time, or the one Snakemake gave a folder, lies in the future: the clock has been set
    back since.
    """
    now = time.time_ns()
    marks = (path, path / ".snakemake_timestamp")
    return any(mark.lstat().st_mtime_ns > now for mark in marks if mark.exists())


def settle_times(folder: Path) -> int:
    """Give everything in a folder whose time lies in the future the present time, keeping its order; how many there
    were.

    Snakemake takes a job for failed, and removes what it has made, when an input is newer than its output.
    """
    now = time.time_ns()
    times = [(path.lstat().st_mtime_ns, path) for path in folder.rglob("*") if not path.is_symlink() and path.exists()]
    late = sorted((when, path) for when, path in times if when > now)
    for place, (_, path) in enumerate(late):
        stamp = now - 1000 * (len(late) - place)  # a microsecond apart
        with suppress(FileNotFoundError):
            os.utime(path, ns=(stamp, stamp))
    return len(late)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write readable JSON; NaN and infinity are refused, because JSON has no word for them."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path, mend: str = MEND) -> Any:
    """Read JSON, or raise an ArtifactError that names the file and, where it is damaged, what mends it."""
    path = require(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path}: damaged JSON ({error}); {mend}") from error


def append_jsonl(path: str | Path, record: Mapping[str, Any]) -> None:
    """Add one line to a log of JSON records, flushed at once so that a kill loses none that were written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read a log of JSON records; a last line cut short by a kill is left out."""
    path = require(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise ArtifactError(f"{path}: line {number} is not JSON ({error}); {MEND}") from error
    return records


def write_frame(path: str | Path, frame: pandas.DataFrame) -> None:
    """Write a table as Parquet (zstd, no index)."""
    with atomic(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd", engine="pyarrow")


def write_frames(path: str | Path, frames: Iterable[pandas.DataFrame]) -> None:
    """Write tables of the same columns one after the other as one, each as soon as it comes, as a row group of its own;
    types are the first one's. Raises ValueError for none.
    """
    import pyarrow
    import pyarrow.parquet

    with atomic(path) as temporary, ExitStack() as stack:
        writer = None
        for frame in frames:
            schema = None if writer is None else writer.schema
            table = pyarrow.Table.from_pandas(frame, schema=schema, preserve_index=False)
            if writer is None:
                writer = stack.enter_context(pyarrow.parquet.ParquetWriter(temporary, table.schema, compression="zstd"))
            writer.write_table(table)
        if writer is None:
            raise ValueError(f"{path}: no table to write")


def read_frame(path: str | Path, columns: Mapping[str, str] | None = None, mend: str = MEND) -> pandas.DataFrame:
    """Read a Parquet table and check it.

    `columns` maps each needed column to its kind ("str", "int", "float", "bool", "list"); others are kept as they are.
    Missing values are refused in needed columns, as are non-finite floats and tables without rows. `mend` tells what
    mends a damaged table.
    """
    import pandas

    path = require(path)
    try:
        frame = pandas.read_parquet(path, engine="pyarrow")
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        raise ArtifactError(f"{path}: damaged Parquet ({first_line(error)}); {mend}") from error
    if columns is None:
        return frame
    if not len(frame):
        raise ArtifactError(f"{path}: no rows; {mend}")
    for name, kind in columns.items():
        if name not in frame.columns:
            there = ", ".join(map(str, frame.columns)) or "none"
            raise ArtifactError(f"{path}: column {name!r} is missing (found: {there}); {mend}")
        check_column(path, frame[name], kind, mend)
    return frame


def read_csv(path: str | Path, columns: Mapping[str, str]) -> pandas.DataFrame:
    """Read a table from CSV and check it like `read_frame`, but that it may have no rows."""
    import pandas

    path = require(path)
    kinds = {"str": "str", "int": "int64", "float": "float64", "bool": "bool"}
    try:
        frame = pandas.read_csv(
            path,
            keep_default_na=False,
            na_values={name: ["", "nan"] for name, kind in columns.items() if kind == "float"},
        )
        missing = [name for name in columns if name not in frame.columns]
        if missing:
            raise ValueError(f"column {missing[0]!r} is missing")
        return frame.astype({name: kinds[kind] for name, kind in columns.items()})
    except (ValueError, UnicodeDecodeError, pandas.errors.ParserError) as error:
        raise ArtifactError(f"{path}: damaged CSV ({first_line(error)}); {MEND}") from error


def check_column(path: Path, column: pandas.Series, kind: str, mend: str = MEND) -> None:
    """Raise an ArtifactError unless a column holds one kind of value, all present and finite."""
    import numpy
    from pandas.api import types

    checks = {
        "str": types.is_string_dtype,
        "int": types.is_integer_dtype,
        "float": types.is_float_dtype,
        "bool": types.is_bool_dtype,
        "list": lambda values: all(isinstance(value, (list, tuple, numpy.ndarray)) for value in values),
    }
    if kind not in checks:
        raise ValueError(f"unknown kind {kind!r}; one of {', '.join(KINDS)}")
    if kind != "list" and column.isna().any():
        row = int(column.isna().to_numpy().argmax())
        raise ArtifactError(f"{path}: column {column.name!r} has no value in row {row}; {mend}")
    if not checks[kind](column):
        raise ArtifactError(f"{path}: column {column.name!r}: expected {kind}, found {column.dtype}; {mend}")
    if kind == "float" and not numpy.isfinite(column.to_numpy()).all():
        raise ArtifactError(f"{path}: column {column.name!r} holds a value that is not finite; {mend}")


def require(path: str | Path, maker: str = "snakemake --cores all") -> Path:
    """The path, or an ArtifactError if nothing is there, which names the command that makes it."""
    path = Path(path)
    if not path.exists():
        raise ArtifactError(f"{path}: missing; run `{maker}` to make it")
    return path
