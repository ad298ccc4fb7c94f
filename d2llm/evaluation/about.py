"""What is behind the collected scores, in one file: data card, leaks, negatives, the teacher's report, widths of
checkpoints, records of jobs.

With it a run can be shown where the scores are and nothing else is. Reads JSON only; what is not there is None.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.models.base.classifier import classifies
from d2llm.run.artifacts import read_json
from d2llm.run.jobs import find_stage
from d2llm.run.paths import Paths
from d2llm.run.provenance import SEAL, records

if TYPE_CHECKING:
    from d2llm.config.schema import Config

# Stages whose results lead to the scores; what is made of these has records of its own.
BEHIND = frozenset(
    (
        "download",
        "texts",
        "data",
        "base",
        "published",
        "vectors",
        "negatives",
        "teacher",
        "teacher_scores",
        "pretext",
        "train",
        "evaluate",
        "evaluate_shard",
    )
)


def behind(config: Config) -> dict[str, Any]:
    """{"card", "leaks", "negatives", "teacher", "widths", "records"}, and "classifier" where the teacher is one.

    Widths are of base models that settings do not describe; records, by their path, of the jobs that led to this
    config's scores, without the digests of what they wrote.
    """
    paths = Paths.of(config)
    files = {
        "card": paths.card_json,
        "leaks": paths.leaks,
        "negatives": paths.negatives_report,
        "teacher": paths.teacher_report,
    }
    runs = {tuple(run) for run in config.evaluations()}
    jobs = {
        name: {key: value for key, value in record.items() if key not in ("outputs", SEAL)}
        for name, record in records(paths.root).items()
        if find_stage(record.get("stage", "")) in BEHIND
        and ("seed" not in record or (record["method"], record["variant"], record["seed"]) in runs)
    }
    about = {name: optional(path) for name, path in files.items()} | {"widths": widths(config), "records": jobs}
    return about | ({"classifier": True} if classifies(configuration(config, "teacher").get("architectures")) else {})


def widths(config: Config) -> dict[str, int]:
    """Width of the states of every checkpoint that is here, by the name of the base model, as its configuration states
    it.
    """
    checkpoints = [name for name in config.models.names() if hasattr(config.models.of(name), "source")]
    configurations = {name: configuration(config, name) for name in checkpoints}
    return {name: about["hidden_size"] for name, about in configurations.items() if "hidden_size" in about}


def configuration(config: Config, model: str) -> dict[str, Any]:
    """What a base model's folder says of it; empty where there is none."""
    return optional(Paths.of(config).base(model) / "config.json") or {}


def optional(path: Path) -> Any:
    """A JSON file's content, None where there is none."""
    return read_json(path) if path.exists() else None
