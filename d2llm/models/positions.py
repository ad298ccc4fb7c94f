"""Positions of models that have learned an embedding of each: how many there are, and which a text begins with."""

from __future__ import annotations

from torch import nn


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
