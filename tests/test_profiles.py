"""Profiles for clusters: they name rules there are; jobs handed to a scheduler come back with their results."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_workflow import fresh  # noqa: F401 - a fixture
from tiny_run import tiny_settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_profile_gives_resources_to_rules_there_are(name: str) -> None:
    profile = yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))
    rules = set()
    for file in [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]:
        rules |= set(re.findall(r"^(?:use rule \w+ as|rule) (\w+)", file.read_text(encoding="utf-8"), flags=re.M))
    assert set(profile["set-resources"]) <= rules
    # Whoever loads a model gets a GPU: all trainings, the teacher, the negatives, evaluations, the measurement of times.
    wanted = {rule for rule in rules if rule.startswith("train")}
    wanted |= {"teacher", "teacher_scores", "vectors", "negatives", "pretext", "evaluate", "runtime"}
    assert {rule for rule, found in profile["set-resources"].items() if found.get("gpu")} == wanted
    assert profile["executor"] == name


@pytest.mark.slow
def test_jobs_run_by_a_scheduler(fresh: Path, tmp_path: Path) -> None:  # noqa: F811
    """A scheduler that starts what it is given and knows by a file how it ended; the data stage goes through it."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings(Path("results")), allow_unicode=True))
    (tmp_path / "submit.sh").write_text(
        'name="job$$"\n(sh "$1" > "$name.log" 2>&1; echo $? > "$name.end") &\necho "$name"\n'
    )
    (tmp_path / "status.sh").write_text(
        '[ -s "$1.end" ] || { echo running; exit; }\n[ "$(cat "$1.end")" = 0 ] && echo success || echo failed\n'
    )
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(fresh / "Snakefile"), "--configfile", "tiny.yaml", "--jobs", "2",
        "--executor", "cluster-generic", "--cluster-generic-submit-cmd", "sh submit.sh", "--cluster-generic-status-cmd", "sh status.sh",
        "--seconds-between-status-checks", "1", "--rerun-incomplete", "--nolock", "--", "results/tiny/data/card.md",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 steps (100%) done" in done.stdout + done.stderr
    ends = sorted(tmp_path.glob("job*.end"))
    assert [end.read_text().strip() for end in ends] == ["0", "0"]  # each its own job
    assert (tmp_path / "results/tiny/data/train.parquet").is_file()
