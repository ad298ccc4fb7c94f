"""Development curves: a small fixed sample of every task's dev split, measured now and then while a method trains.

Reads dev only, never test, as stage `data` has checked it; uses the student's own scorer; draws from no global
generator and leaves every module in the mode it was in, so that a training ends with the same weights whether it is
watched or not.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from d2llm.config.task_types import HEADLINE, TASK_TYPES
from d2llm.run.artifacts import read_frame, read_json
from d2llm.run.errors import DataError, TrainingError
from d2llm.run.paths import Paths
from d2llm.run.schemas import TASK_PAIRS, TASK_QRELS, TASK_TEXTS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from d2llm.config.recipes import Mode, Role
    from d2llm.config.schema import Config
    from d2llm.models.student import Student

# Of the samples: the same for every method and every seed of a training.
SEED = 1
# Padded tokens of a forward pass; more do not fit the cache of a CPU, which takes half as long again.
TOKENS = 1024


@dataclass(frozen=True)
class Sample:
    """Part of one task's dev split.

    Pairs: `left` and `right` (n), target (n,) label or score. Retrieval: `left` queries (n), `right` passages (m),
    target (n, m) whether relevant; passages stand in descending order of their ids, which is how mteb breaks ties.
    """

    task: str
    type: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    target: np.ndarray

    @property
    def mode(self) -> Mode:
        return TASK_TYPES[self.type].mode


class Monitor:
    """Measures a student in training on its samples, every `every` updates and at the first and the last; 0: never."""

    def __init__(self, samples: Sequence[Sample], every: int) -> None:
        self.samples, self.every = samples, every

    @classmethod
    def load(cls, config: Config) -> Monitor:
        """The samples of all tasks of the run, read and checked. DataError or ArtifactError names what is damaged."""
        settings = config.training
        if not settings.dev_every:
            return cls([], 0)
        folder = Paths.of(config).tasks
        tasks = sorted(path.parent for path in folder.glob("*/task.json"))
        watched = [task for task in tasks if "dev" in read_json(task / "task.json").get("splits", ["dev"])]
        return cls([sample(task, settings.dev_sample) for task in watched], settings.dev_every)

    def due(self, update: int, updates: int) -> bool:
        """Whether to measure after this update, of so many."""
        return self.every > 0 and (update % self.every == 0 or update in (1, updates))

    def measure(self, student: Student, where: str) -> dict[str, float]:
        """The headline metric of every task by name; a task on which it is not defined (all scores equal) is left out.

        Raises TrainingError, which begins with `where`, when a score is not finite.
        """
        values = {}
        with torch.no_grad(), evaluation_mode(student), lora_merged(student):
            for part, left, right in zip(self.samples, *self._vectors(student), strict=True):
                score = scores(student, part, left, right)
                if not np.isfinite(score).all():
                    raise TrainingError(
                        f"{where}: {int((~np.isfinite(score)).sum())} of {score.size} scores on the dev sample of "
                        f"{part.task} "
                        "are not finite; lower the learning rate or clip the gradients"
                    )
                value = METRICS[HEADLINE[part.type]](score, part.target)
                if np.isfinite(value):
                    values[part.task] = value
        return values

    def _vectors(self, student: Student) -> tuple[list[Tensor], list[Tensor]]:
        """Embeddings of the left and of the right texts of every sample, computed together."""
        sides: tuple[tuple[str, Role], ...] = (("left", "query"), ("right", "passage"))
        rows = [[student.ids(list(getattr(s, side)), role, s.mode) for s in self.samples] for side, role in sides]
        sizes = [len(part) for side in rows for part in side]
        parts = vectors(student, [row for side in rows for part in side for row in part]).split(sizes)
        return list(parts[: len(self.samples)]), list(parts[len(self.samples) :])


def sample(folder: Path, size: int) -> Sample:
    """`size` pairs of a task's dev split, or a quarter as many queries with one and a half times as many passages.

    Every relevant passage of a drawn query is among them, even where that makes more; the rest are drawn.
    Deterministic. Raises DataError where a sample holds no two different targets.
    """
    about = read_json(folder / "task.json")
    name, kind = about["name"], TASK_TYPES[about["type"]]
    # By name, not by place: another task beside it changes nothing.
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    if kind.target == "relevance":
        return _search(folder / "dev", name, rng, max(1, size // 4), size + size // 2)
    frame = read_frame(folder / "dev.parquet", TASK_PAIRS)
    rows = np.sort(rng.permutation(len(frame))[:size])
    pairs = frame.iloc[rows]
    target = pairs[kind.target].to_numpy(dtype=float)
    if len(set(target.tolist())) < 2:
        raise DataError(
            f"{folder}: the {len(pairs)} pairs drawn from dev all have {kind.target} {target[0]:g}, which measures "
            "nothing; raise training.dev_sample, or set training.dev_every to 0"
        )
    return Sample(name, kind.name, tuple(pairs["query"]), tuple(pairs["passage"]), target)


def _search(folder: Path, name: str, rng: np.random.Generator, queries: int, passages: int) -> Sample:
    """Some queries of a retrieval task over some of its corpus."""
    corpus, asked = (read_frame(folder / f"{part}.parquet", TASK_TEXTS) for part in ("corpus", "queries"))
    qrels = read_frame(folder / "qrels.parquet", TASK_QRELS)
    drawn = asked.iloc[np.sort(rng.permutation(len(asked))[:queries])]
    relevant: dict[str, set[str]] = {query: set() for query in drawn["id"]}
    for row in qrels[qrels["relevance"] > 0].itertuples():
        if row.query_id in relevant:
            relevant[row.query_id].add(row.doc_id)
    needed = set().union(*relevant.values())
    others = [doc for doc in corpus["id"] if doc not in needed]
    more = rng.permutation(len(others))[: max(0, passages - len(needed))]
    ids = sorted(needed | {others[place] for place in more}, reverse=True)
    texts = dict(zip(corpus["id"], corpus["text"], strict=True))
    target = np.array([[doc in relevant[query] for doc in ids] for query in drawn["id"]])
    return Sample(name, "retrieval", tuple(drawn["text"]), tuple(texts[doc] for doc in ids), target)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part is in the mode it was in, also one kept from training."""
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def lora_merged(module: nn.Module) -> Iterator[None]:
    """LoRA's products added to the weights they adapt for a while, which spares passes half of their time.

    No weight is computed back: the very tensors of before return to their places.
    """
    adapted: list[Any] = [part for part in module.modules() if hasattr(part, "get_delta_weight") and not part.merged]
    before = [part.base_layer.weight.data for part in adapted]
    try:
        for part, weight in zip(adapted, before, strict=True):
            names = list(part.active_adapters)
            part.base_layer.weight.data = weight + sum(part.get_delta_weight(name) for name in names)
            part.merged_adapters.extend(names)
        yield
    finally:
        for part, weight in zip(adapted, before, strict=True):
            part.base_layer.weight.data = weight
            part.merged_adapters.clear()


