"""Cross-entropy over a large vocabulary in little memory: a part of the tokens at a time, their logits computed again
for the backward pass.

Of 160 tokens and a vocabulary of 262,000 the logits alone take 170 MB, and a loss over all holds four times that beside
the model. Where they are few, all at once, as ever.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits up to which a loss is taken at once, and those of a part beyond it.
AT_ONCE, PART = 1 << 25, 1 << 23


def token_loss(head: Callable[[Tensor], Tensor], states: Tensor, targets: Tensor, vocabulary: int) -> Tensor:
    """Mean −log p of `targets` (n,) by the head's logits of `states` (n, d), formed in float32."""
    if len(targets) * vocabulary <= AT_ONCE:
        return F.cross_entropy(head(states).float(), targets)

    def total(part: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(head(part).float(), wanted, reduction="sum")

    parts = zip(states.split(size := max(1, PART // vocabulary)), targets.split(size), strict=True)
    sums = [checkpoint(total, part, wanted, use_reentrant=False) for part, wanted in parts]
    return sum(sums[1:], sums[0]) / len(targets)
