"""The cosine."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from d2llm.models.precision import wide
from d2llm.models.scorers.base import Scorer

TITLE = "cosine"


class Cosine(Scorer):
    """q · p / (‖q‖ ‖p‖); a zero vector has cosine 0 with everything. Without temperature: that is the loss's."""

    name = "cosine"
    inner = True

    def query_cache(self, q: Tensor) -> Tensor:
        return F.normalize(wide(q), dim=-1)

    def passage_cache(self, p: Tensor) -> Tensor:
        return F.normalize(wide(p), dim=-1)


SCORER = Cosine
