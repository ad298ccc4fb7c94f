"""Mean pooling."""

from __future__ import annotations

from torch import Tensor

from d2llm.models.poolings.base import Pooling, weighted_mean

TITLE = "mean"


class MeanPooling(Pooling):
    """Mean of the real tokens' states."""

    name = "mean"

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return weighted_mean(hidden, mask.bool())


POOLING = MeanPooling
