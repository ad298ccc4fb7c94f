"""`d2llm why`: which source files differ since the jobs of a results folder ran.

Snakemake says that a job's code is another by two digests. The record of the job names the commit its code was of, so
the files of that commit tell the rest.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.run import jobs
from d2llm.run.artifacts import read_json
from d2llm.run.code import PACKAGES, ROOT, closure, code_digest, module_digest, source
from d2llm.run.errors import ConfigError
from d2llm.run.jobs import find_stage
from d2llm.run.paths import PROVENANCE, Paths
from d2llm.run.stages import STAGES

if TYPE_CHECKING:
    from d2llm.config.schema import Config


def run(config: Config, root: Path = ROOT) -> str:
    """A paragraph for all jobs that the same files make stale. Raises ConfigError outside of a git repository."""
    if not (root / ".git").exists() or not shutil.which("git"):
        raise ConfigError(
            f"why: {root} is not a git repository, or git is not installed; nothing else has the files of before"
        )
    records = [read_json(file) for file in sorted(Paths.of(config).root.rglob(f"*{PROVENANCE}"))]
    stale: dict[tuple[str, ...], list[str]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for record in records:
            modules = jobs.modules(config, find_stage(record["stage"]), **arguments(record))
            if code_digest(modules, root) != record["code"]:
                job = " ".join([record["stage"], *map(str, arguments(record).values())])
                stale[tuple(reasons(record, modules, root, Path(folder)))].append(job)
    if not stale:
        return f"The code of all {len(records)} jobs is that of now."
    return "\n\n".join("\n  ".join([f"{', '.join(names)}:", *lines]) for lines, names in stale.items())


def arguments(record: dict[str, Any]) -> dict[str, Any]:
    """What names a job among those of its stage."""
    return {name: record[name] for name in STAGES[find_stage(record["stage"])].arguments}


def reasons(record: dict[str, Any], modules: list[str], root: Path, folder: Path) -> list[str]:
    """The files that differ from those of the job's commit, and whether these are what it ran."""
    commit = record["commit"]
    before = folder / str(commit)
    if not before.exists() and not extract(commit, root, before):
        return [f"its commit is not in this clone ({commit})"]
    changes = []
    for module in sorted(closure(modules, before) | closure(modules, root)):
        old, new = (source(module, place) for place in (before, root))
        if module_digest(module, before) != module_digest(module, root):
            changes.append(f"{(new or old or Path()).relative_to(root if new else before)} since {commit[:10]}")
    if code_digest(modules, before) != record["code"]:
        changes.append(f"it ran with edits that {commit[:10]} does not have")
    return changes


def extract(commit: str | None, root: Path, folder: Path) -> bool:
    """Put the packages of a commit into a folder; False where there is no such commit."""
    if commit is None:
        return False
    packed = subprocess.run(["git", "archive", commit, *PACKAGES], cwd=root, capture_output=True, check=False)
    if packed.returncode:
        return False
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        # The first releases of Python 3.11 have no filters yet; what is read is an archive of this clone's own commits.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    return True
