"""The provenance records of a results folder, whether a run's own or the one file a kept reference has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2llm.artifacts import read_json
from d2llm.paths import PROVENANCE


def records(root: Path) -> dict[str, dict[str, Any]]:
    """Every record by the path of its file below `root`, in the order of these paths."""
    if (root / PROVENANCE).exists():
        return read_json(root / PROVENANCE)
    return {record.relative_to(root).as_posix(): read_json(record) for record in sorted(root.rglob(f"*{PROVENANCE}"))}
