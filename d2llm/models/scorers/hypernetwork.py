"""The query as a network: a hypernetwork makes its weights of the query's token states."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2llm.config.recipes import Mode
from d2llm.models.device import block_bytes as block_of
from d2llm.models.precision import as_given, wide
from d2llm.models.scorers.base import Scorer, check_mode
from d2llm.run.errors import ConfigError

TITLE = "hypernetwork"
# Bytes of a block on a CPU.
IN_CACHE = 16 << 20
# Spread of the learned queries, whatever the width (the released code).
QUERY_STD = 10.0

# Of some queries, the network's weights (n, out, in) and biases (n, out), None for the last layer.
Network = list[tuple[Tensor, Tensor | None]]


class Rows(nn.Module):
    """`count` rows of `size` numbers for every query, by attention over its token states x.

        R = W_o·LN(ReLU(softmax(Q·(W_k x)ᵀ / √d)·W_v x)) + B;   Q, B (count, size): learned

    First weights are those of the released code: Q of deviation 10, W_o of a weight matrix near zero, so that a
    network starts as B for every query.
    """

    def __init__(self, size: int, count: int, matrix: bool) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(count, size) * QUERY_STD)
        self.base = nn.Parameter(torch.randn(count, size) * math.sqrt(2 / size) if matrix else torch.zeros(count, size))
        self.key, self.value, self.output = (nn.Linear(size, size) for _ in range(3))
        if matrix:
            nn.init.normal_(self.output.weight, std=1 / size**2)
            for layer in (self.key, self.value, self.output):
                nn.init.zeros_(layer.bias)

    def forward(self, states: Tensor, present: Tensor) -> Tensor:
        """(n, t, d) states, (n, t) which there are → (n, count, d)."""
        absent = ~present[:, None]
        keys, values = (_linear(layer, states) for layer in (self.key, self.value))
        scores = wide(self.query) @ keys.transpose(1, 2) / math.sqrt(states.shape[-1])
        shares = scores.masked_fill(absent, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(absent, 0.0)
        context = F.relu(shares @ values)
        return _linear(self.output, F.layer_norm(context, context.shape[-1:])) + wide(self.base)


class Hypernetwork(Scorer):
    """f_q(p): the query q becomes a network of `layers` hidden layers that scores one vector p of a passage
    (Hypencoder, Killingback et al. 2025, sections 3 and 4; the released code where they are silent).

        x₀ = p;   xᵢ = LN(ReLU(Wᵢ xᵢ₋₁ + bᵢ)) + xᵢ₋₁   (the last hidden layer without the sum);   f = w·x

    q (n, t · size) and p (m, t · size) hold a state of `size` numbers a token (`StatesPooling`), zeros where there is
    none; of a passage the first alone counts, and is all that an index stores. Wᵢ, bᵢ and w are `Rows`, made anew for
    every block, as a query's take layers · size² numbers. Blocks stay within `block_bytes` (None: as much as is
    quickest on the device; under autograd, the graph keeps all of them).
    """

    name = "hypernetwork"
    sized = True

    def __init__(self, size: int, layers: int = 6, block_bytes: int | None = None) -> None:
        super().__init__()
        if layers < 1:
            raise ConfigError(f"scorer hypernetwork: layers must be at least 1, found {layers}")
        self.size, self.block_bytes = size, block_bytes
        self.weights = nn.ModuleList(Rows(size, size, True) for _ in range(layers))
        self.biases = nn.ModuleList(Rows(size, 1, False) for _ in range(layers))
        self.last = Rows(size, 1, True)

    @property
    def token_size(self) -> int:
        return self.size

    def passage_cache(self, p: Tensor) -> Tensor:
        """(m, t · size) → (m, size): the first state."""
        return p[:, : self.size]

    def network(self, query: Tensor) -> Network:
        """(n, t · size) → the networks of n queries."""
        states = wide(query).view(len(query), query.shape[1] // self.size, self.size)
        present = states.detach().any(-1)
        longest = int(present.sum(1).max()) if present.any() else 1  # real tokens are the first
        states, present = states[:, :longest], present[:, :longest]
        hidden = [
            (weight(states, present), bias(states, present)[:, 0])
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        return [*hidden, (self.last(states, present), None)]

    def pairs_cached(self, query: Tensor, passage: Tensor, mode: Mode, features: Tensor | None = None) -> Tensor:
        check_mode(mode)
        step = self._queries(query, 1)
        with as_given(query):
            parts = [
                _apply(self.network(q), wide(p)[:, None])[:, 0]
                for q, p in zip(query.split(step), passage.split(step), strict=True)
            ]
        return torch.cat(parts)

    def matrix_cached(self, query: Tensor, passage: Tensor, mode: Mode) -> Tensor:
        check_mode(mode)
        with as_given(query):
            passages = wide(passage)[None]
            parts = [_apply(self.network(q), passages) for q in query.split(self._queries(query, len(passage)))]
        return torch.cat(parts)

    def _queries(self, query: Tensor, passages: int) -> int:
        """How many queries fit into a block: their networks, and two values of every passage."""
        size = block_of(query.device, IN_CACHE) if self.block_bytes is None else self.block_bytes
        return max(1, size // (4 * self.size * (len(self.weights) * self.size + 2 * passages)))


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer in float32 at least."""
    return F.linear(x, *(wide(parameter) for parameter in layer.parameters()))


def _apply(network: Network, x: Tensor) -> Tensor:
    """Networks of n queries, (n or 1, m, d) passages → (n, m)."""
    *hidden, (last, _) = network
    for number, (weight, bias) in enumerate(hidden, 1):
        assert bias is not None
        y = F.relu(x @ weight.transpose(1, 2) + bias[:, None])
        y = F.layer_norm(y, y.shape[-1:])
        x = y + x if number < len(hidden) else y
    return (x @ last.transpose(1, 2))[..., 0]


SCORER = Hypernetwork
