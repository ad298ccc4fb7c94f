"""D2LLM's losses, one pure function per equation; the plain contrast among them is the baselines' too (`contrastive_losses`).

Tensors in, a scalar out; no I/O, no randomness, no state, no weights (`weighted_total` applies those). Symbols, config
keys, the release's flags and every divergence from it are tabled in docs/method.md.

Common to all functions
- B queries, K hard negatives, E easy negatives, N = 1 + K candidates (positive first). `z` is a student logit, `p̂` a
  teacher probability of yes.
- Masks are boolean and True where an entry counts. What a mask hides contributes nothing, to the value or to a
  gradient, even if it is not finite.
- The result is the mean over *valid* queries, those for which the loss is defined (each function says when). Without
  any, it is a zero that can still be differentiated, so that an unlucky batch never breaks a training.
- float16 and bfloat16 are computed in float32; float32 and float64 stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from d2llm.contrastive_losses import (
    hide,
    in_batch_contrast,
    info_nce,
    mean_over,
    nothing,
    off_diagonal,
    softmax_loss,
)
from d2llm.models.precision import wide

__all__ = [
    "contrastive_imitation",
    "cosine_matrix",
    "feature_imitation",
    "in_batch_contrast",
    "info_nce",
    "off_diagonal",
    "rank_imitation_easy",
    "rank_imitation_hard",
    "weighted_total",
]


# ------------------------------------------------------------------------------------------------------- softmax losses


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
    negatives, mask = hide(negatives, mask)
    negative_probability, _ = hide(negative_probability, mask)
    positive_logits = wide(positive_probability) * wide(positive)
    competitors, masks = [(1.0 - negative_probability) * negatives], [mask]
    if others is not None:
        others, others_mask = hide(others, others_mask)
        competitors.append(others)
        masks.append(others_mask)
    return softmax_loss(positive_logits, competitors, masks, temperature)


# ------------------------------------------------------------------------------------------------------- rank imitation


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
    student, mask = hide(student, mask)
    probability, _ = hide(probability, mask)
    if over == "batch":
        student, probability, mask = student.reshape(1, -1), probability.reshape(1, -1), mask.reshape(1, -1)
    elif over != "query":
        raise ValueError(f'over is "query" or "batch", found {over!r}')
    if mask.shape[1] == 0:
        return nothing(student)
    # A probability's own scale is 1: differences below rounding at 1 are no ranking, even among tiny probabilities.
    correlation = (_standardise(student, mask, 0.0) * _standardise(probability, mask, 1.0)).sum(1)
    return mean_over(1.0 - correlation, mask.sum(1) >= 2)


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
    hard, hard_mask = hide(hard, hard_mask)
    easy, easy_mask = hide(easy, easy_mask)
    hard_probability, _ = hide(hard_probability, hard_mask)
    easy_probability, _ = hide(easy_probability, easy_mask)
    weight = (hard_probability[:, :, None] - easy_probability[:, None, :]).clamp_min(0.0)
    # softplus(−x) = −log σ(x), exact for every x; the release's −log(σ(x) + 1e-8) stops at 18.4, without gradient.
    loss = weight * F.softplus(easy[:, None, :] - hard[:, :, None])
    pairs = hard_mask[:, :, None] & easy_mask[:, None, :]
    count = pairs.sum((1, 2))
    return mean_over((loss * pairs).sum((1, 2)) / count.clamp_min(1), count > 0)


# ---------------------------------------------------------------------------------------------------- feature imitation


def cosine_matrix(features: Tensor) -> Tensor:
    """(B, N, h) pair features → (B, N, N) cosines between the candidates of one query (the C of FI).

    A feature that is zero up to rounding (a pair at which every unit of the IEM's branch is off) has cosine 0 with
    everything, itself included, and no gradient; the release divides by zero there.
    """
    features = wide(features)
    squares = features.square().sum(-1, keepdim=True)
    dead = squares <= torch.finfo(features.dtype).eps ** 2  # the gradient grows as 1/norm: it must have an end
    unit = features.masked_fill(dead, 0.0) * squares.masked_fill(dead, 1.0).rsqrt()
    return unit @ unit.transpose(-2, -1)


def feature_imitation(teacher: Tensor, student: Tensor, mask: Tensor | None = None) -> Tensor:
    """FI: ‖C^T − C^S‖²_F / N² over the positive and the hard negatives of each query (release: `cal_feat_loss`).

    teacher, student (B, N, N): cosine matrices; mask (B, N): which candidates count (N is then their number). A query
    is valid with at least two candidates. The mean over queries is taken; the release sums over the batch, which makes
    its weight B times as strong.
    """
    teacher, student = wide(teacher), wide(student)
    if mask is None:
        mask = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)
    mask = mask.bool()
    pairs = mask[:, :, None] & mask[:, None, :]
    difference = student.masked_fill(~pairs, 0.0) - teacher.masked_fill(~pairs, 0.0)
    count = mask.sum(1)
    return mean_over(difference.square().sum((1, 2)) / count.clamp_min(1).square(), count >= 2)


# --------------------------------------------------------------------------------------------------------- weighted sum


def weighted_total(
    terms: Mapping[str, Tensor | Callable[[], Tensor]], weights: Mapping[str, float]
) -> dict[str, Tensor]:
    """{name: weight · term} for every term whose weight is not 0; their sum is the loss.

    A term of weight 0 is left out, not multiplied: it adds nothing even when it is not finite, and a term given as a
    function is not computed. Raises ValueError for a term without weight, a weight above 0 without a term (a loss must
    never vanish silently), or a weight that is negative or not finite.
    """
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"weight of loss {name!r}: expected a finite number of at least 0, found {weight}")
        if weight > 0 and name not in terms:
            raise ValueError(f"loss {name!r} has weight {weight} but no term; terms: {', '.join(terms) or 'none'}")
    total = {}
    for name, term in terms.items():
        if name not in weights:
            raise ValueError(f"loss {name!r} has no weight; weights: {', '.join(weights) or 'none'}")
        if weights[name] > 0:
            total[name] = weights[name] * (term() if callable(term) else term)
    return total


# --------------------------------------------------------------------------------------------------------------- shared


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
