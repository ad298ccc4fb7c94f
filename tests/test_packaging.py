"""The ways to install name the same versions, and none names a registry; a wheel holds the library and its command alone."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ALIASES = {"matplotlib-base": "matplotlib", "pytorch-cpu": "torch"}


def version(requirement: str) -> tuple[str, str]:
    """(name, version without local part) of a pinned requirement."""
    name, pinned = re.match(r"([\w.-]+)={1,2}([\w.]+)", requirement).groups()
    return ALIASES.get(name.lower(), name.lower().replace("_", "-")), pinned


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return dict(version(line) for line in lines if line and not line.startswith("#"))


def test_pyproject_and_lock_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(map(version, project["dependencies"] + project["optional-dependencies"]["dev"]))
    assert pins == {name: lock().get(name) for name in pins}


def test_environment_and_pyproject_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(map(version, project["dependencies"] + project["optional-dependencies"]["dev"]))
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    conda = dict(version(line) for line in re.findall(r"- ([\w.-]+={1,2}[\w.]+)", text))
    assert conda.pop("python") == "3.11"
    assert conda == pins | {"setuptools": lock()["setuptools"]}


def test_linux_gets_the_cpu_build() -> None:
    for name in ("requirements.lock", "pyproject.toml"):
        lines = [
            line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if re.match(r'\s*"?torch==', line)
        ]
        assert len(lines) == 2
        assert sum("+cpu" in line and "== " in line for line in lines) == 1


def test_no_registry_is_named() -> None:
    for name in ("requirements.lock", "pyproject.toml", "environment.yml", "Makefile", ".ci/run"):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8"), name


def test_hooks_have_the_locks_versions() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    own = [hook for hook in hooks if hook["language"] == "python"]
    pins = [dict([version(requirement)]) for hook in own for requirement in hook["additional_dependencies"]]
    assert len(pins) == 3 and all(pin == {name: lock()[name] for name in pin} for pin in pins)
    # All others are the environment's, which the lock made.
    assert [hook["entry"] for hook in hooks if hook not in own] == [".venv/bin/mypy"]


@pytest.mark.slow
def test_a_wheel_is_the_library_and_its_command(tmp_path: Path) -> None:
    """Installed without the repository around it: everything the code reads beside itself is in it, nothing else is."""
    source = tmp_path / "source"
    source.mkdir()
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    for part in ("d2llm", "baselines", "tests"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("d2llm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == {"d2llm", "baselines"}
    code = {path.relative_to(ROOT).as_posix() for package in ("d2llm", "baselines") for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip
    assert code <= held, sorted(code - held)
    assert {"d2llm/py.typed", "baselines/py.typed"} <= held  # or type checkers take what is installed for untyped

    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "d2llm.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    (tmp_path / "own.yaml").write_text(json.dumps({"tier": "own", "methods": {"bge": {}}}))
    assert "tier: own" in call("check-config", "--config", "own.yaml").stdout
    refused = call("new-baseline", "mine")
    assert refused.returncode == 2 and "run it in a clone of the repository" in refused.stderr
    assert "of 2" in next(line for line in call("doctor").stdout.splitlines() if "as pinned" in line)
