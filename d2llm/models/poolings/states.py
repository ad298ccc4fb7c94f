"""The first token states, each kept as it is."""

from __future__ import annotations

from torch import Tensor

from d2llm.models.poolings.base import Pooling
from d2llm.run.errors import ConfigError

TITLE = "none: the first states"


class StatesPooling(Pooling):
    """No pooling: the states of the first `count` real tokens, laid end to end (Hypencoder, Killingback et al. 2025).

    (n, t, d) → (n, count · d); where there is no token, zeros. The scorer hypernetwork reads them: of a passage the
    first alone, an encoder's [CLS].
    """

    name = "states"
    sized = True

    def __init__(self, hidden_size: int, count: int = 64) -> None:
        super().__init__()
        if count < 1:
            raise ConfigError(f"pooling states: count must be at least 1, found {count}")
        self.size, self.count = hidden_size, count

    @property
    def token_size(self) -> int:
        return self.size

    def width(self, hidden_size: int, longest: int) -> int:
        return min(longest, self.count) * hidden_size

    def read(self, mask: Tensor) -> Tensor:
        return mask.bool() & (mask.long().cumsum(1) <= self.count)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        mask = mask.bool()
        count = min(self.count, mask.shape[1])
        # Real tokens first, in their order, whatever side the padding is on.
        order = (~mask).long().argsort(dim=1, stable=True)[:, :count]
        states = hidden.masked_fill(~mask[:, :, None], 0.0)
        return states.gather(1, order[:, :, None].expand(-1, -1, self.size)).flatten(1)


POOLING = StatesPooling
