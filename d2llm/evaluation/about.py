"""What is behind the collected scores, in one file: data card, leaks, negatives, the teacher's report and the records of all jobs that led to them.

With it a run can be shown where the scores are and nothing else is. Reads JSON only; what is not there is None.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.artifacts import read_json
from d2llm.paths import Paths
from d2llm.records import records

if TYPE_CHECKING:
    from d2llm.config import Config

# Stages whose results lead to the scores; what is made of these has records of its own.
BEHIND = frozenset(
    ("download", "texts", "data", "base", "vectors", "negatives", "teacher", "teacher-scores", "pretext", "train", "evaluate")
)  # fmt: skip


def behind(config: Config) -> dict[str, Any]:
    """{"card", "leaks", "negatives", "teacher", "records"}; records by their path, without digests of outputs, of this config's runs alone."""
    paths = Paths.of(config)
    files = {"card": paths.card_json, "leaks": paths.leaks, "negatives": paths.negatives_report, "teacher": paths.teacher_report}  # fmt: skip
    runs = {tuple(run) for run in config.evaluations()}
    kept = {
        name: {key: value for key, value in record.items() if key != "outputs"}
        for name, record in records(paths.root).items()
        if record.get("stage") in BEHIND
        and ("seed" not in record or (record["method"], record["variant"], record["seed"]) in runs)
    }
    return {name: optional(path) for name, path in files.items()} | {"records": kept}


def optional(path: Path) -> Any:
    """A JSON file's content, None where there is none."""
    return read_json(path) if path.exists() else None
