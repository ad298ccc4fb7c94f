"""Every token keeps a vector: late interaction."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from d2llm.models.poolings.base import Pooling
from d2llm.run.errors import ConfigError

TITLE = "none: a vector a token"


class TokensPooling(Pooling):
    """No pooling: a unit vector of `size` numbers for every token, W·x / ‖W·x‖, laid end to end (ColBERT, Khattab and
    Zaharia 2020, section 3.2).

    (n, t, d) → (n, t · size); where there is no token, zeros. W is made new with BERT's initial weights. The scorer
    maxsim reads them.
    """

    name = "tokens"
    sized = True

    def __init__(self, hidden_size: int, size: int = 128) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"pooling tokens: size must be at least 1, found {size}")
        self.project = nn.Linear(hidden_size, size, bias=False)
        nn.init.normal_(self.project.weight, std=0.02)

    @property
    def token_size(self) -> int:
        return self.project.out_features

    def width(self, hidden_size: int, longest: int) -> int:
        return longest * self.project.out_features

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        absent = ~mask.bool()[:, :, None]
        states = hidden.to(self.project.weight.dtype).masked_fill(absent, 0.0)
        return F.normalize(self.project(states), dim=-1).masked_fill(absent, 0.0).flatten(1)


POOLING = TokensPooling
