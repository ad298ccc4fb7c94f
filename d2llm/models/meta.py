"""Models without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_weights() -> Iterator[None]:
    """Make tensors that have a shape and no memory; the stream of random numbers stays where it was."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield
