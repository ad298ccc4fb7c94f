"""A transformer's last layer only where somebody reads it: what follows its attention treats tokens one by one, and
nothing comes after it.

A [CLS] or last-token pooling reads one state a text, the teacher one a candidate; keys and values of all tokens are
needed, the rest of the layer is not. Same numbers, up to the order in which a gradient's products are summed. Which
tokens are read is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def only_at(model: PreTrainedModel, places: Tensor) -> Iterator[None]:
    """Within it a pass of `model` over rows (n, t) computes last states at `places` alone: (k,) int64, each row · t +
    position. Other states may hold anything.

    For transformers' own code in the forms of Llama (with Qwen, Mistral, Gemma …) and of BERT (with RoBERTa, XLM-R,
    ELECTRA …). Others, experts and code from a hub among them, compute everything; so does a pass that is to be
    computed again for its gradients, which happens when this is over.
    """
    hooks = [hook for first, last in _spans(model) for hook in _between(first, last, places)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _spans(model: PreTrainedModel) -> list[tuple[nn.Module, nn.Module]]:
    """First and last module of each stretch that takes and gives states token by token."""
    body: Any = model.base_model
    layers = getattr(body, "layers", None) or getattr(getattr(body, "encoder", None), "layer", None)
    if not layers or not type(layers[-1]).__module__.startswith("transformers."):
        return []
    layer: Any = layers[-1]
    if getattr(layer, "gradient_checkpointing", False) or getattr(model.config, "chunk_size_feed_forward", 0):
        return []
    if hasattr(layer, "mlp"):
        out: Any = getattr(getattr(layer, "self_attn", None), "o_proj", None)
        # Experts have these inside; they count the tokens they are given.
        return [(part, part) for part in (out, layer.mlp)] if out and hasattr(layer.mlp, "down_proj") else []
    begins: Any = getattr(getattr(layer, "attention", None), "output", None)
    return [(begins, layer.output)] if hasattr(begins, "dense") and hasattr(layer.output, "dense") else []


def _between(first: nn.Module, last: nn.Module, places: Tensor) -> tuple[Any, Any]:
    """Hooks: what enters `first` is cut down to `places`, what leaves `last` is put back to them, with zeros
    elsewhere.
    """
    shape = list[torch.Size]()

    def gather(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shape.append(inputs[0].shape[:2])
        return tuple(x.flatten(0, 1).index_select(0, places)[None] for x in inputs)

    def scatter(_: Any, __: Any, output: Tensor) -> Tensor:
        rows, tokens = shape.pop()
        whole = output.new_zeros(rows * tokens, output.shape[-1])
        return whole.index_copy(0, places, output[0]).unflatten(0, (rows, tokens))

    return first.register_forward_pre_hook(gather), last.register_forward_hook(scatter)