def scores(student: Student, part: Sample, left: Tensor, right: Tensor) -> np.ndarray:
    """(n,) scores of pairs as given, by the symmetric head, or (n, m) of queries and passages, by the
    asymmetric one.
    """
    score = student.scorer.matrix if part.type == "retrieval" else student.scorer.pairs
    return score(left, right, part.mode).float().cpu().numpy()


def vectors(student: Student, rows: list[tuple[int, ...]]) -> Tensor:
    """Embeddings (n, d) of token id rows; equal rows run once, rows of like length together."""
    unique = sorted(dict.fromkeys(rows), key=len)
    parts, start = [], 0
    while start < len(unique):
        # Ascending lengths: the last row of a pass is its longest, which all are padded to.
        end = start + 1
        while end < len(unique) and (end + 1 - start) * len(unique[end]) <= TOKENS:
            end += 1
        with student.embedding():
            parts.append(student.pool(unique[start:end]))
        start = end
    place = {row: index for index, row in enumerate(unique)}
    return torch.cat(parts).index_select(0, torch.tensor([place[row] for row in rows], device=student.device))


def average_precision(score: np.ndarray, label: np.ndarray) -> float:
    """Of (n,) scores and labels 0 and 1."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(label, score))


def spearman(score: np.ndarray, target: np.ndarray) -> float:
    """Of (n,) scores and targets; NaN where all scores are equal."""
    from scipy.stats import spearmanr

    return float(spearmanr(score, target).statistic) if np.ptp(score) > 0 else float("nan")


def mrr_at_10(score: np.ndarray, relevant: np.ndarray) -> float:
    """Mean over queries of 1 / rank of the first relevant passage, 0 below rank 10; (n, m) both, ties by place."""
    order = np.argsort(-score, axis=1, kind="stable")[:, :10]
    hit = np.take_along_axis(relevant, order, axis=1)
    return float(np.where(hit.any(1), 1.0 / (hit.argmax(1) + 1), 0.0).mean())


METRICS = {"ap": average_precision, "spearman": spearman, "mrr_at_10": mrr_at_10}
