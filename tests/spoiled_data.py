"""One's own data files spoiled at random: values of rows, columns, bytes, compression; and what has to hold of each: it is read, or refused with its name and place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from spoiled_configs import at_most

from d2llm.config.data import Retrieval, TaskSet, TrainingSet
from d2llm.data.files import examples
from d2llm.run.artifacts import read_frame, write_frame
from d2llm.run.errors import DataError

FORMATS = ("jsonl", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz", "tsv.gz")
ODD: list[Any] = [
    None, "", " ", "\n", "x" * 3000, "a\tb", 'a"b', '"', "a,b", "\x00", "\ud800", "甲", "NA", "nan", "null", "-0", "1e400", "1_0", "١", "yes", "no",
    0, 1, -1, 2, 7, 10**30, 0.5, 5.0, -3.5, float("nan"), float("inf"), True, False, [], ["a"], ["a", ""], [None], [1], [["a"]], {}, {"text": "a"},
    {"text": 3}, [{"text": "甲"}], [{"t": 1}],
]  # fmt: skip
BYTES = [
    b"\xff",
    b"\x00",
    b"\r",
    b"\n",
    b"\n\n",
    b'"',
    b",",
    b"\t",
    b"{",
    b"}",
    b"[]",
    b"\xef\xbb\xbf",
    b"\xe7",
    b"NaN",
    b"1e999",
    b"PAR1",
    b"\x1f\x8b",
]
VALUES = st.one_of(st.sampled_from(ODD), st.text(max_size=6), st.integers(-9, 9), st.floats())


@dataclass(frozen=True)
class Spoiled:
    """One data set: what it is read as, and its files by the key that names them, each (ending, bytes)."""

    kind: str
    settings: dict[str, Any]
    files: dict[str, tuple[str, bytes]]


def clean(kind: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of a set that nothing is wrong with, by file."""
    texts = [f"甲 {number}" for number in range(8)]
    if kind in ("retrieval", "retrieval_task"):
        return {
            "queries": [{"id": f"q{i}", "text": text} for i, text in enumerate(texts)],
            "corpus": [{"id": i, "text": f"{text} 乙"} for i, text in enumerate(texts)],
            "qrels": [{"query_id": f"q{i}", "doc_id": i, "relevance": 1 + i % 2} for i in range(8)],
        }
    rows = []
    for i, text in enumerate(texts):
        rows.append(
            {
                "query": text,
                "passage": f"{text} 丙",
                "label": "yes" if i % 2 else "no",
                "score": i % 6,
                "negatives": [f"丁 {i}", "戊"],
            }
        )
    return {"file": rows}


SETTINGS: dict[str, dict[str, Any]] = {
    "label": {"label": "label", "yes": ["yes"], "no": ["no"]},
    "both": {"label": "label", "yes": ["yes"], "no": ["no"], "incomplete": "drop"},
    "score": {"score": "score", "scores": (0.0, 5.0), "yes_from": 4.0},
    "triple": {"negatives": "negatives"},
    "plain": {"incomplete": "drop", "sample": 5},
    "retrieval": {},
    "pairs_task": {"type": "pair_classification", "group": "nli", "sentence1": "query", "sentence2": "passage", "yes": ["yes"], "no": ["no"]},
    "sts_task": {"type": "sts", "group": "sts", "sentence1": "query", "sentence2": "passage", "scores": (0.0, 5.0), "test_part": (0.0, 0.7)},
    "retrieval_task": {"type": "retrieval", "group": "ir", "sample": 4},
}  # fmt: skip


def written(rows: list[dict[str, Any]], ending: str) -> bytes:
    """Rows as the bytes of a file; raises for what the format cannot hold."""
    kind = ending.removesuffix(".gz")
    if kind == "jsonl":
        content = "".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) + "\n" for row in rows).encode(
            "utf-8", "surrogatepass"
        )
    elif kind == "parquet":
        stream = io.BytesIO()
        pd.DataFrame(rows).to_parquet(stream)
        content = stream.getvalue()
    else:
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, columns, delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode("utf-8", "surrogatepass")
    return gzip.compress(content, mtime=0) if ending.endswith(".gz") else content


