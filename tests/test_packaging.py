"""The three ways to install name the same versions, and none names a registry."""

import re
import tomllib
from pathlib import Path

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
