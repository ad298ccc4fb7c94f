"""Profiles for clusters: they name rules there are; jobs handed to a scheduler come back with their results."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_workflow import fresh, snakemake  # noqa: F401 - fresh is a fixture
from tiny_run import tiny_settings

from d2llm.config.registry import names

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_profile_gives_resources_to_rules_there_are(name: str) -> None:
    profile = yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))
    rules = set()
    for file in [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]:
        rules |= set(re.findall(r"^(?:use rule \w+ as|rule) (\w+)", file.read_text(encoding="utf-8"), flags=re.M))
    assert set(profile["set-resources"]) <= rules
    # Whoever loads a model gets a GPU: trainings, the teacher, the negatives, evaluations, the measurement of times.
    wanted = {"train", "teacher", "teacher_scores", "vectors", "negatives", "pretext", "evaluate", "runtime"}
    assert {rule for rule, found in profile["set-resources"].items() if found.get("gpu")} == wanted
    assert profile["executor"] == name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_every_methods_training_gets_what_a_profile_gives_train(name: str, fresh: Path, tmp_path: Path) -> None:  # noqa: F811
    """As Snakemake resolves them; the schedulers' own plugins are not needed to see it."""
    resources = yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))["set-resources"]
    resources["train_sgpt"] = {"mem_mb": 9000}  # one's own line goes first, the rest stays
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"set-resources": resources}))
    settings = {"methods": {method: {} for method in names()}, "include": []}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    done = snakemake(fresh, "--dry-run", "--profile", str(tmp_path), "--configfile", str(tmp_path / "mine.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(re.findall(r"\nrule (train\w*):\n(?:    .*\n)*?    resources: (.*)", done.stdout + done.stderr))
    assert set(found) == {"train" if method == "d2llm" else f"train_{method}" for method in names()}
    for rule, said in found.items():
        memory = 9000 if rule == "train_sgpt" else resources["train"]["mem_mb"]
        assert {"gpu=1", f"mem_mb={memory}"} <= set(said.split(", ")), (rule, said)


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
