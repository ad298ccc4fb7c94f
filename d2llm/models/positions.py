"""How long a text a model can read, where it has learned an embedding of every position."""

from __future__ import annotations

from torch import nn


def position_table(model: nn.Module) -> int | None:
    """How many positions a model with a learned embedding of each can tell apart; None for one without, as rotary and ALiBi models are.

    RoBERTa's kin count theirs from behind the padding index, OPT's from an offset.
    """
    for name, table in model.named_modules():
        last = name.rpartition(".")[2]
        if last in ("position_embeddings", "wpe", "embed_positions") and isinstance(table, nn.Embedding):
            unused = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            return table.num_embeddings - unused
    return None
