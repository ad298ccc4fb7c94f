"""The Dockerfile does what the Makefile does, from the lock. No image is built here: CI builds it."""

import re
import shlex
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M).replace("\\\n", " ")
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())
    ]


def test_the_image_is_made_from_the_lock_by_make_and_runs_as_nobody_in_particular() -> None:
    steps = instructions()
    python = re.search(r"python=([\d.]+)", (ROOT / "environment.yml").read_text())[1]
    assert steps[0] == ("FROM", f"python:{python}-slim-bookworm")
    copied = [shlex.split(rest) for word, rest in steps if word == "COPY"]
    first = [name for name in copied[0][:-1] if not name.startswith("--")]
    setup = re.search(r"^\$\(READY\): (.*)\n", (ROOT / "Makefile").read_text(), re.M)[1]
    assert set(setup.replace("$(LOCK)", "requirements.lock").split()) <= set(first)
    assert all((ROOT / name).exists() for name in first) and copied[1][-2:] == [".", "."]
    [commands] = [rest for word, rest in steps if word == "RUN" and "make " in rest and "apt-get" not in rest]
    assert 'make setup TORCH_INDEX="$TORCH_INDEX"' in commands and "pip" not in " ".join(rest for _, rest in steps)
    assert [rest for word, rest in steps if word == "USER"][-1] == "d2llm"


def test_cuda_is_the_locks_version_without_its_cpu_build() -> None:
    [edit] = {
        replacement
        for _, rest in instructions()
        for replacement in re.findall(r"sed '([^']*)' requirements.lock > gpu", rest)
    }
    assert (
        f"sed '{edit}' requirements.lock > gpu.lock && make setup LOCK=gpu.lock"
        in (ROOT / "docs/running.md").read_text()
    )
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    done = subprocess.run(["sed", edit], input=lock, capture_output=True, text=True, check=True)
    changed = [(old, new) for old, new in zip(lock.splitlines(), done.stdout.splitlines(), strict=True) if old != new]
    pinned = re.search(r'"torch>=([\d.]+)', (ROOT / "pyproject.toml").read_text())[1]
    assert [new.partition(" ;")[0] for old, new in changed if old[0] != "#"] == [f"torch=={pinned}"]


def test_ci_builds_it() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    steps = [step.get("run", "") for step in jobs["image"]["steps"]]
    assert any(re.match(r"docker build .*TORCH_INDEX", step) and "BUILD=" not in step for step in steps)
