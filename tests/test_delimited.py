"""CSV and TSV: read right, or refused with the line; no row is lost, none is shifted."""

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
from d2llm.config.data import HubTable, OwnTable, TrainingSet
from d2llm.config.load import load
from d2llm.data.files import examples
from d2llm.data.files import read as files
from d2llm.run.errors import ConfigError, DataError

SEPARATOR = {"csv": ",", "tsv": "\t"}
MARKS = r"quotes: format\}, as an option --quotes format .*, or text"

# Each was read without a word: columns shifted, rows gone, marks gone, or a line that no editor shows.
REFUSED = [
    ("csv", "query,passage,source\nq1,p1,web,\n", r"line 2: expected 3 fields, .* found 4: is there a comma too many at its end\?"),
    ("csv", "sentence1,sentence2,score\nA man eats.,A man is eating.,4,5\n", r"line 2: expected 3 fields, .* found 4: is there a comma in a field without"),
    ("csv", "a,b\nx,y\nx\n", r"line 3: expected 2 fields, .* found 1: is the row cut"),
    ("csv", "a,b\nx, yes,no\n", r"line 2: expected 2 fields, .* found 3"),
    ("csv", "a,b,a\nx,y,z\n", r"line 1: expected every column once; found two of the name 'a'"),
    ("csv", "a;b\nx;y\n", r"line 1: expected columns divided by a comma; is it a semicolon\? Found 'a;b'"),
    ("tsv", "a,b\nx,y\n", r"line 1: expected columns divided by a tab; is it a comma\?"),
    ("tsv", "id\ttext\n1\t\"Oh no\n2\tfine\n3\tno\n4\tyes\n5\tso \"\n", rf"line 2: a field begins with a quotation mark; .*{MARKS}"),
    ("tsv", "id\ttext\n1\tso\n2\t\"yes\"\n", rf"line 3: a field begins with a quotation mark; .*{MARKS}"),
    ("tsv", "id\ttext\n1\ta tab\tin it\n", r"line 2: expected 2 fields, .* found 3: is there a tab in a text\?"),
    ("csv", "id,text\n1,\"Oh no\n2,fine\n3,so \"\n", rf"line 2: .* ends in line 4 only, and 3 of these lines may be rows .*{MARKS}"),
    ("csv", "id,text\n1,so\n2,\"Oh no\n3,fine\n", r"line 3: nothing ends the field that a quotation mark begins; where the marks are text"),
    ("csv", "id,text\n1,\"yes\" and left\n", r"line 2: something follows the quotation mark that ends a field .*quotes: text}"),
    ("csv", 'id,text\n1,"he said \\"no\\" twice"\n', r"line 2: a backslash before a quotation mark; .* write the mark twice"),
    ("csv", 'a,b,c\n"x \\", y",z\n', r"line 2: a backslash before a quotation mark"),
    ("csv", 'a,b,c\nx, "y, z"\n', r"line 2: a blank before the quotation mark"),
    ("csv", "a,b\nx,y\x00z\n", r"line 2: a NUL byte"),
]  # fmt: skip


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
    (
        "csv",
        None,
        'a,b\n"two\nlines",y\n',
        [["two\nlines", "y"]],
    ),  # no row: its second line has one field, its first none
    ("csv", "format", 'id,text\n1,"Oh no\n2,fine"\n', [["1", "Oh no\n2,fine"]]),
    ("csv", "format", 'a,b\n"c:\\",y\n', [["c:\\", "y"]]),
    ("csv", "text", 'id,text\n1,"Oh no\n2,so "\n', [["1", '"Oh no'], ["2", 'so "']]),
    ("tsv", None, 'id\ttext\n1\the said "no"\\"\n', [["1", 'he said "no"\\"']]),
    ("tsv", "text", 'id\ttext\n1\t"Oh no\n2\t"yes"\n', [["1", '"Oh no'], ["2", '"yes"']]),
    ("tsv", "format", 'id\ttext\n1\t"two\nlines, a\ttab"\n', [["1", "two\nlines, a\ttab"]]),
    ("csv", None, "text\none\n\ntwo\n\n", [["one"], [""], ["two"]]),
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
    lines = content.replace("\r\n", "\n").split("\n")
    assert frame.index.tolist() == [lines.index('"one') + 1, lines.index("y,z") + 1, lines.index(",w") + 1] == [2, 6, 7]
    with pytest.raises(DataError, match="line 7, column 'a': expected a text; found ''"):
        files.texts(tmp_path / "t.csv", frame, "a")


