"""PMA: pooling by multi-head attention with one learned seed."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from d2llm.models.poolings.base import Pooling
from d2llm.run.errors import ConfigError

TITLE = "PMA"


class PMA(Pooling):
    """Pooling by multi-head attention with one learned seed (Lee et al. 2019, as in D2LLM's release, `PMA` and `MAB`).

        A = softmax(q_h · k_h / √s),  q = W_q·seed + b_q,  k = W_k·x + b_k,  v = W_v·x + b_v   (h: head)
        O = LN0(seed + [A_h v_h]_h),  out = LN1(O + ReLU(W_o·O + b_o))

    No L2 normalisation. The residual is the seed itself, not its projection.

    scale: √s is the root of the whole width d ("model", the release) or of a head's width ("head", the usual one).
    init: "random" is the release's (Xavier weights and seed). "mean" starts as the layer-normed mean of the states:
        zero seed and query projection (uniform attention), identity value projection, output projection of a
        twentieth of Xavier's size (not 0: ReLU would then never pass it a gradient).

    Equal to projecting keys and values of every token, but with the seed's query folded into W_k and W_v applied after
    the weighted sums: 2·n·t·d·heads + n·d² multiplications instead of 2·n·t·d².
    """

    name = "pma"
    sized = True

    def __init__(
        self,
        hidden_size: int,
        heads: int = 32,
        scale: Literal["model", "head"] = "model",
        init: Literal["random", "mean"] = "random",
    ) -> None:
        super().__init__()
        if heads < 1 or hidden_size % heads:
            near = divisor(hidden_size, heads)
            raise ConfigError(
                f"pooling pma: heads must divide the hidden size {hidden_size}, found {heads}; choose a divisor, e.g. "
                f"{near}"
            )
        if scale not in ("model", "head"):
            raise ConfigError(f'pooling pma: scale is "model" or "head", found {scale!r}')
        if init not in ("random", "mean"):
            raise ConfigError(f'pooling pma: init is "random" or "mean", found {init!r}')
        self.heads = heads
        self.divisor = math.sqrt(hidden_size if scale == "model" else hidden_size // heads)
        self.seed = nn.Parameter(torch.empty(hidden_size))
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.norm0 = nn.LayerNorm(hidden_size)
        self.norm1 = nn.LayerNorm(hidden_size)
        self._initialise(init)

    @torch.no_grad()
    def _initialise(self, init: str) -> None:
        bound = math.sqrt(3.0 / self.seed.numel())  # what Xavier gives the release's seed of shape (1, 1, d)
        self.seed.uniform_(-bound, bound)
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
        if init == "mean":
            self.seed.zero_()
            self.query.weight.zero_()
            self.query.bias.zero_()
            nn.init.eye_(self.value.weight)
            self.value.bias.zero_()
            self.output.weight.mul_(0.05)
            self.output.bias.zero_()

    def attention(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(n, t, d), (n, t) → (n, t, heads): what share of each head's pooled value a token has; over the tokens of a
        text it sums to 1.
        """
        mask = mask.bool()
        return self._attention(hidden.to(self.seed.dtype).masked_fill(~mask[:, :, None], 0.0), mask)

    def _attention(self, hidden: Tensor, mask: Tensor) -> Tensor:
        size, heads = self.seed.numel(), self.heads
        query = self.query(self.seed).view(heads, -1)  # (heads, d/heads)
        key_weight = self.key.weight.view(heads, -1, size)
        folded = torch.einsum("hk,hkd->hd", query, key_weight) / self.divisor  # q_h·W_k,h
        offset = (query * self.key.bias.view(heads, -1)).sum(1) / self.divisor  # q_h·b_k,h: cancels in the softmax
        scores = hidden @ folded.T + offset  # (n, t, heads)
        hide = ~mask[:, :, None]
        return scores.masked_fill(hide, torch.finfo(scores.dtype).min).softmax(1).masked_fill(hide, 0.0)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        size, heads = self.seed.numel(), self.heads
        mask = mask.bool()
        hidden = hidden.to(self.seed.dtype).masked_fill(~mask[:, :, None], 0.0)
        attention = self._attention(hidden, mask)
        states = attention.transpose(1, 2) @ hidden  # (n, heads, d): per head the weighted mean of the states
        value_weight = self.value.weight.view(heads, -1, size)
        value = torch.einsum("nhd,hkd->nhk", states, value_weight)
        # The attention sums to 1, or to 0 for a text without tokens, which then gets no value bias either.
        value = value + attention.sum(1)[:, :, None] * self.value.bias.view(heads, -1)
        out = self.norm0(self.seed + value.flatten(1))
        return self.norm1(out + torch.relu(self.output(out)))


def divisor(width: int, near: int) -> int:
    """The divisor of a width that is nearest to a number, of two the larger."""
    return min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: (abs(n - near), -n))


POOLING = PMA
