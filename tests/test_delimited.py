"""CSV and TSV: read right, or refused with the line; no row is lost, none is shifted. And Parquet's own types."""

from __future__ import annotations

import csv
import gzip
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2llm.cli.student import read_texts
from d2llm.config.data import FilesSettings, HubTable, OwnTable
from d2llm.data.files import examples
from d2llm.data.files import read as files
from d2llm.run.errors import ConfigError, DataError

SEPARATOR = {"csv": ",", "tsv": "\t"}
MARKS = r"quotes: format\}, as an option --quotes format .*, or text"

# Each was read without a word: columns shifted, rows gone, marks gone, or a line that no editor shows.
REFUSED = [
    ("csv", "a,b,c\nx,y,z,\n", r"line 2: expected 3 fields, .* found 4: is there a comma too many at its end\?"),
    ("csv", "a,b,c\nA man.,A man,4,5\n", r"line 2: expected 3 fields, .* found 4: is there a comma in a field without"),
    ("csv", "a,b\nx,y\nx\n", r"line 3: expected 2 fields, .* found 1: is the row cut"),
    ("csv", "a,b,a\nx,y,z\n", r"line 1: expected every column once; found two of the name 'a'"),
    ("csv", "a;b\nx;y\n", r"line 1: expected columns divided by a comma; is it a semicolon\? Found 'a;b'"),
    ("tsv", "a,b\nx,y\n", r"line 1: expected columns divided by a tab; is it a comma\?"),
    ("tsv", 'a\tb\n1\t"Oh\n2\tno\n3\tso "\n', rf"line 2: a field begins with a quotation mark; .*{MARKS}"),
    ("tsv", 'a\tb\n1\tso\n2\t"yes"\n', rf"line 3: a field begins with a quotation mark; .*{MARKS}"),
    ("tsv", "a\tb\n1\ta tab\tin it\n", r"line 2: expected 2 fields, .* found 3: is there a tab in a text\?"),
    ("csv", 'a,b\n1,"Oh\n2,no\n3,"\n', rf"line 2: .* ends in line 4 only, and 3 of these lines may be rows .*{MARKS}"),
    ("csv", 'a,b\n1,so\n2,"Oh\n3,no\n', r"line 3: nothing ends the field that a quotation mark begins; where .* text"),
    ("csv", 'a,b\n1,"yes" and\n', r"line 2: something follows the quotation mark that ends a field .*quotes: text}"),
    ("csv", 'a,b\n1,"a \\"no\\" twice"\n', r"line 2: a backslash before a quotation mark; .* write the mark twice"),
    ("csv", 'a,b,c\nx, "y, z"\n', r"line 2: a blank before the quotation mark"),
    ("csv", "a,b\nx,y\x00z\n", r"line 2: a NUL byte"),
]


