"""Pooling of the first token through a layer of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2llm.models.poolings.cls import ClsPooling

TITLE = "[CLS], tanh layer"


class ClsMLPPooling(ClsPooling):
    """tanh(W·[CLS] + b), made new with BERT's initial weights (supervised SimCSE, Gao et al. 2021)."""

    name = "cls_mlp"
    sized = True

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(self.dense(super().forward(hidden, mask).to(self.dense.weight.dtype)))


POOLING = ClsMLPPooling
