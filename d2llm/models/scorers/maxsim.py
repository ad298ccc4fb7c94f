"""MaxSim: late interaction of token vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from d2llm.config.recipes import Mode
from d2llm.models.device import block_bytes as block_of
from d2llm.models.precision import as_given, wide
from d2llm.models.scorers.base import Scorer, check_mode
from d2llm.run.errors import ConfigError

TITLE = "MaxSim"
# Bytes of a block on a CPU.
IN_CACHE = 16 << 20


class MaxSim(Scorer):
    """Σ_i max_j q_i · p_j: every token of the query with the token of the passage that fits it best (ColBERT, Khattab
    and Zaharia 2020, eq. 3).

    q (n, s · size) and p (m, t · size) hold a vector of `size` numbers for every token (`TokensPooling`); zeros where
    there is none, which are no match and ask for none. `matrix` and `pairs` work in blocks whose token products stay
    within `block_bytes` (None: as much as is quickest on the device; under autograd, the graph keeps all of them).
    """

    name = "maxsim"

    def __init__(self, size: int = 128, block_bytes: int | None = None) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"scorer maxsim: size must be at least 1, found {size}")
        self.size, self.block_bytes = size, block_bytes

    @property
    def token_size(self) -> int:
        return self.size

    def cache_parts(self, width: int) -> tuple[int, ...]:
        return (self.size,) * (width // self.size)

    def pairs_cached(self, query: Tensor, passage: Tensor, mode: Mode, features: Tensor | None = None) -> Tensor:
        check_mode(mode)
        parts = []
        for left, right in zip(*(side.split(self._pairs(query, passage)) for side in (query, passage)), strict=True):
            q, p = self._tokens(left), self._tokens(right)
            with as_given(q):
                parts.append(_best_fits(q @ p.transpose(1, 2), p.any(-1)[:, None]).sum(-1))
        return torch.cat(parts)

    def matrix_cached(self, query: Tensor, passage: Tensor, mode: Mode) -> Tensor:
        check_mode(mode)
        pairs = self._pairs(query, passage)
        width = min(max(len(passage), 1), pairs)
        strips = []
        for left in query.split(max(1, pairs // width)):
            q = self._tokens(left)
            blocks = []
            for right in passage.split(width):
                p = self._tokens(right)
                with as_given(q):
                    products = (q.flatten(0, 1) @ p.flatten(0, 1).T).view(*q.shape[:2], *p.shape[:2])
                blocks.append(_best_fits(products, p.any(-1)).sum(1))
            strips.append(torch.cat(blocks, 1))
        return torch.cat(strips)

    def _pairs(self, query: Tensor, passage: Tensor) -> int:
        """How many pairs' products fit into a block."""
        products = (query.shape[1] // self.size) * (passage.shape[1] // self.size)
        size = block_of(query.device, IN_CACHE) if self.block_bytes is None else self.block_bytes
        return max(1, size // max(1, products * query.element_size()))

    def _tokens(self, side: Tensor) -> Tensor:
        """(n, t · size) → (n, at most t, size), without the places that no row uses."""
        tokens = wide(side).view(len(side), side.shape[1] // self.size, self.size)
        used = tokens.detach().any(-1).any(0)
        return tokens[:, : int(used.nonzero().max()) + 1] if used.any() else tokens[:, :1]


def _best_fits(products: Tensor, present: Tensor) -> Tensor:
    """(…, t) → (…): the largest product with a token that is there; 0 where none is."""
    best = products.masked_fill(~present, -math.inf).max(-1).values
    return best.masked_fill(best == -math.inf, 0.0)


SCORER = MaxSim
