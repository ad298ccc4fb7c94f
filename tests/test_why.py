"""`d2llm why`: the files that make a job stale, by name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_run import tiny_config

from d2llm.cli import main as cli
from d2llm.cli import why
from d2llm.config.load import dump
from d2llm.config.schema import Config
from d2llm.run import jobs
from d2llm.run.artifacts import write_json
from d2llm.run.code import ROOT, code_digest
from d2llm.run.errors import ConfigError
from d2llm.run.paths import Paths
from d2llm.run.provenance import commit
from d2llm.run.stages import STAGES

TRAINED = ("d2llm", "bge")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the code, committed. Not to be changed."""
    folder = tmp_path_factory.mktemp("committed")
    for part in ("d2llm", "baselines"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for command in ("init --quiet", "add .", "-c user.name=a -c user.email=a@b commit --quiet --message all"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
    return folder


@pytest.fixture
def run(clone: Path, tmp_path: Path) -> Config:
    """Records of jobs of that code."""
    config = tiny_config(tmp_path / "results")
    paths = Paths.of(config)
    trainings = [("train", {"method": name, "variant": "base", "seed": 1}) for name in TRAINED]
    for stage, given in [("texts", {}), *trainings]:
        code = code_digest(jobs.modules(config, stage, **given), clone)
        write_json(
            STAGES[stage].record(paths, **given), {"stage": stage, **given, "code": code, "commit": commit(clone)}
        )
    return config


@pytest.mark.parametrize(
    ("lines", "reasons"),
    [
        ({}, "The code of all 3 jobs is that of now."),
        (
            {"baselines/bge.py": "EXTRA = 1", "d2llm/data/build.py": "# A comment.", "d2llm/cli/why.py": "EXTRA = 1"},
            "train bge base 1:\n  baselines/bge.py since {}",
        ),
        (
            {"d2llm/training/train.py": "EXTRA = 1"},  # jobs of the same reasons stand together
            "train bge base 1, train d2llm base 1:\n  d2llm/training/train.py since {}",
        ),
    ],
)
def test_only_files_that_a_job_runs_are_named(
    lines: dict, reasons: str, clone: Path, run: Config, tmp_path: Path
) -> None:
    now = Path(shutil.copytree(clone, tmp_path / "edited"))
    for name, line in lines.items():
        with (now / name).open("a", encoding="utf-8") as stream:
            stream.write(f"\n{line}\n")
    assert why.run(run, now) == reasons.format(commit(clone)[:10])


def test_what_no_commit_has_is_said(clone: Path, run: Config) -> None:
    record = Paths.of(run).run("bge", "base", 1) / "provenance.json"
    given = {"stage": "train", "method": "bge", "variant": "base", "seed": 1, "code": "0" * 16}
    write_json(record, given | {"commit": commit(clone)})
    assert why.run(run, clone) == f"train bge base 1:\n  it ran with edits that {commit(clone)[:10]} does not have"
    for unknown in ("f" * 40, None):
        write_json(record, given | {"commit": unknown})
        assert f"its commit is not in this clone ({unknown})" in why.run(run, clone)


def test_without_git_it_says_so(
    run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="is not a git repository"):
        why.run(run, tmp_path)
    (tmp_path / "run.yaml").write_text(dump(run))
    monkeypatch.setattr(why, "run", lambda config: config.tier)
    assert cli.main(["why", "--config", str(tmp_path / "run.yaml")]) == 0
    assert capsys.readouterr().out == "tiny\n"
