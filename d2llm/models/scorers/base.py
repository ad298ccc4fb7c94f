"""What a scorer is.

All share one interface: `pairs` scores aligned rows, `matrix` all combinations; both go through `query_cache` and
`passage_cache`, the parts that depend on one side only, which a search index can store. The last product, of which the
logit comes, is formed in float32 at least. Nothing here knows texts or losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, get_args

from torch import Tensor, nn

from d2llm.config.recipes import Mode
from d2llm.models.precision import as_given, wide
from d2llm.run.errors import ConfigError

MODES: tuple[Mode, ...] = get_args(Mode)


class Scorer(nn.Module):
    """Base. q (n, d) are queries, p (n, d) or (m, d) passages; `mode` picks the IEM's branch, others ignore it.

    `name` is its name in a configuration, and its file's; `sized`: whether its first argument is the width of the
    vectors.
    """

    name: ClassVar[str]
    sized: ClassVar[bool] = False
    # Whether it has `slopes`, by which candidates can be found (`search.candidates`).
    smooth: bool = False
    # Whether its logit is the inner product of both caches.
    inner: ClassVar[bool] = False

    @property
    def token_size(self) -> int | None:
        """Numbers of a token's vector, where it takes one for every token; None: one vector a text."""
        return None

    def pairs(self, q: Tensor, p: Tensor, mode: Mode) -> Tensor:
        """(n, d), (n, d) → (n,) logits of row i with row i."""
        return self.pairs_cached(self.query_cache(q), self.passage_cache(p), mode)

    def matrix(self, q: Tensor, p: Tensor, mode: Mode) -> Tensor:
        """(n, d), (m, d) → (n, m) logits of all combinations."""
        return self.matrix_cached(self.query_cache(q), self.passage_cache(p), mode)

    def features(self, q: Tensor, p: Tensor, mode: Mode) -> Tensor:
        """(n, d), (n, d) → (n, h) pair features y^S for feature imitation; only the IEM has any."""
        return self.features_cached(self.query_cache(q), self.passage_cache(p), mode)

    def features_cached(self, query: Tensor, passage: Tensor, mode: Mode) -> Tensor:
        """(n, c), (n, c) → (n, h), from the caches."""
        raise ConfigError(
            f"scorer {self.name} has no pair features: set gamma (feature imitation) to 0 or use the scorer iem"
        )

    def query_cache(self, q: Tensor) -> Tensor:
        """(n, d) → (n, c): what a query needs once."""
        return q

    def passage_cache(self, p: Tensor) -> Tensor:
        """(m, d) → (m, c): what an index stores."""
        return p

    def slopes(self, mean: Tensor, deviation: Tensor, mode: Mode) -> Callable[[Tensor], Tensor]:
        """mean, deviation (c,) of passage caches p′ → a function from query caches (n, c) to weights (n, 2c) of [e, e²
        − 1], e = (p′ − mean) / deviation, that fit the logit best, up to a constant, where the e are independent and
        normal.
        """
        raise NotImplementedError(f"scorer {self.name} has no slopes")

    def cache_parts(self, width: int) -> tuple[int, ...]:
        """How many of the `width` numbers of a cached row belong together: parts differ in their range."""
        return (width,)

    def pairs_cached(self, query: Tensor, passage: Tensor, mode: Mode, features: Tensor | None = None) -> Tensor:
        """(n, c), (n, c) → (n,), from the caches; `features` are the pairs' own where they are known already."""
        check_mode(mode)
        return (wide(query) * wide(passage)).sum(-1)

    def matrix_cached(self, query: Tensor, passage: Tensor, mode: Mode) -> Tensor:
        """(n, c), (m, c) → (n, m), from the caches."""
        check_mode(mode)
        with as_given(query):
            return wide(query) @ wide(passage).T


def check_mode(mode: str) -> None:
    """Raise ValueError for a mode there is not."""
    if mode not in MODES:
        raise ValueError(f"mode is one of {', '.join(MODES)}, found {mode!r}")
