"""A trained student as a row: it scores pairs and searches corpora by its own scorer. Metrics are left to mteb."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from d2llm.evaluation.rows.base import Remembered
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from d2llm.config.schema import Config, Run
    from d2llm.evaluation.adapter import Hits

# Pairs scored at once on a CPU.
PAIR_BLOCK = 4096


def load(config: Config, run: Run) -> StudentScorer:
    """The student of a run. Raises ArtifactError where it is not trained."""
    from d2llm.models.device import default_device
    from d2llm.models.student import Student

    folder = Paths.of(config).run(*run) / "model"
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: missing; run `snakemake --cores all` to train it")
    return StudentScorer(Student.load(folder).to(default_device()), config.evaluation.batch_size)


class StudentScorer:
    """A trained student: every distinct text is encoded once, pairs and matrices go through its own scorer."""

    candidates = "all"
    trained = True

    def __init__(self, student: Any, batch_size: int = 256) -> None:
        self.student = student
        self.batch_size = batch_size
        scorer = student.scorer
        self.kind = getattr(scorer, "name", None) or type(scorer).__name__.lower()
        self._known = Remembered()

    def begin(self, task: object) -> None:
        """The mode says all that it needs."""

    def vectors(self, texts: Sequence[str], role: str, mode: str) -> np.ndarray:
        """(n, d) float32 embeddings, remembered until `forget`."""
        return self._known.of(
            (self._merge_role(role, mode), mode),
            texts,
            lambda new: self.student.encode(new, role, mode, self.batch_size),
        )

    def forget(self) -> None:
        """Drops the vectors: tasks share few texts."""
        self._known.clear()

    def score_pairs(self, pairs: Sequence[tuple[str, str]], mode: str) -> np.ndarray:
        import torch

        from d2llm.models.device import block_bytes
        from d2llm.models.precision import scoring
        from d2llm.search.index import on_device

        q, p = (
            self.vectors(side, role, mode)
            for side, role in zip(zip(*pairs, strict=True), ("query", "passage"), strict=True)
        )
        device = on_device(self.student, q[:0]).device
        # A pair's two vectors and what the scorer keeps of each.
        size = max(PAIR_BLOCK, block_bytes(device, 0) // (4 * q[0].nbytes))
        with scoring():
            parts = [
                self.student.scorer.pairs(
                    *(on_device(self.student, side[start : start + size]) for side in (q, p)), mode
                )
                for start in range(0, len(pairs), size)
            ]
            return torch.cat(parts).float().cpu().numpy()

    def search(self, queries: Sequence[str], passages: Sequence[str], depth: int, ties: np.ndarray) -> Hits:
        """Scores every passage (`d2llm.search.index`). The index is not kept: a corpus is searched once and may be
        large.
        """
        from d2llm.search.index import Index

        index = Index.build(self.student, passages, self.batch_size)
        return index.search_vectors(self.vectors(queries, "query", "asymmetric"), depth, ties=ties)

    def _merge_role(self, role: str, mode: str) -> str:
        """Roles that feed a text alike share its vector."""
        formats = getattr(self.student, "formats", None)
        if formats and formats.get(("query", mode)) == formats.get(("passage", mode)) is not None:
            return "query"
        return role
