"""Positions: of models that have learned an embedding of each how many there are and which a text begins with; of
models with windows how far a token sees.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

# How configurations call a reach of attention.
WINDOWS = ("sliding_window", "sliding_window_size", "window_size", "attention_chunk_size")
# Layers whose tokens see all of a text that is no longer than the window.
WHOLE = ("full_attention", "sliding_attention", "chunked_attention")


def reach(config: Any) -> float:
    """Longest text whose tokens see all that they would without a window, in tokens; infinite for a model without one.

    A token sees itself and window − 1 tokens before it, so that a text of exactly that many is whole. 0 for a model
    with layers of another kind (linear, recurrent) or a window of unknown size.
    """
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    windows = [size for name in WINDOWS if isinstance(size := getattr(config, name, None), int)]
    if kinds - set(WHOLE):
        return 0
    if kinds <= {"full_attention"} and kinds:
        return math.inf
    return min(windows, default=0 if kinds else math.inf)


def position_table(model: nn.Module) -> int | None:
    """How many positions a model with a learned embedding of each can tell apart; None for one without, as rotary and
    ALiBi models are.

    RoBERTa's kin count theirs from behind the padding index, OPT's from an offset.
    """
    for name, table in model.named_modules():
        last = name.rpartition(".")[2]
        if last in ("position_embeddings", "wpe", "embed_positions") and isinstance(table, nn.Embedding):
            unused = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            return table.num_embeddings - unused
    return None


def first_position(model: nn.Module) -> int:
    """The position of a text's first token, as the model takes positions: RoBERTa's kin count from behind the padding
    index.
    """
    for name, table in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(table, nn.Embedding):
            return 0 if table.padding_idx is None else table.padding_idx + 1
    return 0
