"""A run made again, by made-up records: equal files pass, the first that differs is named with its stage, times and
places of folders count for nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from d2llm.cli import main as cli
from d2llm.reporting.certify import compared
from d2llm.run.artifacts import read_jsonl, write_json

SCORES = "evaluations/bge/base/seed1/scores.parquet"


def records(root: str, **digests: str) -> dict[str, dict[str, Any]]:
    """The records of a small run in a folder; what its jobs read has these digests, or "same"."""

    def record(stage: str, *names: str) -> dict[str, Any]:
        inputs = {f"{root}/{name}": digests.get(name.rpartition("/")[2].partition(".")[0], "same") for name in names}
        return {
            "stage": stage,
            "inputs": inputs | ({"../own/sick.jsonl": digests.get("own", "same")} if stage == "data" else {}),
        }

    return {
        "scores.parquet.provenance.json": record("collect", SCORES, "runs/bge/base/seed1/summary.json"),
        "evaluations/bge/base/seed1/provenance.json": record("evaluate", "data/tasks", "runs/bge/base/seed1/model"),
        "runs/bge/base/seed1/provenance.json": record("train", "pairs/pairs.parquet", "models/encoder"),
        "pairs/provenance.json": record("negatives", "data/train.parquet", "models/encoder"),
        "models/encoder/provenance.json": record("base", "data/pretraining.parquet"),
        "data/provenance.json": record("data", "data/pretraining.parquet"),
        "data/pretraining.parquet.provenance.json": record("texts"),
        "tables/nli.csv.provenance.json": record("table", "comparisons.csv"),
        "comparisons.csv.provenance.json": record("comparison", "scores.parquet"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ({"summary": "other", "comparisons": "other"}, None),  # times, and what is made of scores
        ({"model": "other", "scores": "other"}, ("train", "runs/bge/base/seed1/model")),
        ({"scores": "other"}, ("evaluate", SCORES)),
        ({"encoder": "other", "pairs": "other"}, ("base", "models/encoder")),
        ({"own": "other", "tasks": "other"}, ("your file", "sick.jsonl")),
    ],
)
def test_the_first_difference_is_found_where_it_arose(changed: dict[str, str], first: tuple[str, str] | None) -> None:
    certificate = compared(records("results/mini"), records("/elsewhere/data/mini", **changed))
    assert certificate.passed == (first is None) and not certificate.lacking
    assert len(certificate.equal) + len(certificate.different) == 9
    assert (certificate.different or [None])[0] == first
    if first is not None:
        assert certificate.text().endswith(f"the first {first[1]} (stage {first[0]})")


def test_a_run_that_lacks_a_job_does_not_pass() -> None:
    fewer = records("results/mini")
    del fewer["evaluations/bge/base/seed1/provenance.json"]
    certificate = compared(records("results/mini"), fewer)
    assert not certificate.passed and "runs/bge/base/seed1/model" in certificate.lacking


def test_the_command_adds_a_line_to_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, digests in (("first", {}), ("again", {"model": "other"})):
        write_json(tmp_path / name / "provenance.json", records("results/mini", **digests))
    log = str(tmp_path / "log.jsonl")
    assert cli.main(["certify", str(tmp_path / "first"), str(tmp_path / "again"), "--log", log]) == 1
    assert cli.main(["certify", str(tmp_path / "first"), str(tmp_path / "first"), "--log", log]) == 0
    assert capsys.readouterr().out.endswith("identical: 9 files, byte for byte\n")
    lines = read_jsonl(log)
    assert [line["passed"] for line in lines] == [False, True]
    assert lines[0]["first"] == {"stage": "train", "file": "runs/bge/base/seed1/model"}
    assert cli.main(["certify", str(tmp_path), str(tmp_path / "first")]) == 2
    assert "no records of jobs" in capsys.readouterr().err
