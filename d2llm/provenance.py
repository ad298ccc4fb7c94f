"""Where an artifact comes from: digests of the code behind it, of its inputs and of itself, and facts about machine and software.

Code is read, never imported, so that a digest costs milliseconds and needs nothing installed.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from d2llm.artifacts import present, read_json
from d2llm.errors import ArtifactError
from d2llm.paths import PROVENANCE, beside

ROOT = Path(__file__).resolve().parent.parent
# Of a record, the key of its own digest.
SEAL = "sha256"
PACKAGES = ("d2llm", "baselines")

# Modules that carry settings, files and messages about, but decide no number: what they carry is compared by value.
PLUMBING = frozenset(
    (
        "baselines",
        "d2llm",
        "d2llm.artifacts",
        "d2llm.cli",
        "d2llm.commands",
        "d2llm.config",
        "d2llm.demands",
        "d2llm.errors",
        "d2llm.gpus",
        "d2llm.logs",
        "d2llm.paths",
        "d2llm.preflight",
        "d2llm.provenance",
        "d2llm.reporting.catalogue",
        "d2llm.resume",
        "d2llm.section",
        "d2llm.signals",
        "d2llm.stages",
        "d2llm.validation",
    )
)

# Packages whose versions a record names.
RECORDED = (
    "accelerate",
    "bm25s",
    "datasets",
    "jieba",
    "matplotlib",
    "mteb",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "scipy",
    "snakemake",
    "tokenizers",
    "torch",
    "transformers",
)

# Of them, those a training's bits depend on.
COMPUTING = ("accelerate", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")

# And those that decide no number, as the modules of PLUMBING.
CARRYING = ("pydantic", "snakemake")

# What a package computes through, without an import statement of this project.
BEHIND = {
    "mteb": ("scikit-learn", "scipy"),
    "peft": ("safetensors", "tokenizers", "torch", "transformers"),
    "transformers": ("safetensors", "tokenizers", "torch"),
}


# ------------------------------------------------------------------------------------------------------------- code
def code_digest(modules: list[str], root: Path = ROOT) -> str:
    """Digest of modules and all of this project's modules they import, blind to comments, docstrings, layout and `if TYPE_CHECKING:`.

    Which method a run trains is decided by name, so a method's file counts only where it is among `modules` or imported
    by a method that is. Thus editing one baseline touches its own trainings alone.
    """
    digest = hashlib.sha256()
    for module in sorted(closure(modules, root)):
        digest.update(f"{module}\0{module_digest(module, root)}\n".encode())
    return digest.hexdigest()[:16]


def closure(modules: list[str], root: Path = ROOT) -> set[str]:
    """The modules given, and transitively what they import of this project, without plumbing and unnamed methods."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        for imported in imports(module, root):
            if imported not in PLUMBING and (is_method(module) or not is_method(imported)):
                waiting.append(imported)
    return found


def packages(modules: list[str], root: Path = ROOT) -> list[str]:
    """Recorded packages that modules and all of this project's modules they import compute with, but for those that carry settings."""
    found = set().union(*(third_parties(module, root) for module in closure(modules, root)))
    found |= {behind for name in found for behind in BEHIND.get(name, ())}
    return [name for name in RECORDED if name in found and name not in CARRYING]


def is_method(module: str) -> bool:
    """Whether a module is one method's file."""
    return module == "d2llm.d2llm_method" or module.startswith("baselines.")


@cache
def module_digest(module: str, root: Path) -> str:
    """Digest of one module's parsed code."""
    return hashlib.sha256(ast.dump(bare(parsed(module, root))).encode()).hexdigest()


@cache
def imports(module: str, root: Path) -> frozenset[str]:
    """This project's modules that a module's import statements name, wherever in it they stand."""
    return frozenset(name for name in imported_names(module, parsed(module, root), root) if source(name, root))


