"""InfoNCE and its in-batch form, which every method shares, and what all losses are made with: masks, means over valid
queries, weighted sums.

D2LLM's own losses are in `d2llm.methods.d2llm.losses`, where symbols, masks, validity and precision are told once for
all functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from d2llm.models.precision import wide

__all__ = [
    "apply_mask",
    "in_batch_contrast",
    "info_nce",
    "mean_over",
    "zero_loss",
    "off_diagonal",
    "softmax_loss",
    "weighted_total",
]


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
            logits, keep = apply_mask(logits, keep)
            competitors.append(logits)
            masks.append(keep)
    return softmax_loss(wide(positive), competitors, masks, temperature)


def off_diagonal(matrix: Tensor) -> Tensor:
    """(B, B) → (B, B − 1): each row without its diagonal entry, order kept. Any dtype, masks included."""
    size = matrix.shape[0]
    if matrix.dim() != 2 or matrix.shape[1] != size:
        raise ValueError(f"off_diagonal needs a square matrix, found {tuple(matrix.shape)}")
    if size < 2:
        return matrix[:, :0]
    # Dropping the first entry leaves rows of "B others, then the next diagonal": the diagonal is then the last column.
    return matrix.reshape(-1)[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


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


def apply_mask(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tensor with 0 where the mask is False (not x·0: that keeps NaN and inf), and the mask, made if None."""
    x = wide(x)
    if mask is None:
        return x, torch.ones_like(x, dtype=torch.bool)
    if mask.shape != x.shape:
        raise ValueError(f"mask {tuple(mask.shape)} does not fit a tensor {tuple(x.shape)}")
    mask = mask.bool()
    return x.masked_fill(~mask, 0.0), mask


def zero_loss(x: Tensor) -> Tensor:
    """Zero, attached to x's graph without touching its values (an empty sum)."""
    return wide(x).reshape(-1)[:0].sum()


def mean_over(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of values (B,) where valid (B,). Selecting, unlike multiplying by 0, keeps the rest out of the gradient."""
    chosen = values[valid]
    return chosen.mean() if chosen.numel() else zero_loss(values)


def softmax_loss(positive: Tensor, competitors: list[Tensor], masks: list[Tensor], temperature: float) -> Tensor:
    """Mean of −log softmax at the positive (B,) among competitors [(B, M)…], over rows with at least one competitor."""
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, found {temperature}")
    if not competitors:
        return zero_loss(positive)
    keep = torch.cat(masks, 1)
    rest = torch.cat(competitors, 1).masked_fill(~keep, -math.inf)
    logits = torch.cat([positive[:, None], rest], 1) / temperature
    return mean_over(-F.log_softmax(logits, 1)[:, 0], keep.any(1))
