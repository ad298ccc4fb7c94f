"""What a training does when memory runs out: the same update once more, in smaller parts, from the same random state.

How an update is made smaller is its owner's business: fewer texts embedded at a time (`gradient_cache`), or a batch in more parts (`optimization.fit`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

T = TypeVar("T")


def retried(update: Callable[[], T], less: Callable[[Exception], None]) -> T:
    """What `update()` returns. Whenever memory runs out, `less(error)` makes the next attempt smaller, or raises."""
    state = random_state()
    while True:
        try:
            return update()
        except (torch.OutOfMemoryError, MemoryError) as error:
            less(error)
        # Outside the handler, whose error holds on to what is to be freed.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        set_random_state(state)


def random_state() -> tuple[Tensor, Sequence[Tensor]]:
    """Where torch's generators stand."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def set_random_state(state: tuple[Tensor, Sequence[Tensor]]) -> None:
    """Put torch's generators where they stood."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(list(state[1]))


@contextmanager
def replayed(state: tuple[Tensor, Sequence[Tensor]]) -> Iterator[None]:
    """Torch's generators stand where they stood; afterwards where they were before."""
    before = random_state()
    set_random_state(state)
    try:
        yield
    finally:
        set_random_state(before)
