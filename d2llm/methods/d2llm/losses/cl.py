"""CL, in-batch contrast as a term of its own (release: `cal_loss_in_batch`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from d2llm.methods.contrastive import contrasted
from d2llm.methods.losses import info_nce

if TYPE_CHECKING:
    from d2llm.methods.d2llm.objective import Scores


def term(scores: Scores) -> Tensor:
    """Each query's positive against the batch's other passages."""
    others, mask = scores.in_batch
    return info_nce(
        scores.hard[:, 0], None, others, scores.recipe.temperature, in_batch_mask=contrasted(mask, scores.batch)
    )
