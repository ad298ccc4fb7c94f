"""The whole suite in miniature: Snakemake runs every stage for every method, twice, and both runs end with the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_workflow import fresh  # noqa: F401 - a fixture
from tiny_run import tiny_settings

from d2llm.reporting.figures import FIGURES
from d2llm.reporting.tables import TABLES


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "tiny.yaml", *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)


@pytest.mark.slow
def test_the_whole_workflow_twice(fresh: Path) -> None:  # noqa: F811
    (fresh / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings(Path("one")), allow_unicode=True), encoding="utf-8")
    for results in ("one", "two"):
        done = run(fresh, "-C", f"results={results}")
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (fresh / results / "tiny" for results in ("one", "two"))
    assert (one / "scores.csv").read_bytes() == (two / "scores.csv").read_bytes()
    for name in TABLES:
        for ext in ("csv", "md", "tex"):
            table = (one / "tables" / f"{name}.{ext}").read_bytes()
            assert table == (two / "tables" / f"{name}.{ext}").read_bytes()
            assert "d2llm" in table.decode().lower()
    for name in (f"figures/{figure}.{ext}" for figure in FIGURES for ext in ("pdf", "svg", "png")):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert (one / "comparisons.csv").read_bytes() == (two / "comparisons.csv").read_bytes()
    pd.testing.assert_frame_equal(
        pd.read_parquet(one / "predictions.parquet"), pd.read_parquet(two / "predictions.parquet")
    )

    scores = pd.read_csv(one / "scores.csv")
    methods = {"d2llm", "bge", "retromae", "llara", "sgpt", "udever", "teacher", "bm25"}
    tasks = {path.name for path in (one / "data" / "tasks").iterdir() if path.is_dir()}
    assert len(tasks) == 8
    counted = scores[scores["phenomenon"] == "all"].groupby(["method", "task"]).size()
    assert set(counted.index) == {(method, task) for method in methods for task in tasks}
    assert scores["value"].notna().all()
    # Students of different methods are different models.
    found = scores[(scores["phenomenon"] == "all") & (scores["task_type"] == "sts")].pivot_table(
        index="method", columns=["task", "metric"], values="value"
    )
    assert not found.round(9).duplicated().any()

    # Every artifact says where it comes from, and a second call finds nothing to do.
    records = [json.loads(path.read_text(encoding="utf-8")) for path in one.rglob("*provenance.json")]
    assert {record["stage"] for record in records} == {
        "data", "base", "negatives", "teacher", "teacher-scores", "train", "evaluate", "collect", "comparison", "table", "figure",
    }  # fmt: skip
    again = run(fresh, "-C", "results=one")
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr
