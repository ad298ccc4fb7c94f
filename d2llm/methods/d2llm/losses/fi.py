"""FI, feature imitation: how the pair features of one query's candidates resemble each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from d2llm.methods.losses import mean_over
from d2llm.models.precision import wide

if TYPE_CHECKING:
    from d2llm.methods.d2llm.objective import Scores


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


def term(scores: Scores) -> Tensor:
    """γ's term."""
    return feature_imitation(scores.teacher.features, cosine_matrix(scores.features), scores.feature_mask)
