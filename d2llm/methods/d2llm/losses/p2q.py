"""In-batch contrast of each passage over the queries (a variant; not in the paper)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from d2llm.methods.contrastive import contrasted
from d2llm.methods.losses import in_batch_contrast

if TYPE_CHECKING:
    from d2llm.methods.d2llm.objective import Scores


def term(scores: Scores) -> Tensor:
    """Each positive against the batch's other queries."""
    return in_batch_contrast(scores.positives.T, scores.recipe.temperature, contrasted(scores.allowed.T, scores.batch))
