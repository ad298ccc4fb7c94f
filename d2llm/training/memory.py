"""What a training does when memory runs out: the same update once more, in smaller parts, from the same random state.

How an update is made smaller is a strategy: not at all (`Whole`), a batch in more parts (`InParts`), or fewer texts
embedded at a time (`FewerTexts`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from d2llm.run.errors import TrainingError
from d2llm.run.logs import get_logger
from d2llm.run.random_state import random_state, set_random_state
from d2llm.training.gradient_cache import halve_texts, make_cache

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from d2llm.models.student import Student

T = TypeVar("T")
B = TypeVar("B")
Terms = dict[str, Tensor]
Loss = Callable[[Any], Terms]


def retry_on_oom(update: Callable[[], T], shrink: Callable[[Exception], None]) -> T:
    """What `update()` returns. Whenever memory runs out, `shrink(error)` makes the next attempt smaller, or raises."""
    state = random_state()
    while True:
        try:
            return update()
        except (torch.OutOfMemoryError, MemoryError) as error:
            shrink(error)
        # Outside the handler, whose error holds on to what is to be freed.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        set_random_state(state)


class Whole(Generic[B]):
    """Every batch in one piece; when memory runs out, the training ends."""

    def terms(self, batch: B, loss: Callable[[B], Terms]) -> Iterator[Terms]:
        """The loss terms of each part of a batch, made when asked for; those of all parts add up to the batch's."""
        yield loss(batch)

    def finish(self) -> None:
        """What is left of a backward pass once the loss's own is done."""

    def shrink(self, batch: B, where: str, error: Exception) -> None:
        """Smaller parts from now on. Raises TrainingError, which begins with `where`, where there are none."""
        raise TrainingError(
            f"{where}: out of memory; lower its batch_size, or take a smaller model or more memory"
        ) from error

    @property
    def notes(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {}

    def restore(self, notes: Mapping[str, Any]) -> None:
        """Go on as a checkpoint's notes say."""


class InParts(Whole[B]):
    """A batch in more and more parts.

    split(batch, k) gives at most k parts, each with its share of every term, so that the terms of all parts add up to
    those of the whole.
    """

    def __init__(self, split: Callable[[B, int], Sequence[tuple[B, Mapping[str, float]]]]) -> None:
        self.split, self.parts = split, 1

    def terms(self, batch: B, loss: Callable[[B], Terms]) -> Iterator[Terms]:
        if self.parts == 1:
            yield loss(batch)
            return
        for part, shares in self.split(batch, self.parts):
            yield {key: value * shares[key] for key, value in loss(part).items()}

    def shrink(self, batch: B, where: str, error: Exception) -> None:
        more = len(self.split(batch, 2 * self.parts))
        if more <= self.parts:
            raise TrainingError(
                f"{where}: out of memory; that was one example at a time; lower max_length, or take a smaller model or "
                "more memory"
            ) from error
        self.parts = more
        get_logger(__name__).warning("%s: out of memory; batches in %d parts from now on", where, more)

    @property
    def notes(self) -> dict[str, Any]:
        return {"parts": self.parts}

    def restore(self, notes: Mapping[str, Any]) -> None:
        self.parts = notes.get("parts", 1)


class FewerTexts(Whole[B]):
    """Fewer texts embedded at a time, for a loss that takes all embeddings of a batch at once (`gradient_cache`): the
    batch and its gradient stay.

    texts(batch): how many there are. at_once: how many to begin with; None: all of them.
    """

    def __init__(
        self,
        student: Student,
        texts: Callable[[B], int],
        autocast: Callable[[], AbstractContextManager],
        at_once: int | None = None,
    ) -> None:
        self.student, self.texts, self.autocast, self.at_once = student, texts, autocast, at_once

    def finish(self) -> None:
        if self.student.cache is not None:
            self.student.cache.backward()
        if self.student.shares is not None:
            self.student.shares.average(self.student.parameters())

    def shrink(self, batch: B, where: str, error: Exception) -> None:
        if self.student.shares is not None:  # the others wait for this one
            raise TrainingError(f"{where}: out of memory; lower training.texts_at_once") from error
        halve_texts(self.student, self.texts(batch), self.autocast, where)

    @property
    def notes(self) -> dict[str, Any]:
        return {"texts_at_once": None if self.student.cache is None else self.student.cache.size}

    def restore(self, notes: Mapping[str, Any]) -> None:
        at_once = notes.get("texts_at_once", self.at_once)
        if at_once is not None:
            self.student.cache = make_cache(self.student, at_once, self.autocast)
