"""The training pairs as batches: the same for every method of a seed, with the teacher's scores for those that imitate
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from d2llm.config.recipes import LabelSettings
from d2llm.methods.losses import off_diagonal
from d2llm.methods.text_ids import PairTextIds
from d2llm.models.batch import Batch, TeacherTargets
from d2llm.run.artifacts import read_frame
from d2llm.run.errors import DataError
from d2llm.run.paths import Paths
from d2llm.run.schemas import PAIRS
from d2llm.training.labels import tell

if TYPE_CHECKING:
    import pandas as pd

    from d2llm.config.recipes import Recipe
    from d2llm.config.schema import Config
    from d2llm.methods.base import Method


class PairData:
    """The training pairs with, for methods that use it, the teacher's scores; `counts`: how many have a label, and of
    what kind, where not all are told as they are (`labels.tell`).
    """

    def __init__(
        self, pairs: pd.DataFrame, scores: pd.DataFrame | None, recipe: Recipe | None = None, imitates: bool = True,
        labelled: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """`recipe`: whose choice of negatives is made by the scores; `imitates`: whether batches hold them; `labelled`
        (n,): which pairs have a label (None: all).
        """
        self.pairs, self.labelled, self.counts = pairs, labelled, dict[str, int]()
        self.queries, self.positives = pairs["query"].tolist(), pairs["positive"].tolist()
        self.negatives = [list(texts) for texts in pairs["negatives"]]
        widths = {len(texts) for texts in self.negatives}
        if len(widths) != 1:
            raise DataError(
                f"pairs: every query needs the same number of negatives, found {sorted(widths)}; remove pairs/ and run "
                "again"
            )
        self.width = widths.pop()
        asked, marked = self.queries, pairs["marked"].tolist()
        if labelled is not None:  # nobody knows what is right for the others: each has a name of its own
            asked = [query if own else f"\0{row}" for row, (query, own) in enumerate(zip(asked, labelled, strict=True))]
            marked = [texts if own else () for texts, own in zip(marked, labelled, strict=True)]
        self.text_ids = PairTextIds(pairs["dataset"].tolist(), asked, self.positives, self.negatives, marked)
        known = None if scores is None else _Scores(scores, self.width)
        self.negative_mask: np.ndarray | None = None
        if known is not None and recipe is not None and recipe.negatives.reads:
            self._choose(known, recipe)
        self.scores = known if imitates else None
        # Rows of every pack, packs of every data set (one mode each).
        self.packs = [rows.to_numpy() for _, rows in pairs.groupby("pack", sort=True).groups.items()]
        owner = pairs.groupby("pack", sort=True)["dataset"].first().to_numpy()
        self.datasets = {str(name): np.flatnonzero(owner == name) for name in dict.fromkeys(owner)}
        self.modes = pairs.groupby("dataset")["mode"].first().to_dict()
        # Packs without labels, which travel whole.
        self.rest = set() if labelled is None else {n for n, rows in enumerate(self.packs) if not labelled[rows[0]]}

    @classmethod
    def load(cls, config: Config, method: Method, recipe: Recipe | None = None, seed: int = 1) -> PairData:
        """Read what a run of a seed needs, of the method itself or by another recipe; batches of one that does not
        imitate a teacher hold no scores.
        """
        recipe = config.recipe(method.name) if recipe is None else recipe
        pairs = read_frame(Paths.of(config).pairs, PAIRS)
        scores = None
        if method.reads_scores(recipe):
            from d2llm.teacher.targets import read_scores

            scores = read_scores(config, pairs["qid"].tolist(), getattr(recipe, "teacher", "teacher"))
        if recipe.labels in (None, LabelSettings()):
            return cls(pairs, scores, recipe, method.imitates(recipe))
        told = tell(pairs, scores, recipe.labels, seed)
        data = cls(told.pairs, told.scores, recipe, method.imitates(recipe), told.labelled)
        data.counts = told.counts
        return data

    def _choose(self, scores: _Scores, recipe: Recipe) -> None:
        """Put each query's negatives in the order in which the recipe takes them, and mark those it leaves out."""
        order, self.negative_mask = chosen_negatives(scores.hard, recipe)
        self.negatives = [[texts[k] for k in row] for texts, row in zip(self.negatives, order, strict=True)]
        self.text_ids.negatives = np.take_along_axis(self.text_ids.negatives, order, axis=1)
        scores.reorder(order)

    def plan(self, size: int, steps: int, seed: int) -> list[tuple[str, list[int]]]:
        """`steps` batches of one data set each, as (data set, pack numbers): the same for every method of a seed.

        A data set is drawn in proportion to its size; its packs are reshuffled every pass.
        """
        rng = np.random.default_rng(seed)
        names = list(self.datasets)
        share = np.array([len(self.datasets[name]) for name in names], dtype=float)
        per_batch = max(1, size // len(self.packs[0]))
        queues = {name: self._queues(self.datasets[name], per_batch) for name in names}
        out = []
        for name in rng.choice(names, size=steps, p=share / share.sum()):
            packs: list[int] = []
            for queue in queues[name]:
                while len(queue.waiting) < queue.count:
                    queue.waiting += rng.permutation(queue.packs).tolist()
                packs += queue.waiting[: queue.count]
                del queue.waiting[: queue.count]
            out.append((str(name), packs))
        return out

    def _queues(self, packs: np.ndarray, per_batch: int) -> list[_Queue]:
        """What a batch of a data set is drawn from: its packs or, where some lack labels, those with and those without,
        half of each, or more of the former where they are more.
        """
        rest = np.array([number for number in packs if number in self.rest], dtype=int)
        if not len(rest):
            return [_Queue(packs, per_batch)]
        labelled = np.setdiff1d(packs, rest)
        count = min(per_batch - 1, round(per_batch * max(0.5, len(labelled) / len(packs))))
        return [_Queue(labelled, count), _Queue(rest, per_batch - count)]

    def batches(self, size: int, steps: int, seed: int, done: int = 0) -> Batches:
        """The batches of `plan` after the first `done`, made one at a time."""
        return Batches(self, self.plan(size, steps, seed)[done:])

    def batch(self, dataset: str, packs: list[int]) -> Batch:
        """The batch of some packs; easy negatives are the other positives of a query's pack."""
        rows = np.concatenate([self.packs[number] for number in packs])
        teacher = None
        if self.scores is not None:
            teacher = self.scores.targets(rows, [len(self.packs[number]) for number in packs])
        return Batch(
            dataset=dataset,
            mode=self.modes[dataset],
            queries=[self.queries[i] for i in rows],
            positives=[self.positives[i] for i in rows],
            negatives=[self.negatives[i] for i in rows],
            teacher=teacher,
            negative_mask=None if self.negative_mask is None else torch.from_numpy(self.negative_mask[rows]),
            text_ids=self.text_ids.of(rows),
            labelled=None if self.labelled is None else torch.from_numpy(self.labelled[rows]),
        )


def chosen_negatives(hard: np.ndarray, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """(n, K) the order in which a recipe takes the negatives of n queries, and (n, K) which of them, so ordered, it may
    take. hard (n, 1 + K, 2): the teacher's logits, yes and no, the positive first.

    `below`: NV-Retriever's TopK-PercPos (Moreira et al. 2024, arXiv 2407.15831), by the probability of yes.
    `stratified`: as TAS-B balances margins (Hofstätter et al. 2021, arXiv 2104.06967), without a draw: of a query's
    negatives those nearest to so many even steps between its lowest and its highest logit.
    """
    logits = hard[..., 0] - hard[..., 1]
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    choice, count = recipe.negatives, recipe.hard_negatives
    keep = np.ones((len(hard), hard.shape[1] - 1), dtype=bool)
    if choice.below is not None:
        keep = probability[:, 1:] <= choice.below * probability[:, :1]
    order = np.argsort(~keep, axis=1, kind="stable")
    if choice.stratified and count:
        for row in np.flatnonzero(keep.sum(1) > count):
            taken = spread_evenly(logits[row, 1:], np.flatnonzero(keep[row]), count)
            order[row] = [*taken, *(k for k in order[row] if k not in taken)]
    return order, np.take_along_axis(keep, order, axis=1)


def spread_evenly(values: np.ndarray, places: np.ndarray, count: int) -> list[int]:
    """`count` of the places, in their order: for each of so many even steps the nearest value that is left."""
    left = [int(place) for place in places]
    taken = []
    for step in np.linspace(values[places].min(), values[places].max(), count):
        nearest = min(left, key=lambda place: (abs(values[place] - step), place))
        taken.append(nearest)
        left.remove(nearest)
    return sorted(taken)


@dataclass
class _Queue:
    """Packs that batches take `count` of at a time, and those of a pass that are still waiting."""

    packs: np.ndarray
    count: int
    waiting: list[int] = field(default_factory=list)


class Batches:
    """A sized iterable over planned batches."""

    def __init__(self, data: PairData, plan: list[tuple[str, list[int]]]) -> None:
        self.data, self.plan = data, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        for dataset, packs in self.plan:
            yield self.data.batch(dataset, packs)


class _Scores:
    """Teacher scores as arrays in the order of the training pairs."""

    def __init__(self, scores: pd.DataFrame, width: int) -> None:
        stack = {
            key: np.stack(scores[key]).astype(np.float32) for key in ("yes", "no", "easy_yes", "easy_no", "features")
        }
        if stack["yes"].shape[1] != width + 1:
            raise DataError(
                f"teacher scores cover {stack['yes'].shape[1] - 1} negatives a query, the pairs have {width}; remove "
                "teacher/scores and run again"
            )
        self.hard = np.stack([stack["yes"], stack["no"]], axis=-1)
        self.easy = np.stack([stack["easy_yes"], stack["easy_no"]], axis=-1)
        self.features = stack["features"].reshape(-1, width + 1, width + 1)

    def reorder(self, order: np.ndarray) -> None:
        """Bring the negatives into another order (n, K)."""
        whole = np.concatenate([np.zeros_like(order[:, :1]), 1 + order], axis=1)
        self.hard = np.take_along_axis(self.hard, whole[..., None], axis=1)
        rows = np.take_along_axis(self.features, whole[:, :, None], axis=1)
        self.features = np.take_along_axis(rows, whole[:, None, :], axis=2)

    def targets(self, rows: np.ndarray, sizes: list[int]) -> TeacherTargets:
        packs = torch.arange(len(rows)).split(sizes)
        index = torch.cat([off_diagonal(pack.expand(len(pack), -1)) for pack in packs])  # all but oneself
        hard = torch.from_numpy(self.hard[rows])
        return TeacherTargets(
            positive_logits=hard[:, 0],
            negative_logits=hard[:, 1:],
            easy_logits=torch.from_numpy(self.easy[rows]),
            easy_index=index,
            features=torch.from_numpy(self.features[rows]),
        )
