"""Reads CSV and TSV so that no row is lost or shifted unseen: every row has the fields of the header, and quotation
marks in doubt are refused.

Fields are texts here; which columns mean what, and which are numbers, is left to `read` and the configuration.
"""

from __future__ import annotations

import csv
import gzip
import sys
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np
import pandas as pd
import pyarrow as pa

from d2llm.run.errors import DataError

if TYPE_CHECKING:
    from d2llm.config.data import Quotes

SEPARATORS = {".csv": ",", ".tsv": "\t"}
NAMES = {",": "comma", "\t": "tab", ";": "semicolon"}
# Rows that are turned into columns at a time.
CHUNK = 50_000
# What mends marks in doubt.
STATE = "say how they are read, in a config {{path: …, quotes: {0}}}, as an option --quotes {0}"
EITHER = STATE.format("format") + " (the marks belong to the file), or text (they are text)"
TEXT = "where the marks are text, " + STATE.format("text")


def read(
    path: Path,
    kind: str,
    columns: Sequence[str] | None = None,
    keep: Sequence[str] | None = None,
    quotes: Quotes | None = None,
    size: int = CHUNK,
) -> Iterator[pd.DataFrame]:
    """The fields of a file as texts, `size` rows at a time; the index holds the line each row begins in, as an editor
    counts. `columns` names those of a file without a header.

    quotes: with "format", a field in quotation marks is read without them and may hold separators and line breaks, and
        marks in it are written twice (RFC 4180, what spreadsheets and pandas write); with "text", every mark is text
        and every line a row. None: CSV is read as "format", TSV as "text", and what could be meant otherwise is
        refused: in TSV a field that begins with a mark; in CSV a backslash before a mark, a blank before the first
        mark of a field, and a field over several lines of which two have fields enough to be rows.

    Raises DataError with the line for a row that has more or fewer fields than the header, two columns of one name, a
    file that is not UTF-8, and marks in doubt.
    """
    csv.field_size_limit(sys.maxsize)
    with open_text(path) as stream:
        lines = Lines(
            path, stream, SEPARATORS[kind], quotes, plain=quotes == "text" or (quotes is None and kind == ".tsv")
        )
        try:
            rows = lines.rows()
            names = header(path, next(filter(None, rows), []), lines.separator) if columns is None else list(columns)
            yield from pieces(lines, rows, names, keep, size)
        except csv.Error as error:
            raise DataError(f"{path}: line {lines.start}: {explain(error)}; {TEXT}") from None
        except UnicodeDecodeError as error:
            raise DataError(not_utf8(path, error)) from None


class Lines:
    """The lines of a file for a reader of rows, checked one by one; `row_lines` are those of the present row."""

    def __init__(self, path: Path, stream: TextIO, separator: str, quotes: Quotes | None, plain: bool) -> None:
        self.path, self.stream, self.separator = path, stream, separator
        self.row_lines: list[str] = []
        self.read = 0
        # What is in doubt without a word on quotation marks, as it stands in a line.
        self.doubt = None if quotes is not None else f'{separator}"' if plain else '\\"'
        self.plain = plain

    @property
    def start(self) -> int:
        """The line in which the present row begins."""
        return self.read - len(self.row_lines) + 1

    def rows(self) -> Iterator[list[str]]:
        """The fields of one row after the other; none of a blank line."""
        lines = iter(self)
        for line in lines:
            if self.plain or '"' not in line:  # a fifth of csv's time
                fields = line.rstrip("\r\n")
                yield fields.split(self.separator) if fields else []
            else:
                yield next(csv.reader(chain((line,), lines), delimiter=self.separator, strict=True))
            self.row_lines.clear()

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            self.read += 1
            self.row_lines.append(line)
            if "\x00" in line:
                raise DataError(f"{self.path}: line {self.read}: a NUL byte; is the file UTF-16? Save it as UTF-8")
            if self.doubt is not None and (self.doubt in line or (self.plain and line[0] == '"')):
                self.refuse()
            yield line

    def refuse(self) -> None:
        """Raise DataError: a quotation mark of the present line is in doubt."""
        if self.plain:
            raise DataError(f"{self.path}: line {self.read}: a field begins with a quotation mark; {EITHER}")
        raise DataError(
            f"{self.path}: line {self.read}: a backslash before a quotation mark; where it escapes the mark, write "
            f"the mark twice instead, or the file as JSONL; where it is text, {STATE.format('format')}"
        )

    def check(self, row: list[str], width: int) -> None:
        """Raise DataError for a row of other than `width` fields, and for marks that a whole row puts in doubt."""
        if len(row) == width and (self.plain or (len(self.row_lines) == 1 and ' "' not in self.row_lines[0])):
            return
        where = f"{self.path}: line {self.start}"
        if len(self.row_lines) > 1 and self.doubt is not None:
            rows = sum(line.count(self.separator) >= width - 1 for line in self.row_lines)
            if rows > 1:
                raise DataError(
                    f"{where}: a quotation mark begins a field that ends in line {self.read} only, and {rows} of "
                    f"these lines may be rows of their own; {EITHER}"
                )
        if self.doubt is not None and any(value[:1] == " " and value.lstrip(" ")[:1] == '"' for value in row):
            raise DataError(
                f"{where}: a blank before the quotation mark that begins a field; leave the blank out, or {EITHER}"
            )
        if len(row) != width:
            name = NAMES[self.separator]
            why = (
                f"is there a {name} in a text?"
                if self.plain
                else f"is there a {name} in a field without quotation marks?"
            )
            if len(row) == width + 1 and not row[-1]:
                why = f"is there a {name} too many at its end?"
            elif len(row) < width:
                why = "is the row cut, or divided by a line break in a text?"
            if not self.plain and any('"' in line for line in self.row_lines):
                why += f" Or {TEXT}"
            raise DataError(f"{where}: expected {width} fields, a column each; found {len(row)}: {why}")


