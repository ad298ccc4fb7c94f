"""RI-PHN, rank imitation over the positive and the hard negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from d2llm.methods.losses import apply_mask, mean_over, zero_loss

if TYPE_CHECKING:
    from d2llm.methods.d2llm.objective import Scores


def rank_imitation_hard(
    student: Tensor, probability: Tensor, mask: Tensor | None = None, over: Literal["query", "batch"] = "query"
) -> Tensor:
    """RI-PHN: 1 − Pearson(z, p̂) over the positive and the hard negatives of each query (release: `cal_loss_rd`).

    student (B, N) logits; probability (B, N) teacher probabilities of yes (not logits); mask (B, N). Invariant to a
    shift or a positive scale of a query's logits. A query is valid with at least two entries. If its logits or its
    probabilities do not vary (up to rounding), the correlation is defined as 0: the query adds a loss of 1 and no
    gradient. (The release adds 1e-8 to the product of the deviations: the same value, but the gradient of a zero
    deviation is NaN.)

    over: "query" is the release's. "batch" takes one correlation over all entries of all queries: it fixes the one
    offset and scale per query that "query" leaves free. It departs from the paper and is a variant.
    """
    student, mask = apply_mask(student, mask)
    probability, _ = apply_mask(probability, mask)
    if over == "batch":
        student, probability, mask = student.reshape(1, -1), probability.reshape(1, -1), mask.reshape(1, -1)
    elif over != "query":
        raise ValueError(f'over is "query" or "batch", found {over!r}')
    if mask.shape[1] == 0:
        return zero_loss(student)
    # A probability's own scale is 1: differences below rounding at 1 are no ranking, even among tiny probabilities.
    correlation = (_standardise(student, mask, 0.0) * _standardise(probability, mask, 1.0)).sum(1)
    return mean_over(1.0 - correlation, mask.sum(1) >= 2)


def _standardise(x: Tensor, mask: Tensor, floor: float) -> Tensor:
    """Rows (B, N) centred and scaled to unit norm over what the mask keeps; a row that does not vary becomes 0.

    "Does not vary": no entry is further from the mean than rounding at the row's largest size (or at `floor`, if that
    is larger). Such a row gets no gradient.
    """
    count = mask.sum(1, keepdim=True).clamp_min(1)
    centred = (x - x.sum(1, keepdim=True) / count).masked_fill(~mask, 0.0)
    # Scaled by its largest entry first, so that squares neither overflow nor vanish; the scale is a constant of the
    # gradient as the result does not depend on it.
    largest = centred.detach().abs().amax(1, keepdim=True)
    rounding = 8 * torch.finfo(x.dtype).eps * x.detach().abs().amax(1, keepdim=True).clamp_min(floor)
    flat = largest <= rounding
    centred = (centred / largest.masked_fill(flat, 1.0)).masked_fill(flat, 0.0)
    norm = centred.square().sum(1, keepdim=True).masked_fill(flat, 1.0).sqrt()
    return centred / norm


def term(scores: Scores) -> Tensor:
    """α's term."""
    return rank_imitation_hard(scores.hard, scores.hard_probability, scores.candidate_mask, scores.recipe.rank_over)
