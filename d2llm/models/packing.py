"""Texts of a pass laid end to end, without padding: the attention that keeps them apart, and the layout.

Everything in a transformer but attention treats tokens one by one, so a pass over T real tokens costs T, not rows × longest row.
Attention runs once for each group of texts of equal length. Works for every architecture of transformers that takes its attention
from outside (`_supports_attention_backend`); others, and devices whose kernels prefer one large call, are padded (`Backbone`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "packed_sdpa"

Groups = tuple[tuple[int, int], ...]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    packed_groups: Groups | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' "sdpa" attention, and with `packed_groups` the same for texts laid end to end.

    query (1, heads, T, d), key and value (1, heads or fewer, T, d); packed_groups: (number of texts, their length) of each
    run of texts of equal length, T in all. The mask is then not read. Returns (1, T, heads, d).
    """
    if packed_groups is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **options
        )
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    sizes = [count * length for count, length in packed_groups]
    # split, not slices: its gradient is one concatenation.
    parts = zip(*(x[0].split(sizes, dim=1) for x in (query, key, value)), strict=True)
    out = []
    for (count, length), members in zip(packed_groups, parts, strict=True):
        q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in members)
        found = F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=dropout,
            is_causal=causal and length > 1,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out.append(found.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)[None], None


def packs(model: nn.Module) -> bool:
    """Whether a transformers body can run packed; if so, its attention is switched to one that can."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = model.config
    kinds = getattr(config, "layer_types", None)
    windows = any(kind != "full_attention" for kind in kinds) if kinds else getattr(config, "sliding_window", None)
    able = getattr(model, "_supports_attention_backend", False) and config._attn_implementation in ("sdpa", NAME)
    if not able or windows:
        return False
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def layout(lengths: Sequence[int]) -> tuple[Groups, Tensor]:
    """Of texts in order: the groups `packed_attention` takes, and positions (1, T), each text's from 0."""
    groups = tuple((len(list(members)), length) for length, members in groupby(lengths))
    sizes = np.asarray(lengths)
    first = sizes.cumsum() - sizes
    return groups, torch.from_numpy(np.arange(sizes.sum()) - first.repeat(sizes))[None]


def padding_mask(lengths: Sequence[int], side: Literal["right", "left"]) -> Tensor:
    """Mask (n, longest), int64: 1 at real tokens, 0 at the padding, which is on that side."""
    sizes = np.asarray(lengths)[:, None]
    column = np.arange(sizes.max())[None]
    real = column < sizes if side == "right" else column >= sizes.max() - sizes
    return torch.from_numpy(real.astype(np.int64))
