"""The ways to install name the same versions, and no registry; a wheel holds the library and its command alone."""

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
ALIASES = {"matplotlib-base": "matplotlib", "pytorch": "torch"}


def version(requirement: str) -> tuple[str, str]:
    """(name, version without local part) of a pinned requirement, or of the first version of a range."""
    name, pinned = re.match(r"([\w.-]+)(?:={1,2}|>=)([\w.]+)", requirement).groups()
    return ALIASES.get(name.lower(), name.lower().replace("_", "-")), pinned


def lock() -> dict[str, str]:
    """Package → version of requirements.lock."""
    return dict(version(line) for line in lock_lines())


def lock_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_pyproject_environment_and_lock_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pins = dict(map(version, project["dependencies"] + extras["suite"] + extras["dev"]))
    assert pins == {name: lock().get(name) for name in pins}
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    conda = dict(version(line) for line in re.findall(r"- ([\w.-]+={1,2}[\w.]+)", text))
    assert conda == pins | {"setuptools": lock()["setuptools"], "python": "3.11"}


def test_linux_gets_the_cpu_build_and_a_librarys_user_any() -> None:
    """`+cpu` is on no index but PyTorch's own: `pip install .` must not ask for it, and takes it where it is there."""
    lines = [line for line in lock_lines() if line.startswith("torch==")]
    assert len(lines) == 2 and sum("+cpu" in line and "== " in line for line in lines) == 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (own,) = [Requirement(line) for line in project["dependencies"] if line.startswith("torch")]
    assert own.marker is None and all(own.specifier.contains(lock()["torch"] + build) for build in ("", "+cpu"))


def test_no_registry_is_named() -> None:
    for name in (
        "requirements.lock",
        "requirements.hashes.lock",
        "pyproject.toml",
        "environment.yml",
        "Makefile",
        "Dockerfile",
    ):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8"), name


def test_hooks_have_the_locks_versions() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    own = [hook for hook in hooks if hook["language"] == "python"]
    pins = [dict([version(requirement)]) for hook in own for requirement in hook["additional_dependencies"]]
    assert len(pins) == 3 and all(pin == {name: lock()[name] for name in pin} for pin in pins)
    # All others are the environment's, which the lock made.
    assert [hook["entry"] for hook in hooks if hook not in own] == [".venv/bin/mypy"]


def test_the_hashed_lock_has_the_same_pins_and_a_digest_of_each() -> None:
    """Renewed by `make hashes`, as its head says."""
    text = (ROOT / "requirements.hashes.lock").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\w)", re.sub(r"^#.*\n", "", text, flags=re.M).strip())
    pins = [re.split(r" \\\n\s+", entry) for entry in entries]
    assert [pin for pin, *_ in pins] == lock_lines(), "run `make hashes`"
    for pin, *digests in pins:
        assert digests and len(set(digests)) == len(digests), pin
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", digest) for digest in digests), pin


