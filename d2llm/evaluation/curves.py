"""The trainings behind the collected scores: one row each of what it took, and the curves of their logs.

Reads `summary.json`, `provenance.json` and the logs of runs; no model, no score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from d2llm.run.artifacts import MEND, read_json, read_jsonl
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import PROVENANCE
from d2llm.run.schemas import CURVES, FINE_TUNING, RUNS

if TYPE_CHECKING:
    from d2llm.config.schema import Run

# Of a record, what is neither a loss nor a score.
ASIDE = frozenset(("stage", "step", "dataset", "gradient_norm", "learning_rate"))


def trainings(folders: Mapping[Run, Path]) -> pd.DataFrame:
    """The frame RUNS of runs in these folders. ArtifactError for a file that is missing, damaged or of another run."""
    rows = []
    for run, folder in folders.items():
        path = folder / "summary.json"
        summary, record = read_json(path), read_json(folder / PROVENANCE)
        try:
            identity = tuple(summary[key] for key in ("method", "variant", "seed"))
            if identity != tuple(run):
                raise ArtifactError(f"{path}: of run {identity}, expected {tuple(run)}; {MEND}")
            counts = summary["parameters"]
            rows.append(
                {
                    **run._asdict(),
                    "kind": summary["kind"],
                    "pooling": part(*summary["pooling"]),
                    "scorer": part(*summary["scorer"]),
                    **{key: summary[key] for key in ("updates", "queries", "negatives_per_query")},
                    **{key: counts[key] for key in ("backbone_trained", "head_trained")},
                    "parameters": counts["total"],
                    **{key: float(summary[key]) for key in ("seconds", "pretext_seconds")},
                    "peak_memory_mb": float(record["peak_memory_mb"]),
                    "last_loss": float(summary["last_losses"]["loss"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} or {PROVENANCE} beside it: damaged ({error!r}); {MEND}") from error
    return pd.DataFrame(rows, columns=list(RUNS))


def part(name: str, options: Mapping[str, Any]) -> str:
    """A pooling or scorer as text: its name, then its options.

    >>> part("last_token", {"k": 8})
    'last_token (k 8)'
    """
    settings = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in options.items()
    )
    return f"{name} ({settings})" if settings else name


def curves(logs: Mapping[Run, Iterable[Path]], updates: Mapping[Run, int]) -> pd.DataFrame:
    """The frame CURVES of runs, each of whose logs are read one after the other.

    updates: how many each run's fine-tuning had, which its logs must reach.

    Raises:
        ArtifactError: a log is missing, damaged, says something twice or ends too early.
    """
    rows = []
    for run, files in logs.items():
        logged = [row for path in files for row in values(path)]
        reached = max((step for stage, step, *_ in logged if stage == FINE_TUNING), default=0)
        where = " and ".join(map(str, files))
        if reached != updates[run]:
            raise ArtifactError(f"{where}: fine-tuning ends at update {reached}, expected {updates[run]}; {MEND}")
        keys = set()
        for stage, step, name, _ in logged:
            if (stage, step, name) in keys:
                raise ArtifactError(f"{where}: {name} of {stage}, step {step}, twice; {MEND}")
            keys.add((stage, step, name))
        rows += [(*run, *row) for row in logged]
    return pd.DataFrame(rows, columns=list(CURVES))


def values(path: Path) -> list[tuple[str, int, str, float]]:
    """(stage, step, name, value) of every loss term and every score in a log, in its order."""
    entries = []
    for number, record in enumerate(read_jsonl(path), 1):
        stage, step = record.get("stage"), record.get("step")
        if not isinstance(stage, str) or not isinstance(step, int):
            raise ArtifactError(f"{path}: record {number} has no stage and step; {MEND}")
        for name, value in record.items():
            if name in ASIDE:
                continue
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ArtifactError(f"{path}: record {number}: {name} is {value!r}, expected a finite number; {MEND}")
            entries.append((stage, step, name, float(value)))
    return entries
