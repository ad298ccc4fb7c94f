"""How many positions a model has: as long a text runs, a longer one does not."""

from __future__ import annotations

import pytest
import torch
import transformers

from d2llm.models.positions import position_table

SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TABLES = {
    "Bert": SIZES | {"max_position_embeddings": 12},
    "Roberta": SIZES | {"max_position_embeddings": 14, "pad_token_id": 1},
    "GPT2": {"vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12},
    "OPT": SIZES | {"max_position_embeddings": 12, "ffn_dim": 16, "word_embed_proj_dim": 16},
}


@pytest.mark.parametrize("name", TABLES)
def test_the_longest_text_runs_and_a_longer_one_does_not(name: str) -> None:
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**TABLES[name])).eval()
    longest = position_table(model)
    assert longest == 12
    ids = torch.full((1, longest + 1), 5)
    model(input_ids=ids[:, 1:], attention_mask=torch.ones_like(ids[:, 1:]))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_rotary_models_have_no_table() -> None:
    config = transformers.LlamaConfig(**SIZES, intermediate_size=16, max_position_embeddings=12)
    assert position_table(transformers.LlamaModel(config)) is None
