"""`d2llm new-baseline`: what it writes passes its own test, is found by config and workflow, and overwrites nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from d2llm.cli import main as cli
from d2llm.cli.new_baseline import KINDS, new_baseline
from d2llm.run.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("Snakefile", "workflow", "config", "profiles", "d2llm", "baselines", "notebooks", "environment.yml")
PARTS += ("pyproject.toml", "tests/tiny.py", "tests/conftest.py")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the repository's code, and of what tests of a baseline import."""
    folder = tmp_path / "clone"
    (folder / "tests").mkdir(parents=True)
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)
    return folder


def call(folder: Path, *arguments: str) -> str:
    """What a module of Python, run in a folder, says; it must end well."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_what_is_written_passes_its_test_and_is_scheduled(clone: Path) -> None:
    names = {f"my_{kind}": kind for kind in KINDS}
    for name, kind in names.items():
        message = call(clone, "d2llm.cli", "new-baseline", name, "--title", "My & Method", "--kind", kind)
        for path in (f"baselines/{name}.py", f"config/{name}.yaml", f"tests/test_{name}.py"):
            assert path in message and (clone / path).is_file()
        settings = yaml.safe_load((clone / "config" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert list(settings["methods"]) == [name]
    assert "10 passed" in call(clone, "pytest", "-q", "-p", "no:cacheprovider", "tests")
    written = [
        f"{folder}/{stem}{name}.py" for name in names for folder, stem in (("baselines", ""), ("tests", "test_"))
    ]
    call(clone, "ruff", "check", *written)
    call(clone, "ruff", "format", "--check", *written)
    call(clone, "snakefmt", "--check", "workflow")
    files = [f"config/{name}.yaml" for name in names]
    plan = call(clone, "snakemake", "--cores", "1", "--dry-run", "--configfile", "config/mini.yaml", *files)
    assert all(f"rule train_{name}:" in plan for name in names)
    # With as many trials as the others: fewer, or none, would be refused.
    plan = call(
        clone, "snakemake", "--cores", "1", "--dry-run", "--configfile", "config/mini.yaml", *files, "--", "tune"
    )
    trials = set(re.findall(r"method=(my_\w+), variant=([^,]+), seed=1", plan))
    assert Counter(name for name, _ in trials) == dict.fromkeys(names, 6)


@pytest.mark.parametrize("name", ["bge", "d2llm", "bm25", "teacher", "My", "a-b", "1a", "class", "../x", ""])
def test_names_that_are_taken_or_none_are_refused(name: str, clone: Path) -> None:
    before = sorted(path for path in clone.rglob("*") if path.is_file())
    with pytest.raises(ConfigError, match="new-baseline: "):
        new_baseline(name, root=clone)
    assert sorted(path for path in clone.rglob("*") if path.is_file()) == before


def test_a_file_that_exists_is_kept(clone: Path) -> None:
    (clone / "tests" / "test_mine.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"'mine' is taken \(tests/test_mine.py exists\)"):
        new_baseline("mine", root=clone)
    assert not (clone / "baselines" / "mine.py").exists()


def test_an_installed_command_writes_into_the_clone_it_is_called_in(clone: Path, tmp_path: Path, monkeypatch) -> None:
    """Its own code lies where packages are installed; outside a clone it says so."""
    monkeypatch.setattr("d2llm.cli.new_baseline.ROOT", tmp_path / "site-packages")
    monkeypatch.chdir(clone)
    assert cli.main(["new-baseline", "mine"]) == 0
    assert (clone / "baselines" / "mine.py").is_file() and not (ROOT / "baselines" / "mine.py").exists()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"in {tmp_path}; run it in a clone of the repository"):
        new_baseline("mine")
