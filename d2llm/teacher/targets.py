"""Reading the teacher's scores of the training pairs; `score` makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from d2llm.run.artifacts import read_frame
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths
from d2llm.run.schemas import TEACHER_SCORES

if TYPE_CHECKING:
    from d2llm.config.schema import Config


def read_scores(config: Config, qids: list[str], teacher: str = "teacher") -> pd.DataFrame:
    """All shards' scores, one row a qid in the given order. Raises ArtifactError when one is missing."""
    paths, shards = Paths.of(config), config.teacher.shards
    frame = pd.concat(
        [read_frame(paths.teacher_scores(i, shards, teacher), TEACHER_SCORES) for i in range(shards)], ignore_index=True
    )
    indexed = frame.drop_duplicates("qid").set_index("qid")
    missing = [qid for qid in qids if qid not in indexed.index]
    if missing:
        raise ArtifactError(
            f"{paths.teacher_scores(0, shards, teacher).parent}: no teacher scores for {len(missing)} training queries "
            f"(first {missing[0]!r}); "
            "remove the folder and run snakemake again"
        )
    return indexed.loc[qids].reset_index()
