"""A bilinear form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2llm.models.scorers.base import Scorer

TITLE = "bilinear"


class Bilinear(Scorer):
    """qᵀ W p with a learned W: the simplest scorer that can tell (a, b) from (b, a).

    Starts as scale · q·p/d, which is scale · cosine for layer-normed vectors.
    """

    name = "bilinear"
    inner = True
    sized = True

    def __init__(self, size: int, scale: float = 10.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(size) * (scale / size))

    def query_cache(self, q: Tensor) -> Tensor:
        return q.to(self.weight.dtype) @ self.weight

    def passage_cache(self, p: Tensor) -> Tensor:
        return p.to(self.weight.dtype)


SCORER = Bilinear
