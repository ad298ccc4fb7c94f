"""Profiles for clusters: what they give a rule goes first; jobs handed to a scheduler come back with their results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_workflow import dry_run, fresh  # noqa: F401 - fresh is a fixture
from tiny_run import tiny_settings

from d2llm.config.registry import modules
from d2llm.run.stages import STAGES


@pytest.mark.slow
def test_every_methods_training_gets_what_a_profile_gives_train(fresh: Path, tmp_path: Path) -> None:  # noqa: F811
    """As Snakemake resolves them; the schedulers' own plugins are not needed to see it."""
    resources = {"train": {"mem_mb": 64000, "runtime": "2h", "gpu": 1}}
    resources["train_sgpt"] = {"mem_mb": 9000}  # one's own line goes first, the rest stays
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"set-resources": resources}))
    settings = {"methods": {method: {} for method in modules()}, "include": []}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    text = dry_run(fresh, "--profile", str(tmp_path), "--configfile", str(tmp_path / "mine.yaml"))
    shown = dict(re.findall(r"\nrule (\w+):\n(?:    .*\n)*?    resources: (.*)", text))
    trained = {"train" if method == "d2llm" else f"train_{method}" for method in modules()}
    assert {rule for rule in shown if rule.startswith("train")} == trained
    for rule in trained:
        memory = 9000 if rule == "train_sgpt" else 64000
        assert {"gpu=1", "runtime=120", f"mem_mb={memory}"} <= set(shown[rule].split(", ")), (rule, shown[rule])
    # Where a profile says nothing, what the config's jobs are reckoned to take; mini is for no GPU.
    assert f"mem_mb={STAGES['evaluate'].memory_mb}" in shown["evaluate"] and "gpu" not in shown["evaluate"]


@pytest.mark.slow
def test_jobs_run_by_a_scheduler(fresh: Path, tmp_path: Path) -> None:  # noqa: F811
    """A scheduler that starts what it is given and knows by a file how it ended; the data stage goes through it."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings(Path("results")), allow_unicode=True))
    submit = 'name="job$$"\n(sh "$1" > "$name.log" 2>&1; echo $? > "$name.end") &\necho "$name"\n'
    (tmp_path / "submit.sh").write_text(submit)
    status = '[ -s "$1.end" ] || { echo running; exit; }\n[ "$(cat "$1.end")" = 0 ] && echo success || echo failed\n'
    (tmp_path / "status.sh").write_text(status)
    scheduler = "--executor cluster-generic --seconds-between-status-checks 1 --jobs 2 --rerun-incomplete --nolock"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(fresh / "Snakefile"), *scheduler.split()]
    command += ["--cluster-generic-submit-cmd", "sh submit.sh", "--cluster-generic-status-cmd", "sh status.sh"]
    command += ["--configfile", "tiny.yaml", "--", "results/tiny/data/card.md"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [end.read_text().strip() for end in tmp_path.glob("job*.end")] == ["0", "0"]  # each its own job
    assert (tmp_path / "results/tiny/data/train.parquet").is_file()