@cache
def third_parties(module: str, root: Path) -> frozenset[str]:
    """Packages of others that a module's import statements name, wherever in it they stand, by the names they are installed by."""
    names = set()
    for node in ast.walk(parsed(module, root)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return frozenset("scikit-learn" if name == "sklearn" else name for name in names) & frozenset(RECORDED)


def imported_names(module: str, tree: ast.Module, root: Path) -> Iterator[str]:
    """Every name of this project's an import statement could mean as a module, with the packages that hold it."""
    path = source(module, root)
    package = module.split(".") if path and path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES:
                parts = name.split(".")
                yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


@cache
def parsed(module: str, root: Path) -> ast.Module:
    """A module's syntax tree as it runs; an empty one for a module that is not there (running it will say so)."""
    path = source(module, root)
    tree = ast.parse(path.read_bytes(), filename=str(path)) if path else ast.Module(body=[], type_ignores=[])
    return _Running().visit(tree)


class _Running(ast.NodeTransformer):
    """Leaves out what only type checkers read: an import there makes no job depend on a module."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        name = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", "")
        return node.orelse if name == "TYPE_CHECKING" else node


def source(module: str, root: Path) -> Path | None:
    """The file of a module of this project."""
    stem = root.joinpath(*module.split("."))
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def bare(tree: ast.Module) -> ast.Module:
    """The tree without docstrings (comments and layout are not in it anyway), which it loses for whoever holds it."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [part for part in node.body if not is_text(part)] or [ast.Pass()]
    return tree


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is a mere string: a docstring, or a note below a field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# ------------------------------------------------------------------------------------------------- inputs and outputs
def content_digest(path: str | Path) -> str:
    """sha256 of a file, or of a folder's file names and contents without provenance records."""
    path = present(path)
    return combined(path, {file: file_digest(file) for file in contents(path)})


def contents(path: Path) -> list[Path]:
    """A file itself, or all files of a folder but provenance records and hidden ones, in order."""
    if path.is_file():
        return [path]
    return sorted(f for f in path.rglob("*") if f.is_file() and f.name != PROVENANCE and not f.name.startswith("."))


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def combined(path: Path, digests: Mapping[Path, str]) -> str:
    """The digest of a path by those of its files."""
    if path in digests:
        return digests[path]
    digest = hashlib.sha256()
    for file, found in digests.items():
        digest.update(f"{file.relative_to(path).as_posix()}\0{found}\n".encode())
    return digest.hexdigest()


def checked_inputs(paths: Iterable[str]) -> dict[str, str]:
    """The content digest of each of a job's inputs.

    Raises ArtifactError for a file whose bytes are not those that the record of its own job names: damaged since, or changed by hand. Where an input is
    such a record, the files beside it count as well: they are what its readers read.
    """
    found: dict[str, str] = {}
    for name in paths:
        path = present(name)
        digests = {file: file_digest(file) for file in contents(path)}
        beside_it = (file for file in claimed(path.parent) if file.parent == path.parent and file.is_file())
        others = {file: file_digest(file) for file in beside_it} if path.name == PROVENANCE else {}
        if path.name.endswith(PROVENANCE):
            refuse_altered(path)
        for file, digest in (digests | others).items():
            claim = recorded(file)
            if isinstance(claim, Path):
                refuse_altered(claim)
            elif claim is not None and claim != digest:
                raise ArtifactError(
                    f"{file}: damaged, or changed since its job wrote it (sha256 {digest[:12]}…, recorded {claim[:12]}…); "
                    f"remove {name} and run `snakemake --cores all` again"
                )
        found[name] = combined(path, digests)
    return found


def refuse_altered(record: Path) -> None:
    """Raises ArtifactError for a record that does not say what it was sealed with. What is to be removed is what Snakemake knows of its job."""
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        said = None  # written whole or not at all, so damaged since
    if not isinstance(said, dict) or altered(said):
        raise ArtifactError(
            f"{record}: damaged, or changed since its job wrote it (not what its own sha256 says); "
            f"remove {record.parent if record.name == PROVENANCE else record} and run `snakemake --cores all` again"
        )


def recorded(file: Path) -> str | Path | None:
    """The digest that the nearest record names for a file, or that record where it is itself altered; None where no record names the file."""
    for folder in file.parents:
        claims = claimed(folder)
        if file in claims or folder in claims:
            return claims.get(file, claims.get(folder))
        if len(folder.parts) < 2:
            break
    return None


def claimed(folder: Path) -> dict[Path, str | Path]:
    """What the records that lie in a folder say of their outputs: the digest, or the record itself where that is altered.

    One that is no JSON any more is altered too: it stands for the file it is beside, or for all of its folder, which then is a key itself.
    """
    found: dict[Path, str | Path] = {}
    for record in folder.glob(f"*{PROVENANCE}"):
        stamp = record.stat()
        found |= _outputs(record, stamp.st_mtime_ns, stamp.st_size)
    return found


@cache
def _outputs(record: Path, *stamp: int) -> dict[Path, str | Path]:
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
        outputs = said.get("outputs", {})
    except (ValueError, AttributeError):
        name = record.name.removesuffix(PROVENANCE).rstrip(".")
        return {record.parent / name if name else record.parent: record}
    wrong = altered(said)
    return {record.parent / name: record if wrong else digest for name, digest in outputs.items()}


def output_digests(record: Path, files: Iterable[Path]) -> dict[str, str]:
    """For a record: the digest of each of these files, or of all files of these folders, by its place seen from the record.

    Files that have a record beside them are that one's.
    """
    every = (file for path in files if path.exists() for file in contents(path))
    own = (f for f in every if not f.name.endswith(PROVENANCE) and (beside(f) == record or not beside(f).exists()))
    return {file.relative_to(record.parent).as_posix(): file_digest(file) for file in own}


def damaged(root: Path) -> list[str]:
    """Files below a results folder that are not what their records say: changed, or gone."""
    wrong = []
    for record in sorted(root.rglob(f"*{PROVENANCE}")):
        said = read_json(record)
        if altered(said):
            wrong.append(f"{record.relative_to(root)} (changed)")
        for name, digest in said.get("outputs", {}).items():
            file = record.parent / name
            if not file.is_file():
                wrong.append(f"{file.relative_to(root)} (gone)")
            elif file_digest(file) != digest:
                wrong.append(f"{file.relative_to(root)} (changed)")
    return wrong


# ------------------------------------------------------------------------------------------------------------ record
def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with a digest of all that it says, so that it vouches for itself as well."""
    return record | {SEAL: _said(record)}


def altered(record: dict[str, Any]) -> bool:
    """Whether a record says something else than when it was sealed; one without a seal, of an earlier version, cannot tell."""
    return SEAL in record and record[SEAL] != _said(record)


def _said(record: dict[str, Any]) -> str:
    said = json.loads(json.dumps({key: value for key, value in record.items() if key != SEAL}))  # as a reader has it
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def commit(root: Path = ROOT) -> str | None:
    """The commit that was checked out where the code lies; None outside a git repository.

    Whether the code was that commit's, its own digest tells. Read from git's files, so that no program has to be there.
    """
    try:
        git = root / ".git"
        if git.is_file():  # a working tree beside its repository
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        common = git / "commondir"
        shared = git / common.read_text(encoding="utf-8").strip() if common.exists() else git
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        if (shared / name).exists():
            return (shared / name).read_text(encoding="utf-8").strip()
        packed = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next((line.split()[0] for line in packed if line.split()[1:] == [name]), None)
    except OSError:
        return None


def environment() -> dict[str, Any]:
    """The machine and the software of this process."""
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": device(),
        "packages": versions(RECORDED),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Installed versions, of those packages that are installed."""
    return {package: found for package in packages if (found := version(package)) is not None}


@cache
def version(package: str) -> str | None:
    """The installed version; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The CPU's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device() -> str:
    """What torch computed on; `cpu` where it was not used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    return "cpu"


def peak_memory_mb() -> float:
    """The most memory this process has held, in MB (10⁶ bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)
