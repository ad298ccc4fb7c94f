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
    said = run("iem.py", "--passages", "2000", *SMALL, "--rounds", "2", "--json", tmp_path / "iem.json")
    rows = {row["what"]: row for row in json.loads((tmp_path / "iem.json").read_text())["rows"]}
    assert rows["release"]["times faster than the release"] == 1
    assert rows["suite"]["GFLOP/s"] == pytest.approx(2 * 2000 * 16 * 16 / rows["suite"]["seconds"] / 1e9)
    off = {line.split(":")[0]: float(line.split()[-1]) for line in said.splitlines() if ": largest difference " in line}
    assert 0 < off["an index in float16"] < off["an index in int8"] < 0.05
    assert 1e-4 < off["all of it in bfloat16"] < 0.1


@pytest.mark.slow
def test_recall_and_its_figure(tmp_path: Path) -> None:
    files = {kind: tmp_path / f"{kind}.json" for kind in ("matcher", "random")}
    for kind, file in files.items():
        run("search.py", "--passages", "3000", "--queries", "3", "--heaps", "9", *SMALL, "--iem", kind, "--json", file)
        rows = json.loads(file.read_text())["rows"]
        assert rows[0]["recall@10"] == 1 and all(0 <= row["least"] <= row["recall@10"] <= 1 for row in rows)
    run("recall_figure.py", *(f"a {kind}={file}" for kind, file in files.items()), "--to", tmp_path / "figures")
    text = (tmp_path / "figures" / "recall.svg").read_text()
    assert "3,000 passages" in text and "a matcher" in text and "a random" in text
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".svg", ".pdf", ".png"}


@pytest.fixture
def finished(tiny_scores: Config, tmp_path: Path) -> list[str | Path]:
    """The arguments that name a finished run."""
    tier = tmp_path / "tiny.yaml"
    tier.write_text(yaml.safe_dump(tiny_scores.model_dump(mode="json"), allow_unicode=True))
    return ["--config", tier, "--results", Path(tiny_scores.results) / tiny_scores.tier]


@pytest.mark.slow
def test_the_loop_s_own_time(finished: list[str | Path], tmp_path: Path) -> None:
    run("overhead.py", *finished, "--methods", "sgpt", "--warm", "1", "--updates", "12", "--json", tmp_path / "o.json")
    rows = {row["part"]: row for row in json.loads((tmp_path / "o.json").read_text())["rows"]}
    whole = rows.pop("all")
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
    assert set(rows) == {"tokenizer", "model, forward", "objective", "backward, clipping, AdamW", "the loop itself"}
    assert all(0 < row["ms an update"] < whole["ms an update"] for row in rows.values())


def test_samples_whose_innermost_frame_is_python_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from overhead import interpreted  # type: ignore[import-not-found]

    run_line, step_line = "run (d2llm/training/train.py:99)", "fit (d2llm/training/loop.py:120)"
    share, lines = interpreted(
        [
            f"{run_line};{step_line};at::mm (libtorch_cpu.so) 5",
            f"{run_line};{step_line} 2",
            f"{run_line};unicode_hash (libpython3.11.so.1.0) 1",
            f"{run_line};THPVariable_Wrap (libtorch_python.so) 2",
        ]
    )
    assert share == 0.3
    assert lines == [(step_line, 0.2), (run_line, 0.1)]


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


@pytest.mark.slow
def test_growth_of_an_update(finished: list[str | Path], tmp_path: Path) -> None:
    run("growth.py", *finished, "--only", "D2LLM batch", "--least", "0", "--json", tmp_path / "growth.json")
    [row] = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert len(row["ms"].split()) == 4 and row["exponent"] < 3
