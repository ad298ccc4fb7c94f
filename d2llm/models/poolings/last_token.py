"""Pooling of the last tokens."""

from __future__ import annotations

from torch import Tensor

from d2llm.models.poolings.base import Pooling, weighted_mean
from d2llm.run.errors import ConfigError

TITLE = "last tokens"


class LastTokenPooling(Pooling):
    """Mean of the last k real tokens' states, of all in shorter texts (Udever: k = 1; LLaRA's special tokens: 8)."""

    name = "last_token"

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        if k < 1:
            raise ConfigError(f"pooling last_token: k must be at least 1, found {k}")
        self.k = k

    def read(self, mask: Tensor) -> Tensor:
        mask = mask.long()
        from_end = mask.flip(1).cumsum(1).flip(1)  # 1 at the last real token, 2 at the one before, …
        return mask.bool() & (from_end <= self.k)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return weighted_mean(hidden, self.read(mask))


POOLING = LastTokenPooling
