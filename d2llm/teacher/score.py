"""Stage `teacher-scores`: what the teacher says of every training pair, computed once and read by every run and sweep
point.

Per training query: yes/no logits of its positive and negatives, of its easy negatives (the other positives of its
pack), and the cosine matrix of the pair features over the positive and negatives (the target of feature imitation).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from d2llm.run.artifacts import read_frame, write_frame
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths
from d2llm.run.schemas import PAIRS
from d2llm.teacher.load import load

if TYPE_CHECKING:
    from d2llm.config.schema import Config
    from d2llm.teacher.cross_encoder import Teacher


def run(config: Config, teacher: str, shard: int, shards: int) -> None:
    """Score the packs of one shard by a teacher of the config."""
    paths = Paths.of(config)
    pairs = read_frame(paths.pairs, PAIRS)
    mine = pairs[pairs["pack"] % shards == shard].reset_index(drop=True)
    judge = load(paths.teacher(teacher) / "model", config.teacher_of(teacher))
    parts = [score(judge, part, str(mode)) for mode, part in mine.groupby("mode", sort=True)]
    scores = pd.concat(parts, ignore_index=True)
    get_logger(__name__).info("scored %d queries of shard %d of %d", len(scores), shard, shards)
    write_frame(paths.teacher_scores(shard, shards, teacher), scores)


def score(teacher: Teacher, rows: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Scores of one mode's rows; whole packs, in order."""
    groups, counts = [], []
    for _, part in rows.groupby("pack", sort=False):
        positives = part["positive"].tolist()
        for i, (query, negatives) in enumerate(zip(part["query"], part["negatives"], strict=True)):
            easy = positives[:i] + positives[i + 1 :]
            groups.append((query, [positives[i], *negatives, *easy]))
            counts.append(1 + len(negatives))
    logits, states = teacher.score(groups, mode, features=True, description=f"teacher scores, {mode}")
    return pd.DataFrame(
        {
            "qid": rows["qid"].tolist(),
            "yes": [z[:k, 0] for z, k in zip(logits, counts, strict=True)],
            "no": [z[:k, 1] for z, k in zip(logits, counts, strict=True)],
            "easy_yes": [z[k:, 0] for z, k in zip(logits, counts, strict=True)],
            "easy_no": [z[k:, 1] for z, k in zip(logits, counts, strict=True)],
            "features": [cosines(y[:k]).ravel() for y, k in zip(states, counts, strict=True)],
        }
    )


def cosines(features: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, n) cosine matrix, float32; C^T of feature imitation."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return (unit @ unit.T).astype(np.float32)
