"""Reference rows of models as others published them, without any training here: embedded and compared as mteb does it.

What a model is fed and how two vectors compare is mteb's wrapper's to say, by the task: the scores are those of mteb's
own evaluation of that model. Fetching and loading are in `evaluation.published`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from mteb.types import PromptType
from torch.utils.data import DataLoader

from d2llm.evaluation import published
from d2llm.evaluation.rows.base import Remembered
from d2llm.run.artifacts import require
from d2llm.run.paths import Paths
from d2llm.search.ranking import best

if TYPE_CHECKING:
    from d2llm.config.schema import Config, Run
    from d2llm.evaluation.adapter import Hits

# mteb's words for the sides of a search; two texts of one kind have no sides.
SIDES = {("query", "asymmetric"): PromptType.query, ("passage", "asymmetric"): PromptType.document}
# Scores formed at once.
BLOCK = 1 << 25


def load(config: Config, run: Run) -> PublishedScorer:
    """The model of that name. Raises ArtifactError where it was not brought."""
    settings = config.published()[run.method]
    where, known = published.check(settings)
    model = published.load(require(Paths.of(config).published(run.method)), settings, known, where)
    return PublishedScorer(model, settings.batch_size or config.evaluation.batch_size)


class PublishedScorer:
    """A bi-encoder in mteb's wrapper; every distinct text of a side is encoded once a task."""

    candidates = "all"
    trained = True

    def __init__(self, model: Any, batch_size: int) -> None:
        self.model, self.batch_size = model, batch_size
        self.kind = str(getattr(model.model.similarity_fn_name, "value", model.model.similarity_fn_name))
        self.task: Any = None
        self._known = Remembered()

    def begin(self, task: Any) -> None:
        self.task = task

    def forget(self) -> None:
        self._known.clear()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.model.device

    def side(self, role: str, mode: str = "asymmetric") -> PromptType | None:
        """mteb's word for a role."""
        return SIDES.get((role, mode))

    def encode(self, texts: Sequence[str], side: PromptType | None) -> np.ndarray:
        """(n, d) float32 vectors."""
        loader = DataLoader(Dataset.from_dict({"text": list(texts)}), batch_size=self.batch_size)
        options = {"task_metadata": self.task, "hf_split": "test", "hf_subset": "default", "prompt_type": side}
        vectors = self.model.encode(loader, **options, batch_size=self.batch_size, show_progress_bar=False)
        return torch.as_tensor(vectors).float().cpu().numpy()

    def vectors(self, texts: Sequence[str], role: str, mode: str) -> np.ndarray:
        """(n, d) float32 vectors, remembered until `forget`."""
        side = self.side(role, mode)
        return self._known.of(side, texts, lambda new: self.encode(new, side))

    def score_pairs(self, pairs: Sequence[tuple[str, str]], mode: str) -> np.ndarray:
        left, right = (
            torch.from_numpy(self.vectors(side, role, mode))
            for side, role in zip(zip(*pairs, strict=True), ("query", "passage"), strict=True)
        )
        return torch.as_tensor(self.model.similarity_pairwise(left, right)).float().cpu().numpy()

    def search(self, queries: Sequence[str], passages: Sequence[str], depth: int, ties: np.ndarray) -> Hits:
        device = self.device
        asked = torch.from_numpy(self.vectors(queries, "query", "asymmetric")).to(device)
        # Each text once: in two batches, rounding could tell equal passages apart.
        distinct = {text: row for row, text in enumerate(dict.fromkeys(passages))}
        there = torch.from_numpy(self.encode(list(distinct), PromptType.document)).to(device)
        copies = len(distinct) < len(passages)
        places = torch.tensor([distinct[text] for text in passages], device=device) if copies else None
        rows, order = torch.arange(len(passages), device=device), torch.from_numpy(ties).to(device)
        hits: Hits = []
        for part in asked.split(max(1, BLOCK // len(passages))):
            scores = torch.as_tensor(self.model.similarity(part, there)).float()
            scores = scores if places is None else scores[:, places]
            top = best(scores, rows.expand(len(part), -1), order, depth)
            hits += [(row, score) for score, row in zip(*(side.cpu().numpy() for side in top), strict=True)]
        return hits
