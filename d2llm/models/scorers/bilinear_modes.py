"""A bilinear form for each mode, as the IEM has a branch for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2llm.config.recipes import Mode
from d2llm.models.precision import as_given
from d2llm.models.scorers.base import MODES, Scorer, check_mode

TITLE = "bilinear, one a mode"


class BilinearModes(Scorer):
    """qᵀ W_mode p with two learned W; both start as scale · q·p/d, as `bilinear` does.

    The form is applied when a pair is scored, as a cache does not know the mode.
    """

    name = "bilinear_modes"
    sized = True

    def __init__(self, size: int, scale: float = 10.0) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({mode: nn.Parameter(torch.eye(size) * (scale / size)) for mode in MODES})

    def pairs_cached(self, query: Tensor, passage: Tensor, mode: Mode, features: Tensor | None = None) -> Tensor:
        return super().pairs_cached(self._formed(query, mode), passage, mode)

    def matrix_cached(self, query: Tensor, passage: Tensor, mode: Mode) -> Tensor:
        return super().matrix_cached(self._formed(query, mode), passage, mode)

    def _formed(self, query: Tensor, mode: Mode) -> Tensor:
        """(n, d) → (n, d): Wᵀq of the mode, in float32 at least."""
        check_mode(mode)
        weight = self.weights[mode]
        with as_given(query):
            return query.to(weight.dtype) @ weight


SCORER = BilinearModes
