"""Candidates for a search with the IEM: which passages are worth its exact score, found by inner products alone.

For one query the IEM is a smooth function z(p′) of what the index stores of a passage, p′ = Wp·p + b1 (`models.interaction`). Its exact scores of a
fixed random sample of passages give, by ridge regression, the weights u of the features ψ(p′) = [p′, p′², 1] (standardised), so that

    z(p′) ≈ u·ψ(p′),    u = Ψₛᵀ (Ψₛ Ψₛᵀ + λI)⁻¹ zₛ.

Everything but zₛ is the same for all queries. An inner product takes 2c products a passage where the IEM takes h²; the best by it are scored exactly.
Nothing is trained and no distribution of queries is assumed: the fit is made for the query at hand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Part of the passages to be scored exactly that goes into the sample; the rest are candidates.
SAMPLE_SHARE = 0.25
# More than this many add nothing the features could express.
MOST_SAMPLED = 4000
# λ, as a share of the mean of ΨₛΨₛᵀ's diagonal.
RIDGE = 1e-3

# Rows of the index as float32 by their numbers.
Rows = Callable[[Tensor], Tensor]


class Approximation:
    """The fit of one index: `sample` (s,) are the rows every query's exact scores are needed of."""

    def __init__(self, rows: Rows, count: int, budget: int, seed: int = 0) -> None:
        """`rows` reads the index of `count` passages; `budget` of them may be scored exactly for a query."""
        size = max(1, min(int(budget * SAMPLE_SHARE), MOST_SAMPLED))
        generator = torch.Generator().manual_seed(seed)
        self.sample = torch.randperm(count, generator=generator)[:size].sort().values
        drawn = rows(self.sample).float()
        self.mean, self.scale = drawn.mean(0), drawn.std(0, correction=0).clamp(min=1e-6)
        features = self._features(drawn).double()
        gram = features @ features.T
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        # (f, s): takes the sample's scores to weights of the features.
        self.fit = torch.linalg.solve(gram, features).T.float()

    def _features(self, x: Tensor) -> Tensor:
        """(m, c) → (m, 2c + 1)."""
        x = (x - self.mean) / self.scale
        return torch.cat([x, x.square(), torch.ones_like(x[:, :1])], dim=1)

    def weights(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """(n, s) exact scores of the sample → (n, c) weights of p′ and of p′²; constants of a query are left out."""
        found = scores @ self.fit.T
        width = len(self.mean)
        linear, square = found[:, :width], found[:, width : 2 * width]
        square = square / self.scale.square()
        # Written for p′ itself, so that a scan needs no standardised copy: l·(x−μ)/σ + s·(x−μ)²/σ².
        return linear / self.scale - 2 * square * self.mean, square


def score(linear: Tensor, square: Tensor, block: Tensor) -> Tensor:
    """(n, c), (n, c), (m, c) → (n, m) approximate scores, up to a constant for each query."""
    block = block.float()
    return linear @ block.T + square @ block.square().T
