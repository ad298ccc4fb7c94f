"""A teacher that is a file of scores: what is stored is what stands there, what is wrong is one line, and no model is
made or asked.
"""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from own_files import jsonl, rows
from tiny_run import tiny_config

from d2llm.cli.plan import all_jobs
from d2llm.config.schema import Config
from d2llm.run.artifacts import read_jsonl
from d2llm.run.errors import DataError
from d2llm.run.jobs import modules, settings
from d2llm.run.paths import Paths
from d2llm.run.stages import STAGES
from d2llm.teacher.from_file import scored

# Two packs of two; "a" stands in both, with another positive.
PAIRS = pd.DataFrame(
    rows(
        "qid query positive negatives pack mode",
        ("1", "a", "p", ["n", "m"], 0, "symmetric"),
        ("2", "b", "r", ["n", "o"], 0, "symmetric"),
        ("3", "a", "s", ["n", "o"], 1, "symmetric"),
        ("4", "c", "p", ["m", "o"], 1, "symmetric"),
    )
)
HARD = {"1": "pnm", "2": "rno", "3": "sno", "4": "pmo"}
EASY = {"1": "r", "2": "p", "3": "p", "4": "s"}
QUERY = dict(zip(PAIRS["qid"], PAIRS["query"], strict=True))
NEEDED = dict.fromkeys((QUERY[qid], text) for side in (HARD, EASY) for qid, texts in side.items() for text in texts)
# By pair, between 0 and 1; the last two are the ends.
VALUE = dict(zip(NEEDED, [*np.linspace(0.05, 0.95, len(NEEDED) - 2).round(3), 0.0, 1.0], strict=True))


def config(folder: Path, content: list[dict[str, Any]], scale: str = "probability", **teacher: Any) -> Config:
    """A run that reads these rows."""
    file = jsonl(folder / "scores.jsonl", content)
    methods = {"d2llm": {"gamma": 0.1 if teacher.get("features") else 0.0}}
    return tiny_config(folder, methods=methods, references=["bm25"], teacher={"scores": file, "scale": scale} | teacher)


def content(**more: Any) -> list[dict[str, Any]]:
    """A row a pair, a pair that nobody asks for, and one that stands there twice alike."""
    given = [{"query": q, "passage": p, "score": value} for (q, p), value in VALUE.items()]
    return [row | more for row in [*given, {"query": "z", "passage": "z", "score": 0.5}, given[0]]]


@pytest.mark.parametrize("kind", ["probability", "logit", "csv", "parquet"])
def test_what_is_stored_is_what_the_file_has(kind: str, tmp_path: Path) -> None:
    run = config(tmp_path, content(), "logit" if kind == "logit" else "probability")
    if kind in ("csv", "parquet"):
        file, frame = tmp_path / f"scores.{kind}", pd.DataFrame(content())
        frame.to_csv(file, index=False) if kind == "csv" else frame.to_parquet(file)
        run = config(tmp_path, content(), scores=str(file))
    table = scored(run, "teacher", PAIRS).set_index("qid")
    for qid, query in QUERY.items():
        for column, texts in (("yes", HARD[qid]), ("easy_yes", EASY[qid])):
            near = [min(max(VALUE[query, text], 1e-6), 1 - 1e-6) for text in texts]
            wanted = [VALUE[query, text] for text in texts] if kind == "logit" else [log(p / (1 - p)) for p in near]
            assert table.loc[qid, column].tolist() == pytest.approx(wanted, rel=1e-4)
            assert not table.loc[qid, column.replace("yes", "no")].any()
        assert np.isnan(table.loc[qid, "features"]).all() and len(table.loc[qid, "features"]) == 9


def test_features_are_compared_by_their_cosine(tmp_path: Path) -> None:
    run = config(tmp_path, [row | {"state": [row["score"], 1.0]} for row in content()], features="state")
    (matrix, *_) = scored(run, "teacher", PAIRS)["features"]
    states = np.array([[VALUE["a", text], 1.0] for text in "pnm"])
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    np.testing.assert_allclose(matrix.reshape(3, 3), unit @ unit.T, rtol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[2:-1], r"no score for 2 of the 14 pairs .*first: 'a' with 'p'.*score those listed in .*missing"),
        (lambda rows: [*rows, rows[0] | {"score": 0.7}], r"1 of 14 pairs .* several scores \(first: line 17: 'a' with 'p'"),
        (lambda rows: [*rows, rows[0] | {"score": None}], r"1 of 17 rows have no score from 0 to 1.*first: line 17"),
        (lambda rows: [row | {"score": 9 * row["score"]} for row in rows], r"1\d of 16 rows .*teacher.scale: probability"),
        (lambda rows: [{"query": "a", "text": "b", "score": 1}], "no column 'passage'; found query, text, score"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(spoil: Any, message: str, tmp_path: Path) -> None:
    run = config(tmp_path, spoil(content()))
    with pytest.raises(DataError, match=message) as error:
        scored(run, "teacher", PAIRS)
    assert "\n" not in str(error.value)
    listed = Paths.of(run).teacher_missing()
    if "listed" in message:
        assert read_jsonl(listed) == rows("query passage", ("a", "p"), ("a", "n"))
        scored(config(tmp_path, content()), "teacher", PAIRS)
    assert not listed.exists()


def test_no_model_is_made_tuned_or_asked(tmp_path: Path) -> None:
    """The job of the scores reads the file instead, and is of its name and scale."""
    run = config(tmp_path, content())
    assert "teacher" not in run.bases() and run.imitated() == ["teacher"]
    assert not {"teacher", "teacher_scores"} & {stage for stage, _ in all_jobs(run)}
    arguments = {"teacher": "teacher", "shard": "0", "shards": "1"}
    reads = STAGES["teacher_scores"].reads(run, Paths.of(run), **arguments)
    assert [path.name for path in reads] == ["pairs.parquet", "scores.jsonl"]
    assert settings(run, "teacher_scores", **arguments)["teacher.scale"] == "probability"
    assert "d2llm.teacher.from_file" in modules(run, "teacher_scores", **arguments)
