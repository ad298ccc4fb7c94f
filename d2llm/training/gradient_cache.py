"""Large batches in little memory: the gradient of a loss over all embeddings of a batch, a few texts in memory at a
time.

Gao et al. 2021 (GradCache): embed everything without a graph, take the loss and its gradient at the embeddings, then
embed again part by part and send each part's gradient on. The same gradient as one pass gives, up to rounding, so that
in-batch negatives stay those of the whole batch; the price is a second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from d2llm.run.errors import TrainingError
from d2llm.run.logs import get_logger
from d2llm.run.random_state import random_state, replayed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from d2llm.models.student import Student

Rows = list[tuple[int, ...]]


class GradientCache:
    """Embeds token id rows `size` at a time.

    embed: rows → (n, d), with gradients when they are on. One step: `forward`, a loss and its backward pass,
    `backward`.
    """

    def __init__(self, embed: Callable[[Rows], Tensor], size: int) -> None:
        self.embed, self.size = embed, size
        self._parts: list[tuple[Rows, Any]] = []
        self._leaf: Tensor | None = None

    def forward(self, rows: Rows) -> Tensor:
        """Embeddings (n, d) whose gradient `backward` sends on."""
        self._parts = []
        out = []
        with torch.no_grad():
            for start in range(0, len(rows), self.size):
                part = rows[start : start + self.size]
                # Dropout must hide the same in both passes.
                self._parts.append((part, random_state()))
                out.append(self.embed(part))
        self._leaf = torch.cat(out).requires_grad_()
        return self._leaf

    def backward(self) -> None:
        """After the loss's backward pass: the gradients of the weights that embed. Call it once a `forward`."""
        if self._leaf is None or self._leaf.grad is None:
            raise TrainingError(
                "gradient cache: no gradient has reached the embeddings; call forward and backward in turn"
            )
        parts, gradient = self._parts, self._leaf.grad
        self._parts, self._leaf = [], None
        start = 0
        for rows, state in parts:
            with replayed(state):
                self.embed(rows).backward(gradient[start : start + len(rows)])
            start += len(rows)

    def halve(self) -> None:
        """Half as many texts at a time from now on. Raises TrainingError when it is one already."""
        if self.size == 1:
            raise TrainingError(
                "out of memory with a single text at a time; lower training.max_length, or take a smaller model or "
                "more memory"
            )
        self._parts, self._leaf, self.size = [], None, self.size // 2


def make_cache(student: Student, size: int, autocast: Callable[[], AbstractContextManager]) -> GradientCache:
    """A cache over `student.passes` in the training's precision, which holds in the second pass as well."""

    def embed(rows: Rows) -> Tensor:
        with autocast():
            return student.passes(rows)

    return GradientCache(embed, size)


def halve_texts(student: Student, texts: int, autocast: Callable[[], AbstractContextManager], where: str) -> None:
    """After memory ran out for a batch of so many texts: half as many at a time from now on. Raises TrainingError when
    it was one.
    """
    if student.cache is None:
        student.cache = make_cache(student, texts, autocast)
    student.cache.halve()
    get_logger(__name__).warning("%s: out of memory; %d texts at a time from now on", where, student.cache.size)
