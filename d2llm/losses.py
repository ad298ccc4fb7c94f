"""D2LLM's losses, one pure function per equation, and the InfoNCE that the baselines share.

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
    negatives, mask = _hide(negatives, mask)
    negative_probability, _ = _hide(negative_probability, mask)
    positive_logits = _wide(positive_probability) * _wide(positive)
    competitors, masks = [(1.0 - negative_probability) * negatives], [mask]
    if others is not None:
        others, others_mask = _hide(others, others_mask)
        competitors.append(others)
        masks.append(others_mask)
    return _softmax_loss(positive_logits, competitors, masks, temperature)


def in_batch_contrast(logits: Tensor, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """CL: −log softmax over each row of the batch's logits at its own passage (release: `cal_loss_in_batch`).

    logits (B, B): z of query i with the positive of query j; the diagonal holds the positives. mask (B, B): which
    passages count as negatives (hide another query's passage when it is also right for this one); the diagonal always
    counts, whatever the mask says there. A query is valid with at least one other passage. The release divides by B²,
    this by the number of valid queries.
    """
    others_mask = None if mask is None else off_diagonal(mask)
    return info_nce(logits.diagonal(), None, off_diagonal(logits), temperature=temperature, in_batch_mask=others_mask)


def info_nce(
    positive: Tensor,
    negatives: Tensor | None = None,
    in_batch: Tensor | None = None,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    in_batch_mask: Tensor | None = None,
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018), the baselines' loss: −log softmax over [z_p, negatives, in-batch]/τ at z_p.

    positive (B,); negatives (B, K) or None: each query's own; in_batch (B, M) or None: passages of other queries,
    *without* the query's own positive (`off_diagonal` cuts it from a square matrix, or hide it by the mask).
    mask (B, K), in_batch_mask (B, M). A query is valid with at least one competitor.
    """
    competitors, masks = [], []
    for logits, keep in ((negatives, mask), (in_batch, in_batch_mask)):
        if logits is not None:
            logits, keep = _hide(logits, keep)
            competitors.append(logits)
            masks.append(keep)
    return _softmax_loss(_wide(positive), competitors, masks, temperature)


def off_diagonal(matrix: Tensor) -> Tensor:
    """(B, B) → (B, B − 1): each row without its diagonal entry, order kept. Any dtype, masks included."""
    size = matrix.shape[0]
    if matrix.dim() != 2 or matrix.shape[1] != size:
        raise ValueError(f"off_diagonal needs a square matrix, found {tuple(matrix.shape)}")
    if size < 2:
        return matrix[:, :0]
    # Dropping the first entry leaves rows of "B others, then the next diagonal": the diagonal is then the last column.
    return matrix.reshape(-1)[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


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
    student, mask = _hide(student, mask)
    probability, _ = _hide(probability, mask)
    if over == "batch":
        student, probability, mask = student.reshape(1, -1), probability.reshape(1, -1), mask.reshape(1, -1)
    elif over != "query":
        raise ValueError(f'over is "query" or "batch", found {over!r}')
    if mask.shape[1] == 0:
        return _nothing(student)
    # A probability's own scale is 1: differences below rounding at 1 are no ranking, even among tiny probabilities.
    correlation = (_standardise(student, mask, 0.0) * _standardise(probability, mask, 1.0)).sum(1)
    return _mean_over(1.0 - correlation, mask.sum(1) >= 2)


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
    hard, hard_mask = _hide(hard, hard_mask)
    easy, easy_mask = _hide(easy, easy_mask)
    hard_probability, _ = _hide(hard_probability, hard_mask)
    easy_probability, _ = _hide(easy_probability, easy_mask)
    weight = (hard_probability[:, :, None] - easy_probability[:, None, :]).clamp_min(0.0)
    # softplus(−x) = −log σ(x), exact for every x; the release's −log(σ(x) + 1e-8) stops at 18.4, without gradient.
    loss = weight * F.softplus(easy[:, None, :] - hard[:, :, None])
    pairs = hard_mask[:, :, None] & easy_mask[:, None, :]
    count = pairs.sum((1, 2))
    return _mean_over((loss * pairs).sum((1, 2)) / count.clamp_min(1), count > 0)


# ---------------------------------------------------------------------------------------------------- feature imitation


def cosine_matrix(features: Tensor) -> Tensor:
    """(B, N, h) pair features → (B, N, N) cosines between the candidates of one query (the C of FI).

    A feature that is zero up to rounding (a pair at which every unit of the IEM's branch is off) has cosine 0 with
    everything, itself included, and no gradient; the release divides by zero there.
    """
    features = _wide(features)
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
    teacher, student = _wide(teacher), _wide(student)
    if mask is None:
        mask = torch.ones(student.shape[:2], dtype=torch.bool, device=student.device)
    mask = mask.bool()
    pairs = mask[:, :, None] & mask[:, None, :]
    difference = student.masked_fill(~pairs, 0.0) - teacher.masked_fill(~pairs, 0.0)
    count = mask.sum(1)
    return _mean_over(difference.square().sum((1, 2)) / count.clamp_min(1).square(), count >= 2)


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


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _hide(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tensor with 0 where the mask is False (not x·0: that keeps NaN and inf), and the mask, made if None."""
    x = _wide(x)
    if mask is None:
        return x, torch.ones_like(x, dtype=torch.bool)
    if mask.shape != x.shape:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit a tensor {tuple(x.shape)}")
    mask = mask.bool()
    return x.masked_fill(~mask, 0.0), mask


def _nothing(x: Tensor) -> Tensor:
    """Zero, attached to x's graph without touching its values (an empty sum)."""
    return _wide(x).reshape(-1)[:0].sum()


def _mean_over(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of values (B,) where valid (B,). Selecting, unlike multiplying by 0, keeps the rest out of the gradient."""
    chosen = values[valid]
    return chosen.mean() if chosen.numel() else _nothing(values)


def _softmax_loss(positive: Tensor, competitors: list[Tensor], masks: list[Tensor], temperature: float) -> Tensor:
    """Mean of −log softmax at the positive (B,) among competitors [(B, M)…], over rows with at least one competitor."""
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    if not competitors:
        return _nothing(positive)
    keep = torch.cat(masks, 1)
    rest = torch.cat(competitors, 1).masked_fill(~keep, -math.inf)
    logits = torch.cat([positive[:, None], rest], 1) / temperature
    return _mean_over(-F.log_softmax(logits, 1)[:, 0], keep.any(1))


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
