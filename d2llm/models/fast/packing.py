"""Texts of a pass laid end to end, without padding: the attention that keeps them apart, and the layout.

Everything in a transformer but attention treats tokens one by one, so a pass over T real tokens costs T, not rows ×
longest row. Attention runs once for each group of texts of equal length. Works for every architecture of transformers
that takes its attention from outside (`_supports_attention_backend`); others, devices whose kernels prefer one large
call, and texts longer than a model's window are padded (`Backbone`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "packed_sdpa"
# What some architectures do to attention's scores (Gemma 2, gpt-oss, T5).
OTHERS = ("softcap", "s_aux", "position_bias")

Groups = tuple[tuple[int, int], ...]


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    scaling: float | None = None, is_causal: bool | None = None, packed_groups: Groups | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' "sdpa" attention, and with `packed_groups` the same for texts laid end to end.

    query (1, heads, T, d), key and value (1, heads or fewer, T, d); packed_groups: (number of texts, their length) of
    each run of texts of equal length, T in all. The mask is then not read. Returns (1, T, heads, d).
    """
    if packed_groups is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **options
        )
    if any(options.get(name) is not None for name in OTHERS):
        raise ValueError(f"attention without padding knows none of {', '.join(OTHERS)}")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if _one_node(query, key, value, dropout):
        return _PackedAttention.apply(query, key, value, packed_groups, causal, scaling), None
    sizes = [count * length for count, length in packed_groups]
    # split, not slices: its gradient is one concatenation.
    parts = zip(*(x[0].split(sizes, dim=1) for x in (query, key, value)), strict=True)
    out = []
    for (count, length), members in zip(packed_groups, parts, strict=True):
        q, k, v = (x.unflatten(1, (count, length)).transpose(0, 1) for x in members)
        attended = F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=dropout,
            is_causal=causal and length > 1,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        out.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(out)[None], None


def _one_node(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether the CPU's flash kernel, called without the dispatch around it, is what scaled_dot_product_attention would
    choose.
    """
    plain = dropout == 0.0 and query.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    plain = plain and flash_kernels() is not None
    return plain and query.shape == key.shape == value.shape and query.dtype == key.dtype == value.dtype


class _PackedAttention(torch.autograd.Function):
    """All groups as one node of the graph: its backward calls the kernel's own, and no view or copy of a group is a
    node.

    With short texts the bookkeeping of a dozen groups takes as long as their kernels. The numbers are the same to the
    last bit.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: Groups, causal: bool, scale: float | None
    ) -> Tensor:
        views = _views(groups, query.shape[1], query.shape[3])
        sides = [_by_token(x) for x in (query, key, value)]
        joined, sums = torch.empty_like(sides[0]), []
        flash, _ = flash_kernels()  # type: ignore[misc]  # `_one_node` has asked
        for view in views:
            q, k, v, place = (x.as_strided(*view) for x in (*sides, joined))
            attended, logsumexp = flash(q, k, v, 0.0, causal and view[0][2] > 1, attn_mask=None, scale=scale)
            place.copy_(attended)
            sums.append(logsumexp)
        ctx.save_for_backward(*sides, joined, *sums)
        ctx.views, ctx.causal, ctx.scale = views, causal, scale
        return joined

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, joined, *sums = ctx.saved_tensors
        sides = (_from_start(gradient.contiguous()), query, key, value, joined)
        gradients = [torch.empty_like(query) for _ in range(3)]
        _, flash_backward = flash_kernels()  # type: ignore[misc]
        for view, logsumexp in zip(ctx.views, sums, strict=True):
            out, q, k, v, given = (x.as_strided(*view) for x in sides)
            parts = flash_backward(
                out, q, k, v, given, logsumexp, 0.0, ctx.causal and view[0][2] > 1, attn_mask=None, scale=ctx.scale
            )
            for side, part in zip(gradients, parts, strict=True):
                side.as_strided(*view).copy_(part)
        return (*(side.transpose(1, 2) for side in gradients), None, None, None)


