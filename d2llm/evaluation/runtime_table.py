"""The table of run times: its columns, its phases, and how it is read. Free of torch, for figures read it too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2llm.artifacts import MEND, read_csv
from d2llm.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd

# What is timed, with what its seconds are for.
PHASES: dict[str, str] = {
    "encode_query": "text",
    "encode_passage": "text",
    "score": "pair",
    "search": "query",
    "rerank": "query",
}
# `batch`: texts, or pairs of one query, computed at once. `corpus`: passages searched, 0 where none are. Times in seconds. Bytes are
# of a passage in the index and of its plain embedding; there are none where no vectors are stored.
COLUMNS: dict[str, str] = {
    "method": "str", "phase": "str", "per": "str", "batch": "int", "corpus": "int", "threads": "int", "median": "float",
    "q1": "float", "q3": "float", "repeats": "int", "extrapolated": "bool", "bytes_per_passage": "float", "embedding_bytes": "float",
}  # fmt: skip


def read(path: str | Path) -> pd.DataFrame:
    """The table, checked. Raises ArtifactError for a missing or damaged file, an unknown phase or times that cannot be."""
    frame = read_csv(path, COLUMNS)
    times = frame[["q1", "median", "q3"]].to_numpy()
    checks = {
        "no rows": not len(frame),
        f"a phase other than {', '.join(PHASES)}": not frame["phase"].isin(PHASES).all(),
        "times that are not positive and ordered (q1, median, q3)": not (
            np.isfinite(times).all() and (times > 0).all() and (np.diff(times, axis=1) >= 0).all()
        ),
        "the same measurement twice": frame.duplicated(["method", "phase", "corpus"]).any(),
    }
    for wrong, found in checks.items():
        if found:
            raise ArtifactError(f"{path}: {wrong}; {MEND}")
    return frame
