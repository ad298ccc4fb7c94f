"""Where torch's random generators stand, so that the same draws can be made again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


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
