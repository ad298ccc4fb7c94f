"""CI, contrastive imitation: contrast whose logits the teacher weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from d2llm.methods.contrastive import contrasted
from d2llm.methods.losses import apply_mask, softmax_loss
from d2llm.models.precision import wide

if TYPE_CHECKING:
    from d2llm.methods.d2llm.objective import Scores


def contrastive_imitation(
    positive: Tensor,
    negatives: Tensor,
    positive_probability: Tensor,
    negative_probability: Tensor,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    others: Tensor | None = None,
    others_mask: Tensor | None = None,
) -> Tensor:
    """CI: −log softmax over [p̂_p·z_p, (1 − p̂_k)·z_k for k in H] / τ, at the positive (release: `cal_loss_hardneg`).

    positive (B,), negatives (B, K): student logits. positive_probability (B,), negative_probability (B, K): teacher
    probabilities of yes. mask (B, K): which negatives count. others (B, M), others_mask (B, M): logits of further
    passages, such as the batch's, that join the same softmax with weight 1, as if the teacher had said a sure no
    (`in_batch: joint`; not in the release). A query is valid with at least one competitor. The release divides by B·K,
    this by the number of valid queries.
    """
    negatives, mask = apply_mask(negatives, mask)
    negative_probability, _ = apply_mask(negative_probability, mask)
    positive_logits = wide(positive_probability) * wide(positive)
    competitors, masks = [(1.0 - negative_probability) * negatives], [mask]
    if others is not None:
        others, others_mask = apply_mask(others, others_mask)
        competitors.append(others)
        masks.append(others_mask)
    return softmax_loss(positive_logits, competitors, masks, temperature)


def term(scores: Scores) -> Tensor:
    """Over each query's positive and hard negatives; with `in_batch: joint` over the batch's passages as well."""
    if scores.recipe.ci_weighting == "none":  # as if the teacher were sure
        probability = torch.zeros_like(scores.hard, dtype=torch.float32)
        probability[:, 0] = 1.0
    else:
        probability = scores.hard_probability
    others, others_mask = scores.in_batch if scores.recipe.in_batch == "joint" else (None, None)
    return contrastive_imitation(
        scores.hard[:, 0],
        scores.hard[:, 1:],
        probability[:, 0],
        probability[:, 1:],
        scores.recipe.temperature,
        contrasted(scores.negative_mask, scores.batch),
        others,
        None if others_mask is None else contrasted(others_mask, scores.batch),
    )
