"""What a training does when memory runs out: the same update once more, in smaller parts, from the same random state.

How an update is made smaller is its owner's business: fewer texts embedded at a time (`gradient_cache`), or a batch in more parts (`optimization.fit`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

from d2llm.run.random_state import random_state, set_random_state

if TYPE_CHECKING:
    pass

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
