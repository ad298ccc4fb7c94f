"""Pooling of the first token."""

from __future__ import annotations

from torch import Tensor

from d2llm.models.poolings.base import Pooling, weighted_mean

TITLE = "[CLS]"


class ClsPooling(Pooling):
    """State of the first real token, an encoder's [CLS] (BGE, RetroMAE)."""

    name = "cls"

    def read(self, mask: Tensor) -> Tensor:
        return (mask.long().cumsum(1) == 1) & mask.bool()

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return weighted_mean(hidden, self.read(mask))


POOLING = ClsPooling