FIELDS = st.text(st.sampled_from('ab"\\ ,;\t\n甲'), max_size=6)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.lists(FIELDS, min_size=2, max_size=2), min_size=1, max_size=6),
    kind=st.sampled_from(["csv", "tsv"]),
    every=st.booleans(),
)
def test_what_a_standard_writer_writes_is_read_as_it_was_or_refused(
    rows: list, kind: str, every: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"written.{kind}"
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=SEPARATOR[kind], quoting=quoting, lineterminator="\n").writerows([["one", "two"], *rows])
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    assert files.read_table(path, quotes="format").values.tolist() == rows
    try:
        assert files.read_table(path).values.tolist() == rows
    except DataError as error:
        assert "quotes: format" in str(error)  # and how to read it is in the line


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(
        st.lists(st.text(st.sampled_from('ab"\\ 甲'), min_size=1, max_size=5), min_size=2, max_size=3),
        min_size=1,
        max_size=6,
    ),
    kind=st.sampled_from(["csv", "tsv"]),
)
def test_no_row_disappears_of_a_file_whose_marks_are_text(
    rows: list, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"raw.{kind}"
    rows = [row[: len(rows[0])] for row in rows if len(row) >= len(rows[0])]
    separator = SEPARATOR[kind]
    path.write_text(
        "\n".join(separator.join(row) for row in [["x", "y", "z"][: len(rows[0])], *rows]), encoding="utf-8"
    )
    assert files.read_table(path, quotes="text").values.tolist() == rows
    try:
        found = files.read_table(path).values.tolist()
    except DataError as error:
        assert re.search(r"quotes: text|, or text|a backslash before", str(error))
        return
    assert len(found) == len(rows)
    assert found == rows if kind == "tsv" else all(a in (b, b[1:-1].replace('""', '"')) for x, y in zip(found, rows, strict=True) for a, b in zip(x, y, strict=True))  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_file_in_another_encoding_is_named_with_its_line(kind: str, encoding: str, tmp_path: Path) -> None:
    content = '{"a": "x"}\n{"a": "café"}\n' if kind == "jsonl" else f"a{SEPARATOR[kind]}b\ncafé{SEPARATOR[kind]}x\n"
    (tmp_path / f"t.{kind}").write_bytes(content.encode(encoding))
    with pytest.raises(
        DataError,
        match=r"line [12]: (not UTF-8 \(.*\); save the file as UTF-8|a NUL byte; is the file UTF-16\?|not JSON)",
    ):
        files.read_table(tmp_path / f"t.{kind}")


def test_a_long_field_and_a_cut_archive(tmp_path: Path) -> None:
    long = "x" * 200_000
    (tmp_path / "t.csv").write_text(f'a,b\n"{long}, y",z\n', encoding="utf-8")
    assert files.read_table(tmp_path / "t.csv")["a"].tolist() == [f"{long}, y"]
    whole = gzip.compress(("a,b\n" + "".join(f"{i},x\n" for i in range(5000))).encode())
    (tmp_path / "t.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"t\.csv\.gz: cannot be read as csv \(Compressed file ended"):
        files.read_table(tmp_path / "t.csv.gz")


# ---------------------------------------------------------------------------------------------- where quotes is given
def test_quotes_of_a_file_in_a_config_and_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('query\tpassage\n"a\tb\nc\td"\n', encoding="utf-8")
    shared = {"data": {"source": "files", "files": {"folder": str(tmp_path), "tasks": {"t": {"type": "sts", "group": "sts", "test": "t.tsv"}}}}, "methods": {"bge": {}}, "training": {"dev_every": 0}, "models": {name: {"source": f"org/{name}"} for name in ("teacher", "decoder", "encoder")}}  # fmt: skip

    def judged(file: object) -> list:
        shared["data"]["files"]["train"] = {"t": {"file": file}}
        settings = load([], shared).data.files
        assert settings.paths()["train", "t", "file"] == str(tmp_path / "t.tsv")
        made = settings.local(tmp_path).train["t"]
        return examples.judged("t", made, np.random.default_rng(0))[0][["a", "b"]].values.tolist()

    with pytest.raises(DataError, match=r"t\.tsv: line 2: a field begins with a quotation mark"):
        judged("t.tsv")
    assert judged({"path": "t.tsv", "quotes": "text"}) == [['"a', "b"], ["c", 'd"']]
    with pytest.raises(DataError, match=r"t\.tsv: line 2: expected 2 fields"):
        judged({"path": "t.tsv", "quotes": "format"})
    assert read_texts(str(tmp_path / "t.tsv"), "passage", quotes="text")["text"].tolist() == ["b", 'd"']
    with pytest.raises(ConfigError, match="--quotes: .*holds a text a line"):
        read_texts(str(tmp_path / "t.txt"), quotes="text")


@pytest.mark.parametrize("table", [OwnTable, HubTable])
def test_quotes_are_of_csv_and_tsv(table: type) -> None:
    more = {"path": "t.parquet"} if table is OwnTable else {"repo": "a/b", "revision": "c", "file": "t.parquet"}
    with pytest.raises(ValueError, match="quotes with a CSV or TSV file only"):
        table(**more, quotes="text")
    for name in ("t.csv", "t.tsv.gz"):
        assert table(**more | {"path" if table is OwnTable else "file": name}, quotes="text").quotes == "text"
    assert TrainingSet(file={"path": "t.tsv", "quotes": "text"}).file.quotes == "text"


# ------------------------------------------------------------------------------------------------------------- Parquet
def test_nullable_columns_of_parquet_are_plain_values(tmp_path: Path) -> None:
    """As pandas' own types, or as floats, 2⁵³ + 1 and a missing label would be other values, or errors later on."""
    big = 2**53 + 1
    frame = pd.DataFrame(
        {
            "id": pd.array([big, None, 3], dtype="Int64"), "label": pd.array([1, 0, None], dtype="Int64"), "flag": pd.array([True, False, None], dtype="boolean"),
            "word": pd.Categorical(["yes", "no", None]), "text": pd.array(["a", "b", None], dtype="string"), "score": pd.array([0.5, None, 1.0], dtype="Float64"),
        }
    )  # fmt: skip
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    found = files.read_table(path)
    assert {name: found[name].tolist() for name in found} == {
        "id": [big, None, 3], "label": [1, 0, None], "flag": [True, False, None], "word": ["yes", "no", None],
        "text": ["a", "b", None], "score": [0.5, None, 1.0],
    }  # fmt: skip
    assert {type(value) for name in found for value in found[name]} == {int, bool, str, float, type(None)}
    for column, yes, no in (("label", [1], [0]), ("flag", [True], [False]), ("word", ["yes"], ["no"])):
        with pytest.raises(DataError, match=rf"line 3, column '{column}': expected a label; found None"):
            files.labels(path, found, column, yes, no)
        assert files.labels(path, found.head(2), column, yes, no).tolist() == [True, False]
    with pytest.raises(DataError, match="line 2, column 'id': expected an id; found None"):
        files.ids(path, found, "id")
    assert files.ids(path, found.drop(index=2), "id").tolist() == [str(big), "3"]
    settings = TrainingSet(
        file=str(path), query="text", passage="word", label="label", yes=[1], no=[0], incomplete="drop"
    )
    assert examples.judged("t", settings, np.random.default_rng(0))[0]["label"].tolist() == [True, False]
