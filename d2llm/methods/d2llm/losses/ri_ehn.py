"""RI-EHN, rank imitation between hard and easy negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from d2llm.methods.losses import apply_mask, mean_over

if TYPE_CHECKING:
    from d2llm.methods.d2llm.objective import Scores


def rank_imitation_easy(
    hard: Tensor,
    easy: Tensor,
    hard_probability: Tensor,
    easy_probability: Tensor,
    hard_mask: Tensor | None = None,
    easy_mask: Tensor | None = None,
) -> Tensor:
    """RI-EHN: mean over h in H, e in E of max(0, p̂_h − p̂_e) · (−log σ(z_h − z_e)) (release: `cal_loss_rd2`).

    hard (B, K), easy (B, E): student logits; hard_probability, easy_probability: the teacher's of the same shapes;
    masks likewise. A query's value is averaged over its pairs (h, e) that count, those of weight 0 included; a query is
    valid with at least one pair.
    """
    hard, hard_mask = apply_mask(hard, hard_mask)
    easy, easy_mask = apply_mask(easy, easy_mask)
    hard_probability, _ = apply_mask(hard_probability, hard_mask)
    easy_probability, _ = apply_mask(easy_probability, easy_mask)
    weight = (hard_probability[:, :, None] - easy_probability[:, None, :]).clamp_min(0.0)
    # softplus(−x) = −log σ(x), exact for every x; the release's −log(σ(x) + 1e-8) stops at 18.4, without gradient.
    loss = weight * F.softplus(easy[:, None, :] - hard[:, :, None])
    pairs = hard_mask[:, :, None] & easy_mask[:, None, :]
    count = pairs.sum((1, 2))
    return mean_over((loss * pairs).sum((1, 2)) / count.clamp_min(1), count > 0)


def term(scores: Scores) -> Tensor:
    """β's term."""
    return rank_imitation_easy(
        scores.hard[:, 1:],
        scores.easy,
        scores.hard_probability[:, 1:],
        scores.easy_probability,
        scores.negative_mask,
        scores.easy_mask,
    )
