"""Stage `teacher-scores`: what the teacher says of every training pair, computed once and read by every run and sweep
point.

Per training query: yes/no logits of its positive and negatives, of its easy negatives (the other positives of its
pack), and the cosine matrix of the pair features over the positive and negatives (the target of feature imitation).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from d2llm.run.artifacts import read_frame, write_frame
from d2llm.run.checkpoint import Resume
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths
from d2llm.run.schemas import PAIRS
from d2llm.teacher.load import load
from d2llm.teacher.parts import in_parts, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from d2llm.config.schema import Config
    from d2llm.teacher.cross_encoder import Group, Teacher

# By name, so that an edit of it makes no scores of a model stale (`run.stages`).
FROM_FILE = "d2llm.teacher.from_file"


def run(config: Config, teacher: str, shard: int, shards: int, resume: Resume | None = None) -> None:
    """Score the packs of one shard by a teacher of the config. What a killed job has scored is not scored again."""
    paths = Paths.of(config)
    pairs = read_frame(paths.pairs, PAIRS)
    mine = pairs[pairs["pack"] % shards == shard].reset_index(drop=True)
    if config.teacher_of(teacher).scores is not None:
        scores = import_module(FROM_FILE).scored(config, teacher, mine)
    else:
        judge = load(paths.teacher(teacher) / "model", config.teacher_of(teacher))
        parts = [score(judge, part, str(mode), resume) for mode, part in mine.groupby("mode", sort=True)]
        scores = pd.concat(parts, ignore_index=True)
    log = get_logger(__name__)
    log.info("scored %d queries of shard %d of %d", len(scores), shard, shards)
    owner = mine.set_index("qid")["dataset"].loc[scores["qid"]].to_numpy()
    for dataset, part in scores.groupby(owner, sort=True):
        yes = np.stack(part["yes"]) >= np.stack(part["no"])
        log.info("%s: yes to %.3f of positives, %.3f of hard negatives", dataset, yes[:, 0].mean(), yes[:, 1:].mean())
    write_frame(paths.teacher_scores(shard, shards, teacher), scores)


def score(teacher: Teacher, rows: pd.DataFrame, mode: str, resume: Resume | None = None) -> pd.DataFrame:
    """Scores of one mode's rows; whole packs, in order."""
    groups = []
    hard = 1 + len(rows["negatives"].iloc[0])
    for _, part in rows.groupby("pack", sort=False):
        positives = part["positive"].tolist()
        for i, (query, negatives) in enumerate(zip(part["query"], part["negatives"], strict=True)):
            easy = positives[:i] + positives[i + 1 :]
            groups.append((query, [positives[i], *negatives, *easy]))

    def judge(part: Sequence[Group]) -> dict[str, np.ndarray]:
        logits, states = teacher.score(part, mode, features=True, description=f"teacher scores, {mode}")
        # Of all states of a corpus, hundreds of gigabytes, the cosines are what stays.
        return {"logits": np.concatenate(logits), "features": np.stack([cosines(y[:hard]).ravel() for y in states])}

    logits, features = list[np.ndarray](), list[np.ndarray]()
    for part, arrays in in_parts(teacher, groups, mode, resume or Resume(), judge):
        logits += split(arrays["logits"], [len(candidates) for _, candidates in part])
        features += list(arrays["features"])
    return pd.DataFrame(
        {
            "qid": rows["qid"].tolist(),
            "yes": [z[:hard, 0] for z in logits],
            "no": [z[:hard, 1] for z in logits],
            "easy_yes": [z[hard:, 0] for z in logits],
            "easy_no": [z[hard:, 1] for z in logits],
            "features": features,
        }
    )


def cosines(features: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, n) cosine matrix, float32; C^T of feature imitation."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return (unit @ unit.T).astype(np.float32)
