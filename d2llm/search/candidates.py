"""Candidates for a search with the IEM: which passages are worth its exact score, found by inner products alone.

For one query the IEM is a smooth function z(p′) of what the index stores of a passage, p′ = Wp·p + b1
(`models.interaction`). Its exact scores of a fixed random sample of passages give, by ridge regression, the weights u
of the features ψ(p′) = [p′, p′², 1] (standardised), so that

    z(p′) ≈ u·ψ(p′),    u = Ψₛᵀ (Ψₛ Ψₛᵀ + λI)⁻¹ zₛ.

Everything but zₛ is the same for all queries. An inner product takes 2c products a passage where the IEM takes h². The
best passages by it are scored exactly, and what the fit misses among them is fitted in the same way, so that it is
right where the best ones are. Nothing is trained and no distribution of queries is assumed: the fit is made for the
query at hand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Part of the passages to be scored exactly that goes into the sample, and into the second fit, and how many are of use
# at most.
SAMPLE_SHARE, SECOND_SHARE = 0.5, 0.2
MOST_SAMPLED, MOST_SECOND = 8000, 2000
# Fewer exact scores than this are too small a sample: of 5000 to 50,000 passages (512 dimensions), 1000 find 0.7 of the
# ten best of a random module and 0.95 of a matcher's, 100 find 0.0 to 0.2.
LEAST_BUDGET = 1000
# λ, as a share of the mean of ΨΨᵀ's diagonal.
RIDGE = 1e-2

# Rows of the index by their numbers.
Rows = Callable[[Tensor], Tensor]


class Approximation:
    """The fit of one index: `sample` (s,) are the rows every query's exact scores are needed of, `second` how many the
    second fit takes.
    """

    def __init__(self, rows: Rows, count: int, budget: int, seed: int = 0) -> None:
        """`rows` reads the index of `count` passages; `budget` of them may be scored exactly for a query."""
        size = max(1, min(int(budget * SAMPLE_SHARE), MOST_SAMPLED))
        self.second = max(1, min(int(budget * SECOND_SHARE), MOST_SECOND))
        generator = torch.Generator().manual_seed(seed)
        self.sample = torch.randperm(count, generator=generator)[:size].sort().values
        drawn = rows(self.sample).float()
        self.mean, self.scale = drawn.mean(0), drawn.std(0, correction=0).clamp(min=1e-6)
        features = self.features(drawn)
        # (f, s): takes the sample's scores to weights of the features.
        self.fit = ridge(features.double(), torch.eye(size, dtype=torch.float64, device=features.device)).float()

    def features(self, x: Tensor) -> Tensor:
        """(m, c) → (m, 2c + 1)."""
        x = (x.float() - self.mean) / self.scale
        return torch.cat([x, x.square(), torch.ones_like(x[:, :1])], dim=1)

    def weights(self, scores: Tensor) -> Tensor:
        """(n, s) exact scores of the sample → u (n, 2c + 1)."""
        return scores @ self.fit.T

    def corrected(self, weights: Tensor, rows: Tensor, scores: Tensor) -> Tensor:
        """(2c + 1,) weights of one query made right for some rows (k, c) of it whose exact scores (k,) are known."""
        features = self.features(rows)
        return weights + ridge(features, (scores - features @ weights)[:, None])[:, 0]

    def scan(self, weights: Tensor) -> Callable[[Tensor], Tensor]:
        """A function of rows (m, c) that gives (n, m) approximate scores for weights (n, 2c + 1), up to a constant of
        each query.
        """
        width = len(self.mean)
        # Written for p′ itself, so that no standardised copy is made: l·(x−μ)/σ + s·(x−μ)²/σ².
        square = weights[:, width : 2 * width] / self.scale.square()
        linear = weights[:, :width] / self.scale - 2 * square * self.mean

        def scores(block: Tensor) -> Tensor:
            block = block.float()
            return linear @ block.T + square @ block.square().T

        return scores


def ridge(features: Tensor, targets: Tensor) -> Tensor:
    """(m, f), (m, t) → (f, t) weights Ψᵀ(ΨΨᵀ + λI)⁻¹T = (ΨᵀΨ + λI)⁻¹ΨᵀT, by the smaller of the two matrices."""
    strength = RIDGE * features.square().sum(1).mean()
    wide = features.shape[0] <= features.shape[1]
    gram = features @ features.T if wide else features.T @ features
    gram.diagonal().add_(strength)
    return features.T @ torch.linalg.solve(gram, targets) if wide else torch.linalg.solve(gram, features.T @ targets)
