"""One's own data files spoiled at random: values of rows, columns, bytes, compression; and what has to hold of each: it
is read, or refused with its name and place."""

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
from own_files import rows
from spoiled_configs import at_most

from d2llm.config.data import Retrieval, TaskSet, TrainingSet
from d2llm.data.files import examples
from d2llm.run.artifacts import read_frame, write_frame
from d2llm.run.errors import DataError

FORMATS = ("jsonl", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz", "tsv.gz")
ODD: list[Any] = [
    None, "", " ", "\n", "x" * 3000, "a\tb", 'a"b', '"', "a,b", "\x00", "\ud800", "甲", "NA", "nan", "null", "-0",
    "1e400", "1_0", "١", "yes", "no", 0, 1, -1, 7, 10**30, 0.5, float("nan"), float("inf"), True, False, [], ["a"],
    ["a", ""], [None], [1], [["a"]], {}, {"text": "a"}, {"text": 3}, [{"text": "甲"}], [{"t": 1}],
]  # fmt: skip
BYTES = [b"", *b'\xff \x00 \r \n \n\n " , \t { } [] \xef\xbb\xbf \xe7 NaN 1e999 PAR1 \x1f\x8b'.split(b" ")]
VALUES = st.one_of(st.sampled_from(ODD), st.text(max_size=6), st.integers(-9, 9), st.floats())
TEXTS = {"text", "query", "passage", "passages", "positive"}
IDS, NUMBERS = {"id", "query_id", "doc_id"}, {"target", "score", "label", "relevance"}
PAIRS = {"query": "query", "passage": "passage"}
LABELLED = {"label": "label", "yes": ["yes"], "no": ["no"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "label": LABELLED,
    "both": LABELLED | {"incomplete": "drop"},
    "score": {"score": "score", "scores": (0.0, 5.0), "yes_from": 4.0},
    "triple": {"negatives": "negatives"},
    "plain": {"incomplete": "drop", "sample": 5},
    "retrieval": {},
    "pairs_task": {"type": "pair_classification", "group": "nli", **PAIRS, **LABELLED},
    "sts_task": {"type": "sts", "group": "sts", **PAIRS, "scores": (0.0, 5.0), "test_part": (0.0, 0.7)},
    "retrieval_task": {"type": "retrieval", "group": "ir", "sample": 4},
}


@dataclass(frozen=True)
class Spoiled:
    """One data set: what it is read as, and its files by the key that names them, each (ending, bytes)."""

    kind: str
    files: dict[str, tuple[str, bytes]]


def clean(kind: str) -> dict[str, list[dict[str, Any]]]:
    """Rows of a set that nothing is wrong with, by file."""
    if kind in ("retrieval", "retrieval_task"):
        return {
            "queries": rows("id text", *((f"q{i}", f"甲 {i}") for i in range(8))),
            "corpus": rows("id text", *((i, f"甲 {i} 乙") for i in range(8))),
            "qrels": rows("query_id doc_id relevance", *((f"q{i}", i, 1 + i % 2) for i in range(8))),
        }
    values = ((f"甲 {i}", f"甲 {i} 丙", ("no", "yes")[i % 2], i % 6, [f"丁 {i}", "戊"]) for i in range(8))
    return {"file": rows("query passage label score negatives", *values)}


def written(table: list[dict[str, Any]], ending: str) -> bytes:
    """Rows as the bytes of a file; raises for what the format cannot hold."""
    kind = ending.removesuffix(".gz")
    if kind == "parquet":
        return pd.DataFrame(table).to_parquet()
    text = io.StringIO()
    if kind == "jsonl":
        text.writelines(json.dumps(row, ensure_ascii=len(table) % 2 == 0) + "\n" for row in table)
    else:
        columns = list(dict.fromkeys(name for row in table for name in row))
        writer = csv.DictWriter(text, columns, delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(table)
    content = text.getvalue().encode("utf-8", "surrogatepass")
    return gzip.compress(content, mtime=0) if ending.endswith(".gz") else content


def spoil_rows(draw: st.DrawFn, table: list[dict[str, Any]]) -> None:
    """One thing wrong with rows, in place."""
    row = draw(st.sampled_from(table))
    column, value = draw(st.sampled_from(sorted(row) or ["x"])), draw(VALUES)
    match draw(st.sampled_from(["value", "value", "value", "drop", "column", "twice", "all", "none"])):
        case "value":
            row[column] = value
        case "drop":
            row.pop(column, None)
        case "column":
            for one in table:
                one[column + draw(st.sampled_from(["x", " "]))] = one.pop(column, None)
        case "twice":
            table.append(dict(row))
        case "all":
            for one in table:
                one[column] = value
        case "none":
            table.clear()


@st.composite
def spoiled(draw: st.DrawFn) -> Spoiled:
    """A data set with a few things wrong with it."""
    kind, files = draw(st.sampled_from(sorted(SETTINGS))), {}
    for name, table in clean(kind).items():
        for _ in range(draw(st.integers(0, 2))):
            if table:
                spoil_rows(draw, table)
        ending = draw(st.sampled_from(FORMATS))
        try:
            content = written(table, ending)
        except Exception:  # what a format cannot hold, JSON lines can
            content = written(table, ending := "jsonl")
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
            at, cut = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 0, 1, 50, len(content)]))
            content = content[:at] + draw(st.sampled_from(BYTES)) + content[at + cut :]
        files[name] = (draw(st.sampled_from([*[ending] * 19, "txt"])), content)
    return Spoiled(kind, files)


def outcome(spoiled_set: Spoiled, folder: Path) -> str:
    """`read`, or the line with which a set is refused. Raises AssertionError for a line that does not say where, and
    for contents that later stages cannot have."""
    paths = {name: str(folder / f"{name}.{ending}") for name, (ending, _) in spoiled_set.files.items()}
    for name, (_, content) in spoiled_set.files.items():
        Path(paths[name]).write_bytes(content)
    try:
        with at_most(20):
            frames = read(spoiled_set.kind, paths)
    except DataError as error:
        line = str(error)
        assert line.isprintable() and len(line) < 1000, f"not one line: {line!r}"
        if not line.startswith("data.files."):
            place = next(
                (line.removeprefix(f"{path}: ") for path in paths.values() if line.startswith(f"{path}: ")), ""
            )
            assert re.search(r"line \d+|column '|cannot be read as|no rows|ends in", place), f"names no place: {line!r}"
        return line
    for frame in frames.values():
        for column in frame:
            values = frame[column]
            assert column not in TEXTS or all(isinstance(value, str) and value.strip() for value in values), column
            assert column not in IDS or all(isinstance(value, str) and value for value in values), column
            assert column not in NUMBERS or all(map(math.isfinite, values)), column
        write_frame(folder / "out.parquet", frame)
        assert len(read_frame(folder / "out.parquet")) == len(frame)
    return "read"


def read(kind: str, paths: dict[str, str]) -> dict[str, pd.DataFrame]:
    """The frames that a set becomes."""
    rng = np.random.default_rng(0)
    source = {"retrieval": Retrieval(**paths)} if kind.startswith("retrieval") else paths
    if kind.endswith("task"):
        task = TaskSet(**SETTINGS[kind], test=next(iter(source.values())))
        return examples.evaluation_set("t", task, "test", rng).frames
    pairs, passages, _ = examples.judged("t", TrainingSet(**SETTINGS[kind], **source), rng)
    assert len(pairs)
    train, pool = examples.training_pairs(pairs, {"t": passages})
    return {"judged": pairs, "train": train, "pool": pool}