@cache
def flash_kernels() -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """The CPU's flash kernel and its backward, which torch keeps to itself; None where this torch has none of these
    names, or they give other numbers.

    Tried once, on a few numbers, against `scaled_dot_product_attention`; without them that is what every group goes
    through.
    """
    name = "_scaled_dot_product_flash_attention_for_cpu"
    # The function is called with less around it than the operator; of the backward there is the operator alone.
    forward, operator = getattr(torch, name, None), getattr(torch.ops.aten, f"{name}_backward", None)
    backward = getattr(operator, "default", None)
    if forward is None or backward is None:
        return None
    with torch.inference_mode(False), torch.enable_grad():
        numbers = torch.arange(3 * 2 * 5 * 8, dtype=torch.float32, device="cpu").sin().view(3, 1, 2, 5, 8).unbind()
        sides = [side.clone().requires_grad_() for side in numbers]
        wanted = F.scaled_dot_product_attention(sides[0], sides[1], sides[2], is_causal=True)
        wanted.sum().backward()
    try:
        given, sums = forward(*numbers, 0.0, True, attn_mask=None, scale=None)
        ones = torch.ones_like(given)
        gradients = backward(ones, *numbers, given, sums, 0.0, True, attn_mask=None, scale=None)
    except (TypeError, ValueError, RuntimeError):  # of other arguments in this version
        return None
    expected = (wanted, *(side.grad for side in sides))
    same = all(
        own is not None and torch.equal(other, own) for other, own in zip((given, *gradients), expected, strict=True)
    )
    return (forward, backward) if same else None


def _by_token(x: Tensor) -> Tensor:
    """(1, heads, T, d) → (1, T, heads, d), its numbers in that order from the start of its memory; mostly they are
    already.
    """
    return _from_start(x.transpose(1, 2).contiguous())


def _from_start(x: Tensor) -> Tensor:
    """A part of a larger tensor, as a fused projection gives for a single token, as one of its own: `as_strided` counts
    from the start of the memory.
    """
    return x.clone() if x.storage_offset() else x


@lru_cache(maxsize=4)
def _views(groups: Groups, heads: int, width: int) -> list[tuple[Any, ...]]:
    """For each group what `as_strided` takes (size, strides, offset) to show it, of numbers in the order (T, heads, d),
    as (count, heads, length, d).
    """
    token, start, views = heads * width, 0, list[tuple[Any, ...]]()
    for count, length in groups:
        views.append(((count, heads, length, width), (length * token, width, token, 1), start * token))
        start += count * length
    return views


def packs(model: PreTrainedModel) -> bool:
    """Whether a transformers body can run packed; if so, its attention is switched to one that can."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    able = getattr(model, "_supports_attention_backend", False)
    if not able or model.config._attn_implementation not in ("sdpa", NAME):
        return False
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def layout(lengths: Sequence[int], first_position: int = 0) -> tuple[Groups, Tensor]:
    """Of texts in order: the groups `packed_attention` takes, and positions (1, T), each text's from the first one."""
    groups = tuple((len(list(members)), length) for length, members in groupby(lengths))
    sizes = np.asarray(lengths)
    first = sizes.cumsum() - sizes
    return groups, torch.from_numpy(first_position + np.arange(sizes.sum()) - first.repeat(sizes))[None]


def end_to_end(rows: Sequence[Sequence[int]]) -> Tensor:
    """(T,) int64: the tokens of all rows."""
    return torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int64, sum(map(len, rows))))


def padding_mask(lengths: Sequence[int], side: Literal["right", "left"]) -> Tensor:
    """Mask (n, longest), int64: 1 at real tokens, 0 at the padding, which is on that side."""
    sizes = np.asarray(lengths)[:, None]
    column = np.arange(sizes.max())[None]
    real = column < sizes if side == "right" else column >= sizes.max() - sizes
    return torch.from_numpy(real.astype(np.int64))
