"""What follows from a stage's declaration for one job: its settings, code and versions as Snakemake compares them, its
outputs, whether it is current.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import SequenceMatcher
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from d2llm.config.schema import Config, Run
from d2llm.config.sections import CpuSettings, GpuSettings
from d2llm.config.values import canonical
from d2llm.run.artifacts import read_json
from d2llm.run.code import code_digest, packages
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.paths import PROVENANCE, Paths
from d2llm.run.provenance import versions
from d2llm.run.stages import RUN, STAGES, WATCHING


def settings(config: Config, stage: str, **arguments: Any) -> dict[str, Any]:
    """The settings a job's result depends on, by their keys; a change of any other makes nothing of it stale."""
    values = config.model_dump(mode="json")
    for key in WATCHING:
        del values["training"][key]
    keys = [key.format(**arguments) for key in STAGES[stage].settings]
    chosen = {key: reduce(getitem, key.split("."), values) for key in keys} | STAGES[stage].more(config, **arguments)
    return chosen | (precision(config) if STAGES[stage].torch else {})


def precision(config: Config) -> dict[str, Any]:
    """What processors compute in, for all that computes with torch; the usual goes unsaid."""
    usual = {"cpu": CpuSettings(), "gpu": GpuSettings()}
    chosen = {name: getattr(config, name) for name in usual}
    return {name: value.model_dump(mode="json") for name, value in chosen.items() if value != usual[name]}


def settings_line(config: Config, stage: str, **arguments: Any) -> str:
    """`settings` as one line, for Snakemake to compare with the last run's."""
    return canonical(settings(config, stage, **arguments))


def modules(config: Config, stage: str, **arguments: Any) -> list[str]:
    """The modules a job starts from; what they import counts as well."""
    return [STAGES[stage].function.partition(":")[0], *STAGES[stage].code(config, **arguments)]


def code(config: Config, stage: str, **arguments: Any) -> str:
    """Digest of the code a job's result depends on."""
    return code_digest(modules(config, stage, **arguments))


def versions_line(config: Config, stage: str, **arguments: Any) -> str:
    """Versions of the packages a job's result depends on, without their builds: "numpy 2.4.6, torch 2.13.0"."""
    installed = versions(packages(modules(config, stage, **arguments)))
    return ", ".join(f"{name} {version.partition('+')[0]}" for name, version in installed.items())


def outputs(stage: str, paths: Paths, **arguments: Any) -> list[Path]:
    """The files and folders that a job writes, but for its record: all of a folder that has one of its own."""
    record = STAGES[stage].record(paths, **arguments)
    if record.name == PROVENANCE:
        return [record.parent]
    return [path for path in STAGES[stage].writes(paths, **arguments) if path != record]


def current(config: Config, stage: str, **arguments: Any) -> bool:
    """Whether what a job has made here is of these settings, and of inputs that are as they were. Of a run by another
    config, or half a job, it is not.
    """
    path = STAGES[stage].record(Paths.of(config), **arguments)
    try:
        record, written = read_json(path), path.stat().st_mtime
        same = record["settings"] == settings(config, stage, **arguments)
        return same and all(Path(name).stat().st_mtime <= written for name in record["inputs"])
    except (ArtifactError, OSError, TypeError, KeyError):  # not there, damaged, or of an input that has gone
        return False


def find_stage(name: str) -> str:
    """A stage by its name, as rules and records have it, or as the command line spells it. Records of older runs have
    the latter too.
    """
    return name.replace("-", "_")


def check_arguments(config: Config, stage: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a job this config does not have, before anything heavy is imported."""
    if stage == "base" and arguments["model"] not in config.models.names():
        known = ", ".join(config.models.names())
        raise ConfigError(f"--model: expected one of {known}; found {arguments['model']!r}")
    if stage == "download" and arguments["download"] not in config.data.files.downloads():
        known = ", ".join(config.data.files.downloads()) or "none"
        raise ConfigError(f"--download: expected one of {known}; found {arguments['download']!r}")
    if stage == "published" and arguments["row"] not in config.published():
        known = ", ".join(config.published()) or "none"
        raise ConfigError(f"--row: expected one of {known}; found {arguments['row']!r}")
    if "teacher" in STAGES[stage].arguments:
        config.teacher_of(arguments["teacher"])
    if stage == "pretext" and (arguments["method"], arguments["variant"]) not in config.pretexts():
        wanted = f"--method {arguments['method']} --variant {arguments['variant']}"
        raise ConfigError(f"{wanted}: no run of this config has a pre-training stage of its own by that name")
    if STAGES[stage].arguments[: len(RUN)] == RUN:
        evaluated = stage in ("evaluate", "evaluate_shard")
        runs = config.evaluations() if evaluated else config.runs() + [trial.run for trial in config.trials()]
        asked = Run(*(arguments[name] for name in RUN))
        if asked not in runs:
            raise ConfigError(
                f"{words(asked)}: not a run of this config; add it to methods, variants, sweeps, seeds or "
                "tuning.grids, "
                f"or take the nearest: {words(nearest_run(asked, runs))}"
            )


def words(run: Run) -> str:
    """A run as the command line names it."""
    return " ".join(f"--{name} {value}" for name, value in zip(RUN, run, strict=True))


def nearest_run(asked: Run, runs: list[Run]) -> Run:
    """Of some runs the one most like another, by method first, then variant, then seed."""

    def likeness(run: Run) -> tuple[float, float, int]:
        method = SequenceMatcher(None, asked.method, run.method).ratio()
        return method, SequenceMatcher(None, asked.variant, run.variant).ratio(), -abs(asked.seed - run.seed)

    return max(runs, key=likeness)
