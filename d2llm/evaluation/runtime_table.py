"""Reads and checks the table of run times, without torch, as figures read it too. `runtime` measures and writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2llm.run.artifacts import MEND, read_csv
from d2llm.run.errors import ArtifactError
from d2llm.run.schemas import PHASES, RUNTIME

if TYPE_CHECKING:
    import pandas as pd


def read(path: str | Path) -> pd.DataFrame:
    """Read and check the table.

    Raises ArtifactError for a missing or damaged file, an unknown phase or times that cannot be.
    """
    frame = read_csv(path, RUNTIME)
    times = frame[["q1", "median", "q3"]].to_numpy()
    checks = {
        "no rows": not len(frame),
        f"a phase other than {', '.join(PHASES)}": not frame["phase"].isin(PHASES).all(),
        "times that are not positive and ordered (q1, median, q3)": not (
            np.isfinite(times).all() and (times > 0).all() and (np.diff(times, axis=1) >= 0).all()
        ),
        "the same measurement twice": frame.duplicated(["method", "phase", "corpus"]).any(),
    }
    for fault, holds in checks.items():
        if holds:
            raise ArtifactError(f"{path}: {fault}; {MEND}")
    return frame
