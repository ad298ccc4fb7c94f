"""Whether a run made again is the same, file by file: which intermediate files of two runs have equal bytes, and the
first, in the order of the run, that has not.

Every job's record names the digest of each file it read, so records alone are compared: of a whole results folder, or
of one that `d2llm keep` made. Files that hold times are left out, as they differ always. How much scores may differ is
`verify`'s to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from d2llm.reporting.verify import explain
from d2llm.run.artifacts import append_jsonl
from d2llm.run.errors import ArtifactError
from d2llm.run.jobs import find_stage
from d2llm.run.paths import PROVENANCE
from d2llm.run.provenance import environment, records
from d2llm.run.stages import STAGES

Records = Mapping[str, dict[str, Any]]
# What files with times, or with a record's times, are called.
TIMED = ("summary.json", PROVENANCE)
# The stages that decide a score; what is rendered of scores, and run times, is not compared, nor a method's own
# pre-training, whose folder tells its seconds: the students that start from it are.
DECIDING = tuple(stage for stage in tuple(STAGES)[: tuple(STAGES).index("collect") + 1] if stage != "pretext")
# Words of a file that no job wrote.
OWN = "your file"


@dataclass(frozen=True)
class Certificate:
    """What two runs have in common: `equal` and `different` artefacts, each as (stage, path), in the order of the run."""

    equal: list[tuple[str, str]]
    different: list[tuple[str, str]]
    lacking: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether there is something to compare, and nothing differs or is lacking."""
        return bool(self.equal) and not self.different and not self.lacking

    def text(self) -> str:
        """For a reader, the outcome last."""
        lines = [f"Of one run alone: {name}" for name in self.lacking[:12]]
        if self.different:
            stages = Counter(stage for stage, _ in self.different)
            lines.append("Different: " + ", ".join(f"{stage} {count}" for stage, count in stages.items()))
            lines += [f"- {why}" for why in self.reasons]
            stage, path = self.different[0]
            lines.append(
                f"differs: {len(self.different)} of {len(self.equal) + len(self.different)} files, the first {path} "
                f"(stage {stage})"
            )
        elif self.lacking:
            lines.append(f"incomplete: {len(self.lacking)} files of one run alone, {len(self.equal)} equal")
        else:
            lines.append(f"identical: {len(self.equal)} files, byte for byte" if self.equal else "nothing to compare")
        return "\n".join(lines)


def certify(reference: Path, fresh: Path, log: Path | None = None) -> Certificate:
    """Compare two folders of results; `log`: a file that gets a line of it. Raises ArtifactError for one without
    records.
    """
    both = [of_jobs(folder) for folder in (reference, fresh)]
    for folder, run in zip((reference, fresh), both, strict=True):
        if not run:
            raise ArtifactError(
                f"{folder}: no records of jobs; expected a results folder, or one that `d2llm keep` made"
            )
    certificate = compared(*both)
    if log is not None:
        here = environment()
        first = dict(zip(("stage", "file"), certificate.different[0], strict=True)) if certificate.different else None
        outcome = {"equal": len(certificate.equal), "different": len(certificate.different), "first": first}
        about = {key: here[key] for key in ("commit", "platform", "processor", "python")}
        append_jsonl(log, {"reference": reference.name, "passed": certificate.passed} | outcome | about)
    return certificate


def of_jobs(folder: Path) -> Records:
    """The records of a folder's jobs; none where there is no such folder."""
    every = records(folder) if folder.is_dir() else {}
    return {name: record for name, record in every.items() if "stage" in record}


def compared(reference: Records, fresh: Records) -> Certificate:
    """The certificate of two runs by their records."""
    first, second = artefacts(reference), artefacts(fresh)
    order = {stage: place for place, stage in enumerate((OWN, *STAGES))}
    names = sorted(first.keys() & second.keys(), key=lambda name: (order[first[name][0]], name))
    pairs = [(first[name][0], name, first[name][1] == second[name][1]) for name in names]
    return Certificate(
        [(stage, name) for stage, name, same in pairs if same],
        [(stage, name) for stage, name, same in pairs if not same],
        sorted(first.keys() ^ second.keys()),
        list(explain(reference, fresh)),
    )


def artefacts(run: Records) -> dict[str, tuple[str, str]]:
    """What the jobs of a run read of others that decide a score: the stage that wrote it and its digest, by its path
    in the folder of results.
    """
    writers = {written(key): find_stage(record["stage"]) for key, record in run.items()}
    root, known = root_of(run, writers), dict[str, tuple[str, str]]()
    for record in run.values():
        for path, digest in record.get("inputs", {}).items():
            inside = path.startswith(root)
            name = path.removeprefix(root) if inside else Path(path).name
            stage = next((writers[place] for place in parents(name) if place in writers), None) if inside else OWN
            if stage in (OWN, *DECIDING) and Path(name).name not in TIMED:
                known[name] = (str(stage), digest)
    return known


def written(record: str) -> str:
    """The folder, or the file, that a record stands beside."""
    folder, _, name = record.rpartition("/")
    return folder if name == PROVENANCE else record.removesuffix(f".{PROVENANCE}")


def parents(name: str) -> Iterator[str]:
    """A path and the folders it lies in, the innermost first."""
    yield name
    yield from (str(folder) for folder in Path(name).parents if str(folder) != ".")


def root_of(run: Records, writers: Mapping[str, str]) -> str:
    """What the paths of a run's inputs begin with: the folder of its results as the jobs saw it."""
    roots = Counter(
        path.removesuffix(place)
        for record in run.values()
        for path in record.get("inputs", {})
        for place in writers
        if place and path.endswith(f"/{place}")
    )
    return max(roots, key=lambda root: (roots[root], root)) if roots else "/"
