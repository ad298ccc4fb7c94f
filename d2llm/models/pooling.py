"""From token states to one vector a text: the poolings of D2LLM (PMA) and of the five baselines.

Every pooling is a module `forward(hidden (n, t, d), mask (n, t)) -> (n, d)`; mask is 1 or True at real tokens. Padding
may be on either side, may hold anything (NaN included) and contributes nothing. A text without tokens gives a finite
vector, in float32 at least. One pooling keeps every token apart (`TokensPooling`, late interaction); its vectors are wider.
"""

from __future__ import annotations

import difflib
import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2llm.errors import ConfigError
from d2llm.models.precision import as_given, wide

__all__ = [
    "PMA",
    "POOLINGS",
    "ClsMLPPooling",
    "ClsPooling",
    "LastTokenPooling",
    "MeanPooling",
    "Pooling",
    "TokensPooling",
    "WeightedMeanPooling",
    "build_pooling",
]


class Pooling(nn.Module):
    """Base; `name` is its name in a configuration."""

    name: ClassVar[str]

    def width(self, hidden_size: int, longest: int) -> int:
        """Numbers of a text's vector, where no input is longer than `longest` tokens; to be overridden where they are not the backbone's."""
        return hidden_size

    def read(self, mask: Tensor) -> Tensor | None:
        """(n, t) mask → (n, t) bool: the tokens whose states `forward` reads, None for all of them; to be overridden where it is few."""
        return None


class MeanPooling(Pooling):
    """Mean of the real tokens' states."""

    name = "mean"

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return _weighted_mean(hidden, mask.bool())


class WeightedMeanPooling(Pooling):
    """Mean weighted by position, 1 for the first real token to L for the last (SGPT, Muennighoff 2022, eq. 3)."""

    name = "weighted_mean"

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        mask = mask.long()
        return _weighted_mean(hidden, mask.cumsum(1) * mask)


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
        return _weighted_mean(hidden, self.read(mask))


class ClsPooling(Pooling):
    """State of the first real token, an encoder's [CLS] (BGE, RetroMAE)."""

    name = "cls"

    def read(self, mask: Tensor) -> Tensor:
        return (mask.long().cumsum(1) == 1) & mask.bool()

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return _weighted_mean(hidden, self.read(mask))


class ClsMLPPooling(ClsPooling):
    """tanh(W·[CLS] + b), made new with BERT's initial weights (supervised SimCSE, Gao et al. 2021)."""

    name = "cls_mlp"

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return torch.tanh(self.dense(super().forward(hidden, mask).to(self.dense.weight.dtype)))


class TokensPooling(Pooling):
    """No pooling: a unit vector of `size` numbers for every token, W·x / ‖W·x‖, laid end to end (ColBERT, Khattab and Zaharia 2020, section 3.2).

    (n, t, d) → (n, t · size); where there is no token, zeros. W is made new with BERT's initial weights. The scorer maxsim reads them.
    """

    name = "tokens"

    def __init__(self, hidden_size: int, size: int = 128) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"pooling tokens: size must be at least 1, found {size}")
        self.project = nn.Linear(hidden_size, size, bias=False)
        nn.init.normal_(self.project.weight, std=0.02)

    def width(self, hidden_size: int, longest: int) -> int:
        return longest * self.project.out_features

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        absent = ~mask.bool()[:, :, None]
        states = hidden.to(self.project.weight.dtype).masked_fill(absent, 0.0)
        return F.normalize(self.project(states), dim=-1).masked_fill(absent, 0.0).flatten(1)


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
                f"pooling pma: heads must divide the hidden size {hidden_size}, found {heads}; choose a divisor, e.g. {near}"
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
        """(n, t, d), (n, t) → (n, t, heads): what share of each head's pooled value a token has; over the tokens of a text it sums to 1."""
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


POOLINGS: dict[str, type[Pooling]] = {
    kind.name: kind
    for kind in (MeanPooling, WeightedMeanPooling, LastTokenPooling, ClsPooling, ClsMLPPooling, TokensPooling, PMA)
}


def build_pooling(name: str, hidden_size: int, **settings: Any) -> Pooling:
    """The pooling of that name; only those that have parameters use hidden_size. ConfigError for an unknown name or
    setting."""
    if name not in POOLINGS:
        near = difflib.get_close_matches(name, POOLINGS, 1, 0.0)[0]
        raise ConfigError(f"pooling: unknown {name!r}, expected one of {', '.join(POOLINGS)} (nearest: {near})")
    kind = POOLINGS[name]
    try:
        return kind(hidden_size, **settings) if kind in (ClsMLPPooling, TokensPooling, PMA) else kind(**settings)
    except TypeError as error:
        raise ConfigError(f"pooling {name}: {error}") from error


def divisor(width: int, near: int) -> int:
    """The divisor of a width that is nearest to a number, of two the larger."""
    return min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: (abs(n - near), -n))


def _weighted_mean(hidden: Tensor, weights: Tensor) -> Tensor:
    """(n, t, d), (n, t) → (n, d); states of weight 0 are left out whatever they hold, no weight at all gives 0.

    Half precision could not hold 1…L or their sum for long texts.
    """
    hidden = wide(hidden).masked_fill((weights == 0)[:, :, None], 0.0)
    weights = weights.to(hidden.dtype)
    total = weights.sum(1, keepdim=True)
    with as_given(hidden):
        return (weights[:, None, :] @ hidden)[:, 0] / total.masked_fill(total == 0, 1.0)