def pieces(
    lines: Lines, rows: Iterator[list[str]], names: list[str], keep: Sequence[str] | None, size: int
) -> Iterator[pd.DataFrame]:
    """All rows after the header, `size` at a time; one frame at least. Blank lines are no rows, but in a file of one
    column, where they are empty fields unless nothing follows.
    """
    width, numbers, blank = len(names), array("q"), []
    chosen = [place for place, name in enumerate(names) if keep is None or name in keep]
    chunk: list[list[str]] = []

    def flush() -> pd.DataFrame:
        series = {
            names[place]: pd.Series(pa.array([row[place] for row in chunk], pa.large_string()).to_pandas(), dtype="str")
            for place in chosen
        }
        frame = pd.DataFrame(series, index=None if chosen else range(len(chunk))).set_axis(np.array(numbers))
        chunk.clear()
        del numbers[:]
        return frame

    some = False
    for row in rows:
        if not row:
            blank.append(lines.start)
            continue
        if blank and width == 1:
            chunk.extend([""] for _ in blank)
            numbers.extend(blank)
        blank.clear()
        lines.check(row, width)
        numbers.append(lines.start)
        chunk.append(row)
        if len(chunk) >= size:
            some = True
            yield flush()
    if chunk or not some:
        yield flush()


def header(path: Path, row: list[str], separator: str) -> list[str]:
    """The names of the columns; one without a name gets what pandas calls it. Raises DataError where two columns have
    one name.
    """
    for other, name in NAMES.items():
        if len(row) == 1 and other != separator and other in row[0]:
            raise DataError(
                f"{path}: line 1: expected columns divided by a {NAMES[separator]}; is it a {name}? Found "
                f"{row[0][:60]!r}"
            )
    names = [name or f"Unnamed: {place}" for place, name in enumerate(row)]
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise DataError(f"{path}: line 1: expected every column once; found two of the name {again!r}")
    return names


def open_text(path: Path) -> TextIO:
    """A file as UTF-8 text, packed or not, with or without a byte order mark, its line ends as they are."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def explain(error: csv.Error) -> str:
    """What csv's two complaints about quotation marks mean."""
    if "expected after" in str(error):
        return "something follows the quotation mark that ends a field (a mark in such a field is written twice)"
    if "unexpected end" in str(error):
        return "nothing ends the field that a quotation mark begins"
    return str(error)


def not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    """The message for a file that is not UTF-8, with its first line that is not."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as fault:
                kind = "it may be UTF-16" if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else fault.reason
                return f"{path}: line {number}: not UTF-8 ({kind}); save the file as UTF-8"
    return f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8"