@st.composite
def spoiled(draw: st.DrawFn) -> Spoiled:
    """A data set with up to four things wrong with it."""
    kind = draw(st.sampled_from(sorted(SETTINGS)))
    settings, files = dict(SETTINGS[kind]), {}
    for name, rows in clean(kind).items():
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(rows) - 1)) if rows else 0
            if not rows:
                break
            match draw(st.sampled_from(["value", "value", "value", "drop", "column", "row", "twice", "all", "none"])):
                case "value":
                    rows[at][draw(st.sampled_from(sorted(rows[at]) or ["x"]))] = draw(VALUES)
                case "drop":
                    rows[at].pop(draw(st.sampled_from(sorted(rows[at]) or ["x"])), None)
                case "column":
                    column = draw(st.sampled_from(sorted(rows[at]) or ["x"]))
                    for row in rows:
                        row[column + draw(st.sampled_from(["", "x", " "]))] = row.pop(column, None)
                case "row":
                    del rows[at]
                case "twice":
                    rows.append(dict(rows[at]))
                case "all":
                    column, value = draw(st.sampled_from(sorted(rows[at]) or ["x"])), draw(VALUES)
                    for row in rows:
                        row[column] = value
                case "none":
                    rows.clear()
        ending = draw(st.sampled_from(FORMATS))
        try:
            content = written(rows, ending)
        except Exception:  # what a format cannot hold, JSON lines can
            ending = "jsonl"
            content = written(rows, ending)
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
            at = draw(st.integers(0, len(content)))
            content = (
                content[:at]
                + draw(st.sampled_from([b"", *BYTES]))
                + content[at + draw(st.sampled_from([0, 0, 1, 2, 50])) :]
            )
        if draw(st.integers(0, 9)) == 0:
            content = content[: draw(st.integers(0, len(content)))]
        if draw(st.integers(0, 19)) == 0:
            ending = draw(st.sampled_from([*FORMATS, "txt", "json"]))
        files[name] = (ending, content)
    return Spoiled(kind, settings, files)


def outcome(made: Spoiled, folder: Path) -> str:
    """`read`, or the line with which a set is refused. Raises AssertionError for a line that does not say where, and for contents that later stages cannot have."""
    paths = {}
    for name, (ending, content) in made.files.items():
        paths[name] = folder / f"{name}.{ending}"
        paths[name].write_bytes(content)
    strings = {name: str(path) for name, path in paths.items()}
    try:
        with at_most(20):
            frames = read(made, strings)
    except DataError as error:
        line = str(error)
        assert line.isprintable() and len(line) < 1000, f"not one line: {line!r}"
        if not line.startswith("data.files."):
            where = [path for path in strings.values() if line.startswith(f"{path}: ")]
            assert where, f"names no file: {line!r}"
            rest = line.removeprefix(where[0])
            assert re.search(r"line \d+|column '|cannot be read as|no rows|ends in", rest), f"names no place: {line!r}"
        return line
    for name, frame in frames.items():
        check(name, frame)
        write_frame(folder / "out.parquet", frame)
        assert len(read_frame(folder / "out.parquet")) == len(frame)
    return "read"


def read(made: Spoiled, paths: dict[str, str]) -> dict[str, pd.DataFrame]:
    """The frames that a set becomes."""
    rng = np.random.default_rng(0)
    if made.kind.endswith("task"):
        source = Retrieval(**paths) if made.kind == "retrieval_task" else paths["file"]
        return examples.evaluation_set("t", TaskSet(**made.settings, test=source), "test", rng).frames
    given = {"retrieval": Retrieval(**paths)} if made.kind == "retrieval" else {"file": paths["file"]}
    pairs, passages, _ = examples.judged("t", TrainingSet(**made.settings, **given), rng)
    train, pool = examples.training_pairs(pairs, {"t": passages})
    return {"judged": pairs, "train": train, "pool": pool}


def check(name: str, frame: pd.DataFrame) -> None:
    """What later stages count on."""
    assert (
        not set(frame.columns) & {"a", "b", "text", "sentence1", "sentence2", "query", "positive"}
        or len(frame)
        or name != "judged"
    )
    for column in set(frame.columns) & {"a", "b", "text", "sentence1", "sentence2", "query", "positive"}:
        assert all(isinstance(value, str) and value.strip() for value in frame[column]), f"{name}.{column}"
    for column in set(frame.columns) & {"id", "query_id", "doc_id"}:
        assert all(isinstance(value, str) and value for value in frame[column]), f"{name}.{column}"
    for column in set(frame.columns) & {"target", "score", "label", "relevance"}:
        assert all(math.isfinite(value) for value in frame[column]), f"{name}.{column}"
