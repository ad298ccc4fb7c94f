"""What a pooling is.

Every pooling is a module `forward(hidden (n, t, d), mask (n, t)) -> (n, d)`; mask is 1 or True at real tokens. Padding
may be on either side, may hold anything (NaN included) and contributes nothing. A text without tokens gives a finite
vector, in float32 at least. One pooling keeps every token apart (`tokens`, late interaction); its vectors are wider.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from d2llm.models.precision import as_given, wide
from d2llm.run.errors import ConfigError


class Pooling(nn.Module):
    """Base. `name` is its name in a configuration, and its file's; `sized`: whether its first argument is the width of
    the states.
    """

    name: ClassVar[str]
    sized: ClassVar[bool] = False

    @property
    def token_size(self) -> int | None:
        """Numbers of a token's vector, where every token keeps one of its own; None: one vector a text."""
        return None

    def width(self, hidden_size: int, longest: int) -> int:
        """Numbers of a text's vector, where no input is longer than `longest` tokens; to be overridden where they are
        not the backbone's.
        """
        return hidden_size

    def read(self, mask: Tensor) -> Tensor | None:
        """(n, t) mask → (n, t) bool: the tokens whose states `forward` reads, None for all of them; to be overridden
        where it is few.
        """
        return None

    def attention(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(n, t, d), (n, t) → (n, t, heads) shares of each token. Raises ConfigError where the pooling has none to
        show.
        """
        raise ConfigError(f"pooling {self.name} has no attention to show; only pma has")


def weighted_mean(hidden: Tensor, weights: Tensor) -> Tensor:
    """(n, t, d), (n, t) → (n, d); states of weight 0 are left out whatever they hold, no weight at all gives 0.

    Half precision could not hold 1…L or their sum for long texts.
    """
    hidden = wide(hidden).masked_fill((weights == 0)[:, :, None], 0.0)
    weights = weights.to(hidden.dtype)
    total = weights.sum(1, keepdim=True)
    with as_given(hidden):
        return (weights[:, None, :] @ hidden)[:, 0] / total.masked_fill(total == 0, 1.0)
