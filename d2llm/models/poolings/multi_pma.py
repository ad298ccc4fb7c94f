"""PMA with several learned seeds: several vectors a text."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2llm.models.poolings.base import Pooling
from d2llm.models.poolings.pma import divisor
from d2llm.run.errors import ConfigError

TITLE = "PMA, several vectors"


class MultiPMA(Pooling):
    """PMA_k of Lee et al. 2019 (eq. 12): `vectors` learned seeds over one attention, each pooled value then projected
    to `size` numbers of unit length, laid end to end.

    (n, t, d) → (n, vectors · size). Residual, norms and first weights are those of `pma`, by a head's scale.
    """

    name = "multi_pma"
    sized = True

    def __init__(self, hidden_size: int, vectors: int = 8, size: int = 128, heads: int = 32) -> None:
        super().__init__()
        if heads < 1 or hidden_size % heads:
            near = divisor(hidden_size, heads)
            raise ConfigError(
                f"pooling multi_pma: heads must divide the hidden size {hidden_size}, found {heads}; choose a divisor, "
                f"e.g. {near}"
            )
        if min(vectors, size) < 1:
            raise ConfigError(f"pooling multi_pma: vectors and size must be at least 1, found {vectors} and {size}")
        self.heads = heads
        self.seeds = nn.Parameter(torch.empty(vectors, hidden_size))
        self.query, self.key, self.value, self.output = (nn.Linear(hidden_size, hidden_size) for _ in range(4))
        self.norm0, self.norm1 = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.project = nn.Linear(hidden_size, size, bias=False)
        for weight in (self.seeds, *(layer.weight for layer in (self.query, self.key, self.value, self.output))):
            nn.init.xavier_uniform_(weight)

    @property
    def token_size(self) -> int:
        return self.project.out_features

    def width(self, hidden_size: int, longest: int) -> int:
        return len(self.seeds) * self.project.out_features

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        absent = ~mask.bool()[:, :, None]
        hidden = hidden.to(self.seeds.dtype).masked_fill(absent, 0.0)
        query, key, value = (
            x.unflatten(-1, (self.heads, -1)) for x in (self.query(self.seeds), self.key(hidden), self.value(hidden))
        )
        scores = torch.einsum("khc,nthc->nkht", query, key) / math.sqrt(query.shape[-1])
        hide = absent[:, None, None, :, 0]
        shares = scores.masked_fill(hide, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(hide, 0.0)
        pooled = torch.einsum("nkht,nthc->nkhc", shares, value).flatten(2)
        out = self.norm0(self.seeds + pooled)
        out = self.norm1(out + torch.relu(self.output(out)))
        return F.normalize(self.project(out), dim=-1).flatten(1)


POOLING = MultiPMA
