"""What the provenance records of a run come to: its jobs, what each stage took, and the machine and software. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from d2llm.run.jobs import find_stage

if TYPE_CHECKING:
    from d2llm.config.schema import Config

_ARGUMENTS = ("model", "row", "teacher", "method", "variant", "seed", "shard", "shards", "name")
_MACHINE = ("python", "platform", "processor", "cores", "device", "threads")


@dataclass(frozen=True)
class Job:
    """One job that ran."""

    stage: str
    arguments: str
    seconds: float
    memory_mb: float
    code: str
    started: str
    version: str
    record: dict[str, Any]


def history(records: dict[str, dict[str, Any]], config: Config, without: Collection[str] = ()) -> list[Job]:
    """The jobs in the order they started, without stages named and runs that the config does not have (any more)."""
    runs = {tuple(run) for run in config.evaluations()} | {tuple(trial.run) for trial in config.trials()}
    stages = set(config.pretexts())
    jobs = []
    for record in records.values():
        run = (record.get("method"), record.get("variant"), record.get("seed"))
        unknown = run not in runs if "seed" in record else run[0] is not None and run[:2] not in stages
        if find_stage(record["stage"]) in without or unknown:
            continue
        arguments = " ".join(f"{name}={record[name]}" for name in _ARGUMENTS if name in record)
        jobs.append(
            Job(
                stage=record["stage"],
                arguments=arguments,
                seconds=record["seconds"],
                memory_mb=record["peak_memory_mb"],
                code=record["code"],
                started=record["started"],
                version=record["version"],
                record=record,
            )
        )
    return sorted(jobs, key=lambda job: (job.started, job.stage, job.arguments))


def by_stage(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """A row a stage, in the order they started: how many jobs, seconds together, most memory, digests of code."""
    rows: dict[str, dict[str, Any]] = {}
    for job in jobs:
        row = rows.setdefault(
            job.stage, {"stage": job.stage, "jobs": 0, "seconds": 0.0, "memory_mb": 0.0, "code": set()}
        )
        row["jobs"] += 1
        row["seconds"] += job.seconds
        row["memory_mb"] = max(row["memory_mb"], job.memory_mb)
        row["code"].add(job.code)
    return [row | {"code": sorted(row["code"])} for row in rows.values()]


def machine(jobs: Iterable[Job]) -> dict[str, dict[str, list[str]]]:
    """`facts` and `packages`, each with all values that occur: more than one where jobs ran in different places."""
    facts: dict[str, set[str]] = {}
    packages: dict[str, set[str]] = {}
    for job in jobs:
        for name in _MACHINE:
            if name in job.record:
                facts.setdefault(name, set()).add(str(job.record[name]))
        for name, version in job.record.get("packages", {}).items():
            packages.setdefault(name, set()).add(version)
    return {
        "facts": {name: sorted(facts[name]) for name in _MACHINE if name in facts},
        "packages": {name: sorted(packages[name]) for name in sorted(packages)},
    }