@pytest.fixture
def hash_lock() -> types.ModuleType:
    """tools/hash_lock.py."""
    spec = importlib.util.spec_from_file_location("hash_lock", ROOT / "tools" / "hash_lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digests_are_of_the_pinned_versions_files_alone(hash_lock: types.ModuleType) -> None:
    files = {
        "a_b-1.0-py3-none-any.whl": "1", "a-b-1.0.tar.gz": "2", "a_b-1.0.1.tar.gz": "3", "a-b-1.0.exe": "5",
        "a_b-1.0+cpu-cp311-cp311-linux_x86_64.whl": "4", "a_b_c-1.0.tar.gz": "6", "index.html": "7",
    }  # fmt: skip
    assert set(hash_lock.hashes(iter(files.items()), "A.b", "1.0").values()) == {"1", "2"}
    assert set(hash_lock.hashes(iter(files.items()), "a_b", "1.0+cpu").values()) == {"4"}
    pins = {("A.b", "1.0", " ; os"): {"x": "22", "y": "11"}, ("a_b", "1.0+cpu", ""): {"z.whl": "4"}}
    assert hash_lock.written(pins).removeprefix(hash_lock.HEAD) == (
        "#   z.whl\nA.b==1.0 ; os \\\n    --hash=sha256:11 \\\n    --hash=sha256:22\n"
        "a_b==1.0+cpu \\\n    --hash=sha256:4\n"
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "a==1.0: no file where pip looks"),
        ([("a-2.0.tar.gz", "1")], "a==1.0: no file where pip looks"),
        ([("a-1.0.tar.gz", None)], "a-1.0.tar.gz: listed without a SHA-256"),
        ([("a-1.0.tar.gz", "1"), ("a-1.0.tar.gz", "2")], "a-1.0.tar.gz: two indexes list different bytes"),
    ],
)
def test_a_release_that_cannot_be_vouched_for_is_refused(
    hash_lock: types.ModuleType, files: list, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        hash_lock.hashes(iter(files), "a", "1.0")


def test_a_line_that_pins_nothing_is_refused(hash_lock: types.ModuleType) -> None:
    assert hash_lock.pins("# a\n\na-b==1.0+cpu ; x == 'y'\n") == [("a-b", "1.0+cpu", " ; x == 'y'")]
    with pytest.raises(ValueError, match="'a>=1': expected name==version"):
        hash_lock.pins("a>=1")


def call(folder: Path, environment: dict[str, str], *command: str | Path, code: int = 0) -> str:
    """What a command says."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr * bool(code)


@pytest.mark.slow
def test_a_wheel_is_the_library_and_its_command(tmp_path: Path) -> None:
    """Installed by pip, without the repository around it: it holds all that the code reads, and no more."""
    source, site = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    for part in ("d2llm", "baselines", "tests"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), str(source)]
    call(tmp_path, dict(os.environ), *pip, *build)
    (wheel,) = tmp_path.glob("d2llm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        members = {name for name in archive.namelist() if ".dist-info" not in name}
    files = [path for package in ("d2llm", "baselines") for path in (source / package).rglob("*") if path.is_file()]
    assert members == {path.relative_to(source).as_posix() for path in files}
    assert {"d2llm/py.typed", "baselines/py.typed"} <= members  # or type checkers take what is installed for untyped
    # --ignore-installed: or pip first removes what the environment of the tests itself has.
    install = ["install", "--no-deps", "--no-index", "--ignore-installed", "--prefix", str(site), str(wheel)]
    call(tmp_path, dict(os.environ), *pip, *install)
    (packages,) = site.glob("lib/python*/site-packages")
    environment = {**os.environ, "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    refusal = call(tmp_path, environment, site / "bin" / "d2llm", "new-baseline", "mine", code=2)
    assert "run it in a clone of the repository" in refusal
    assert re.search(r"(1\d) of \1 as asked for", call(tmp_path, environment, site / "bin" / "d2llm", "doctor"))


# ------------------------------------------------------------------------------------------------------------- Makefile
TARGETS = {
    None: [],
    "search-notebook": ["search_notebook"],
    "study": [],
    "tiny": [],
}


@pytest.mark.parametrize("target", TARGETS)
def test_make_hands_on_the_config_and_the_target(target: str | None) -> None:
    """`--configfile` takes every word up to the next option: a target right behind it was read as one more file."""
    from snakemake.cli import get_argument_parser

    words = ["make", "--dry-run", *([target] if target else []), "CONFIG=config/tiny.yaml"]
    [line] = [line for line in call(ROOT, dict(os.environ), *words).splitlines() if "bin/snakemake " in line]
    options = get_argument_parser().parse_args(shlex.split(line.partition("bin/snakemake ")[2]))
    assert sorted(options.targets or []) == TARGETS[target]
    assert f"config/{target if target == 'study' else 'tiny'}.yaml" in map(str, options.configfile)
