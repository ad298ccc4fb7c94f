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


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the repository's code, and of what tests of a baseline import."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for part in PARTS:
        source = ROOT / part
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, folder / part, ignore=ignored) if source.is_dir() else shutil.copy(
            source, folder / part
        )
    (folder / "tests").mkdir()
    for part in ("tiny.py", "conftest.py"):
        shutil.copy(ROOT / "tests" / part, folder / "tests" / part)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)  # fmt: skip


@pytest.mark.slow
def test_what_is_written_passes_its_test_and_is_scheduled(clone: Path) -> None:
    names = {f"my_{kind}": kind for kind in KINDS}
    for name, kind in names.items():
        made = call(clone, "d2llm.cli", "new-baseline", name, "--title", "My & Method", "--kind", kind)
        assert made.returncode == 0, made.stderr
        for path in (f"baselines/{name}.py", f"config/{name}.yaml", f"tests/test_{name}.py"):
            assert path in made.stdout and (clone / path).is_file()
        settings = yaml.safe_load((clone / "config" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert list(settings["methods"]) == [name]
    tested = call(clone, "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert tested.returncode == 0 and "10 passed" in tested.stdout, tested.stdout
    for tool in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["snakefmt", "--check", "workflow"]):
        styled = subprocess.run([Path(sys.executable).parent / tool[0], *tool[1:]], cwd=clone, capture_output=True, text=True, check=False)  # fmt: skip
        assert styled.returncode == 0, styled.stdout + styled.stderr
    files = [f"config/{name}.yaml" for name in names]
    dry = call(clone, "snakemake", "--cores", "1", "--dry-run", "--configfile", "config/mini.yaml", *files)
    assert dry.returncode == 0, dry.stderr
    assert all(f"rule train_{name}:" in dry.stdout + dry.stderr for name in names)
    # With as many trials as the others: fewer, or none, would be refused.
    dry = call(clone, "snakemake", "--cores", "1", "--dry-run", "--configfile", "config/mini.yaml", *files, "--", "tune")  # fmt: skip
    assert dry.returncode == 0, dry.stderr
    trials = set(re.findall(r"method=(my_\w+), variant=([^,]+), seed=1", dry.stdout + dry.stderr))
    assert Counter(name for name, _ in trials) == dict.fromkeys(names, 6)


@pytest.mark.parametrize(
    "name", ["bge", "d2llm", "bm25", "teacher", "simcse", "colbert", "My", "a-b", "1a", "class", "../x", ""]
)
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
    new_baseline("other", root=clone)
    with pytest.raises(ConfigError, match="is taken"):
        new_baseline("other", root=clone)


def test_outside_a_clone_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("d2llm.cli.new_baseline.ROOT", tmp_path / "site-packages")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new-baseline", "mine"]) == 2
    assert f"in {tmp_path}; run it in a clone of the repository" in capsys.readouterr().err


def test_an_installed_command_writes_into_the_clone_it_is_called_in(clone: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # fmt: skip
    """Its own code lies where packages are installed. A clone elsewhere that runs the code is not meant either."""
    monkeypatch.chdir(clone)
    assert cli.main(["new-baseline", "mine"]) == 0
    assert "baselines/mine.py" in capsys.readouterr().out
    assert (clone / "baselines" / "mine.py").is_file() and not (ROOT / "baselines" / "mine.py").exists()
