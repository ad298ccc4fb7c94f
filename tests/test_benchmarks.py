"""The benchmarks run, each on the smallest sizes there are; what one writes as JSON is what its figure reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from d2llm.config.schema import Config

ROOT = Path(__file__).parent.parent
SMALL = ["--width", "16", "--hidden", "16"]


def run(script: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_iem_scores(tmp_path: Path) -> None:
    output = run("iem.py", "--passages", "2000", *SMALL, "--rounds", "2", "--json", tmp_path / "iem.json")
    rows = {row["what"]: row for row in json.loads((tmp_path / "iem.json").read_text())["rows"]}
    assert rows["release"]["times faster than the release"] == 1
    assert rows["suite"]["GFLOP/s"] == pytest.approx(2 * 2000 * 16 * 16 / rows["suite"]["seconds"] / 1e9)
    off = {
        line.split(":")[0]: float(line.split()[-1]) for line in output.splitlines() if ": largest difference " in line
    }
    assert 0 < off["an index in float16"] < off["an index in int8"] < 0.05
    assert 1e-4 < off["all of it in bfloat16"] < 0.1


@pytest.mark.slow
def test_recall_of_lists(tmp_path: Path) -> None:
    small = ["--passages", "6000", "--queries", "3", "--heaps", "9", *SMALL]
    output = run("search.py", *small, "--json", tmp_path / "search.json")
    table = json.loads((tmp_path / "search.json").read_text())
    for what in ("own", "cosine"):
        whole, *rows = [row for row in table["rows"] if row["scores"] == what]
        assert (
            whole["recall@10"] == 1 and rows[0]["recall@10"] <= rows[-1]["recall@10"] and rows[-1]["recall@10"] >= 0.9
        )
    assert "own takes times" in output and table["settings"]["own MB on disk"] > 0


@pytest.fixture
def finished(tiny_scores: Config, tmp_path: Path) -> list[str | Path]:
    """The arguments that name a finished run."""
    tier = tmp_path / "tiny.yaml"
    tier.write_text(yaml.safe_dump(tiny_scores.model_dump(mode="json"), allow_unicode=True))
    return ["--config", tier, "--results", Path(tiny_scores.results) / tiny_scores.tier]


@pytest.mark.slow
def test_the_loop_s_own_time_and_the_growth_of_an_update(finished: list[str | Path], tmp_path: Path) -> None:
    run("overhead.py", *finished, "--methods", "sgpt", "--warm", "1", "--updates", "12", "--json", tmp_path / "o.json")
    rows = {row["part"]: row for row in json.loads((tmp_path / "o.json").read_text())["rows"]}
    whole = rows.pop("all")
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert all(0 < row["ms an update"] < whole["ms an update"] for row in rows.values())
    run("growth.py", *finished, "--only", "D2LLM batch", "--least", "0", "--json", tmp_path / "growth.json")
    [row] = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert len(row["ms"].split()) == 4 and row["exponent"] < 3


@pytest.mark.slow
def test_every_benchmark_finds_what_it_imports() -> None:
    """Those too that the slow tests do not run; what functions import included."""
    folder = ROOT / "benchmarks"
    lines = [line.strip() for file in folder.glob("*.py") for line in file.read_text(encoding="utf-8").splitlines()]
    ours = {line for line in lines if re.match(r"(from|import) (d2llm|baselines)\b.*[^(]$", line)}
    assert len(ours) > 25
    code = "\n".join(sorted(ours))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