@pytest.mark.parametrize(("kind", "content", "message"), REFUSED)
def test_what_could_be_read_wrong_is_refused_with_its_line(
    kind: str, content: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / f"t.{kind}"
    for ends in ("\n", "\r\n"):
        path.write_bytes(content.replace("\n", ends).encode())
        with pytest.raises(DataError, match=rf"t\.{kind}: {message}") as error:
            files.read_table(path)
        assert str(error.value).isprintable() and len(str(error.value)) < 500


READ = [
    ("csv", None, "a,b,\nx,y,\n", [["x", "y", ""]]),  # a column without a name stands at its place, whatever it holds
    ("csv", None, ",a\n0,x\n", [["0", "x"]]),  # as pandas writes its index
    ("csv", None, 'a,b\n1,5" pipe\n2,"NA"\n', [["1", '5" pipe'], ["2", "NA"]]),
    ("csv", None, 'a,b\n\n"so ""far""",y\n\n', [['so "far"', "y"]]),
    ("csv", None, 'a,b\n"two\nlines",y\n', [["two\nlines", "y"]]),  # its second line is no row: it has one field
    ("csv", "format", 'a,b\n"c:\\",y\n', [["c:\\", "y"]]),
    ("csv", "text", 'id,text\n1,"Oh no\n2,so "\n', [["1", '"Oh no'], ["2", 'so "']]),
    ("tsv", "text", 'id\ttext\n1\t"Oh no\n2\t"yes"\n', [["1", '"Oh no'], ["2", '"yes"']]),
    ("tsv", "format", 'id\ttext\n1\t"two\nlines, a\ttab"\n', [["1", "two\nlines, a\ttab"]]),
    ("csv", None, "text\none\n\ntwo\n\n", [["one"], [""], ["two"]]),
    ("csv", None, f'a,b\n"{"x" * 200_000}, y",z\n', [["x" * 200_000 + ", y", "z"]]),
]


@pytest.mark.parametrize(("kind", "quotes", "content", "rows"), READ)
def test_what_is_beyond_doubt_is_read(kind: str, quotes: str | None, content: str, rows: list, tmp_path: Path) -> None:
    (tmp_path / f"t.{kind}").write_text("\ufeff" + content, encoding="utf-8")  # with the mark that spreadsheets write
    with gzip.open(tmp_path / f"t.{kind}.gz", "wt", encoding="utf-8") as stream:
        stream.write(content)
    for path in (tmp_path / f"t.{kind}", tmp_path / f"t.{kind}.gz"):
        assert files.read_table(path, quotes=quotes).values.tolist() == rows


def test_lines_are_counted_as_an_editor_counts(tmp_path: Path) -> None:
    content = 'a,b\n"one\ntwo\r\nthree",x\n\ny,z\n,w\n'
    (tmp_path / "t.csv").write_text(content, encoding="utf-8", newline="")
    frame = files.read_table(tmp_path / "t.csv")
    assert frame.index.tolist() == [2, 6, 7]
    with pytest.raises(DataError, match="line 7, column 'a': expected a text; found ''"):
        files.texts(tmp_path / "t.csv", frame, "a")


TRIES = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def tables(letters: str, least: int) -> st.SearchStrategy[list[list[str]]]:
    """Rows of two fields."""
    return st.lists(st.lists(st.text(letters, min_size=least, max_size=6), min_size=2, max_size=2), min_size=1)


@TRIES
@given(
    rows=tables('ab"\\ ,;\t\n甲', 0),
    kind=st.sampled_from(["csv", "tsv"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_a_standard_writer_writes_is_read_as_it_was_or_refused(
    rows: list, kind: str, quoting: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"written.{kind}"
    text = io.StringIO()
    csv.writer(text, delimiter=SEPARATOR[kind], quoting=quoting, lineterminator="\n").writerows([["one", "two"], *rows])
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    assert files.read_table(path, quotes="format").values.tolist() == rows
    try:
        assert files.read_table(path).values.tolist() == rows
    except DataError as error:
        assert "quotes: format" in str(error)  # and how to read it is in the line


@TRIES
@given(rows=tables('ab"\\ 甲', 1), kind=st.sampled_from(["csv", "tsv"]))
def test_no_row_disappears_of_a_file_whose_marks_are_text(
    rows: list, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"raw.{kind}"
    path.write_text("\n".join(SEPARATOR[kind].join(row) for row in [["x", "y"], *rows]), encoding="utf-8")
    assert files.read_table(path, quotes="text").values.tolist() == rows
    try:
        assert len(files.read_table(path)) == len(rows)
    except DataError as error:
        assert re.search(r"quotes: text|, or text|a backslash before", str(error))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_in_another_encoding_is_named_with_its_line(kind: str, encoding: str, tmp_path: Path) -> None:
    content = '{"a": "x"}\n{"a": "café"}\n' if kind == "jsonl" else "a,b\ncafé,x\n"
    (tmp_path / f"t.{kind}").write_bytes(content.encode(encoding))
    reasons = r"not UTF-8 \(.*\); save the file as UTF-8|a NUL byte; is the file UTF-16\?|not JSON"
    with pytest.raises(DataError, match=f"line [12]: ({reasons})"):
        files.read_table(tmp_path / f"t.{kind}")


def test_a_cut_archive(tmp_path: Path) -> None:
    whole = gzip.compress(("a,b\n" + "".join(f"{i},x\n" for i in range(5000))).encode())
    (tmp_path / "t.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"t\.csv\.gz: cannot be read as csv \(Compressed file ended"):
        files.read_table(tmp_path / "t.csv.gz")


# ---------------------------------------------------------------------------------------------- where quotes is given
def test_quotes_of_a_file_in_a_config_and_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('query\tpassage\n"a\tb\nc\td"\n', encoding="utf-8")

    def judged(file: object) -> list:
        settings = FilesSettings(folder=str(tmp_path), train={"t": {"file": file}})
        assert settings.paths()["train", "t", "file"] == str(path)
        pairs = examples.judged("t", settings.local(tmp_path).train["t"], np.random.default_rng(0)).pairs
        return pairs[["query", "passage"]].values.tolist()

    assert judged({"path": "t.tsv", "quotes": "text"}) == [['"a', "b"], ["c", 'd"']]
    for file, message in (("t.tsv", "a field begins with a qu"), ({"path": "t.tsv", "quotes": "format"}, "expected 2")):
        with pytest.raises(DataError, match=rf"t\.tsv: line 2: {message}"):
            judged(file)
    assert read_texts(str(path), "passage", quotes="text")["text"].tolist() == ["b", 'd"']
    with pytest.raises(ConfigError, match="--quotes: .*holds a text a line"):
        read_texts(str(tmp_path / "t.txt"), quotes="text")


def test_quotes_are_of_csv_and_tsv() -> None:
    for table, name, more in ((OwnTable, "path", {}), (HubTable, "file", {"repo": "a/b", "revision": "c"})):
        with pytest.raises(ValueError, match="quotes with a CSV or TSV file only"):
            table(**more, **{name: "t.parquet"}, quotes="text")
        assert table(**more, **{name: "t.tsv.gz"}, quotes="text").quotes == "text"


# ------------------------------------------------------------------------------------------------------------- Parquet
def test_nullable_columns_of_parquet_are_plain_values(tmp_path: Path) -> None:
    """As pandas' own types, or as floats, 2⁵³ + 1 and a missing label would be other values, or errors later on."""
    big = 2**53 + 1
    columns = {
        "id": (pd.Int64Dtype(), [big, None, 3]), "label": (pd.Int64Dtype(), [1, 0, None]),
        "flag": (pd.BooleanDtype(), [True, False, None]), "word": (pd.CategoricalDtype(), ["yes", "no", None]),
        "text": (pd.StringDtype(), ["a", "b", None]), "score": (pd.Float64Dtype(), [0.5, None, 1.0]),
    }  # fmt: skip
    path = tmp_path / "t.parquet"
    pd.DataFrame({name: pd.Series(values, dtype=kind) for name, (kind, values) in columns.items()}).to_parquet(path)
    frame = files.read_table(path)
    assert {name: frame[name].tolist() for name in frame} == {name: values for name, (_, values) in columns.items()}
    assert {type(value) for name in frame for value in frame[name]} == {int, bool, str, float, type(None)}
    for column, yes, no in (("label", [1], [0]), ("flag", [True], [False]), ("word", ["yes"], ["no"])):
        with pytest.raises(DataError, match=rf"line 3, column '{column}': expected a label; found None"):
            files.labels(path, frame, column, yes, no)
        assert files.labels(path, frame.head(2), column, yes, no).tolist() == [True, False]
    with pytest.raises(DataError, match="line 2, column 'id': expected an id; found None"):
        files.ids(path, frame, "id")
    assert files.ids(path, frame.drop(index=2), "id").tolist() == [str(big), "3"]
