"""Where an artifact comes from: digests of the code behind it, of its inputs and of itself, and facts about machine and
software.

Code is read, never imported, so that a digest costs milliseconds and needs nothing installed.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from d2llm.run.artifacts import read_json, require
from d2llm.run.code import RECORDED, ROOT
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import PROVENANCE, provenance_of

# Of a record, the key of its own digest.
SEAL = "sha256"


# ------------------------------------------------------------------------------------------------- inputs and outputs
def content_digest(path: str | Path) -> str:
    """sha256 of a file, or of a folder's file names and contents without provenance records."""
    path = require(path)
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
    for file, value in digests.items():
        digest.update(f"{file.relative_to(path).as_posix()}\0{value}\n".encode())
    return digest.hexdigest()


def checked_inputs(paths: Iterable[str]) -> dict[str, str]:
    """The content digest of each of a job's inputs.

    Raises ArtifactError for a file whose bytes are not those that the record of its own job names: damaged since, or
    changed by hand. Where an input is such a record, the files beside it count as well: they are what its readers read.
    """
    inputs: dict[str, str] = {}
    for name in paths:
        path = require(name)
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
                    f"{file}: damaged, or changed since its job wrote it (sha256 {digest[:12]}…, recorded "
                    f"{claim[:12]}…); "
                    f"remove {name} and run `snakemake --cores all` again"
                )
        inputs[name] = combined(path, digests)
    return inputs


def refuse_altered(record: Path) -> None:
    """Raises ArtifactError for a record that does not say what it was sealed with. What is to be removed is what
    Snakemake knows of its job.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        content = None  # written whole or not at all, so damaged since
    if not isinstance(content, dict) or altered(content):
        raise ArtifactError(
            f"{record}: damaged, or changed since its job wrote it (not what its own sha256 says); "
            f"remove {record.parent if record.name == PROVENANCE else record} and run `snakemake --cores all` again"
        )


def recorded(file: Path) -> str | Path | None:
    """The digest that the nearest record names for a file, or that record where it is itself altered; None where no
    record names the file.
    """
    for folder in file.parents:
        claims = claimed(folder)
        if file in claims or folder in claims:
            return claims.get(file, claims.get(folder))
        if len(folder.parts) < 2:
            break
    return None


def claimed(folder: Path) -> dict[Path, str | Path]:
    """What the records that lie in a folder say of their outputs: the digest, or the record itself where that is
    altered.

    One that is no JSON any more is altered too: it stands for the file it is beside, or for all of its folder, which
    then is a key itself.
    """
    claims: dict[Path, str | Path] = {}
    for record in folder.glob(f"*{PROVENANCE}"):
        stamp = record.stat()
        claims |= _outputs(record, stamp.st_mtime_ns, stamp.st_size)
    return claims


@cache
def _outputs(record: Path, *stamp: int) -> dict[Path, str | Path]:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        outputs = content.get("outputs", {})
    except (ValueError, AttributeError):
        name = record.name.removesuffix(PROVENANCE).rstrip(".")
        return {record.parent / name if name else record.parent: record}
    wrong = altered(content)
    return {record.parent / name: record if wrong else digest for name, digest in outputs.items()}


def output_digests(record: Path, files: Iterable[Path]) -> dict[str, str]:
    """For a record: the digest of each of these files, or of all files of these folders, by its place seen from the
    record.

    Files that have a record beside them are that one's.
    """
    every = (file for path in files if path.exists() for file in contents(path))
    own = (
        f
        for f in every
        if not f.name.endswith(PROVENANCE) and (provenance_of(f) == record or not provenance_of(f).exists())
    )
    return {file.relative_to(record.parent).as_posix(): file_digest(file) for file in own}


def damaged(root: Path) -> list[str]:
    """Files below a results folder that are not what their records say: changed, or gone."""
    wrong = []
    for record in sorted(root.rglob(f"*{PROVENANCE}")):
        content = read_json(record)
        if altered(content):
            wrong.append(f"{record.relative_to(root)} (changed)")
        for name, digest in content.get("outputs", {}).items():
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
    """Whether a record says something else than when it was sealed; one without a seal, of an earlier version, cannot
    tell.
    """
    return SEAL in record and record[SEAL] != _said(record)


def _said(record: dict[str, Any]) -> str:
    content = json.loads(json.dumps({key: value for key, value in record.items() if key != SEAL}))  # as a reader has it
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


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
    return {package: installed for package in packages if (installed := version(package)) is not None}


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


def records(root: Path) -> dict[str, dict[str, Any]]:
    """Every record by the path of its file below `root`, in the order of these paths."""
    if (root / PROVENANCE).exists():
        return read_json(root / PROVENANCE)
    return {record.relative_to(root).as_posix(): read_json(record) for record in sorted(root.rglob(f"*{PROVENANCE}"))}
