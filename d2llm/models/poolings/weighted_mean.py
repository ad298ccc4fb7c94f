"""Mean pooling weighted by position."""

from __future__ import annotations

from torch import Tensor

from d2llm.models.poolings.base import Pooling, weighted_mean

TITLE = "position-weighted mean"


class WeightedMeanPooling(Pooling):
    """Mean weighted by position, 1 for the first real token to L for the last (SGPT, Muennighoff 2022, eq. 3)."""

    name = "weighted_mean"

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        mask = mask.long()
        return weighted_mean(hidden, mask.cumsum(1) * mask)


POOLING = WeightedMeanPooling
