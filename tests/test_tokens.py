"""What a checkpoint says of texts: how they begin and end, what fills up rows, whether the model knows the tokens, how
many positions it has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
import transformers
from tiny_run import BASE, tiny_settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from d2llm.config.load import load
from d2llm.config.sections import TeacherSettings
from d2llm.models.backbone import Backbone
from d2llm.models.base.vocabulary import build_tokenizer
from d2llm.models.positions import position_table
from d2llm.models.tokens import framing, pad_id, token_ids, unknown_to_the_model
from d2llm.run.errors import ArtifactError, ConfigError, DataError
from d2llm.teacher.cross_encoder import Teacher
from d2llm.teacher.prompts import prompts
from d2llm.training.base import run as make_base

BOS, EOS, CLS, SEP = 5, 6, 2, 3


# ------------------------------------------------------------------------------------------------------------- framing
def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's and Qwen's: they have a first token in name."""
    letters = {letter: i for i, letter in enumerate(["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|end|>", eos_token="<|end|>")


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (lambda: tiny.framed_by(tiny.tokenizer(), "<bos>"), ([BOS], [])),  # as Llama and Gemma
        (lambda: tiny.framed_by(tiny.tokenizer(), "[CLS]", "[SEP]"), ([CLS], [SEP])),  # as BERT
        (lambda: tiny.framed_by(tiny.tokenizer(), "", "<eos>"), ([], [EOS])),
        (tiny.tokenizer, ([], [])),
        (byte_level, ([], [])),
        (lambda: build_tokenizer(["甲乙丙"]), ([], [])),  # of models made in the pipeline
    ],
    ids=["Llama", "BERT", "an end alone", "none", "GPT-2", "own"],
)
def test_framing_is_what_the_tokenizer_adds(tokenizer, expected: tuple, tmp_path: Path) -> None:
    assert framing(tokenizer()) == expected
    tokenizer().save_pretrained(tmp_path)
    assert framing(AutoTokenizer.from_pretrained(tmp_path)) == expected


def test_framing_that_cannot_be_told_is_refused() -> None:
    class Odd:
        name_or_path = "org/odd"

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [7, 9, 7] if add_special_tokens else [7]}

    with pytest.raises(ConfigError, match="tokenizer org/odd: what it puts around a text cannot be told"):
        framing(Odd())


# ---------------------------------------------------------------------------------------------- padding and vocabulary
@pytest.mark.parametrize(
    ("pad", "eos", "expected"), [(0, 6, 0), (4, 6, 4), (None, 6, 6), (None, None, 0), (9, 6, 6), (9, 9, 0)]
)
def test_rows_are_filled_up_with_what_the_model_knows(pad: int | None, eos: int | None, expected: int) -> None:
    assert pad_id(SimpleNamespace(pad_token_id=pad, eos_token_id=eos), 9) == expected


def test_tokens_without_an_embedding() -> None:
    tokenizer = tiny.tokenizer()
    size = len(tokenizer)
    assert unknown_to_the_model(tokenizer, size) is None
    assert unknown_to_the_model(tokenizer, size + 7) is None  # rows to spare, as Qwen has
    message = unknown_to_the_model(tokenizer, size - 1)
    assert message is not None and f"knows {size} tokens, the model has embeddings for {size - 1}" in message
    assert f"(none for {tokenizer.convert_ids_to_tokens(size - 1)!r})" in message
    # A special token that is never fed may be without one, as Gemma 3's text models have it; one that is fed may not.
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    assert unknown_to_the_model(tokenizer, size) is None
    assert unknown_to_the_model(tiny.framed_by(tokenizer, "<image>"), size) is not None
    named, plain = tiny.tokenizer(), tiny.tokenizer(["word"])
    named.add_special_tokens({"mask_token": "<mask>"})
    assert unknown_to_the_model(named, size) is not None and unknown_to_the_model(plain, size) is not None


def test_a_text_with_a_token_that_has_no_embedding_is_refused() -> None:
    backbone, settings = tiny.backbone("decoder"), TeacherSettings()
    own = build_tokenizer([prompt.text("甲", "乙") for prompt in prompts(settings).values()])
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    teacher = Teacher(LlamaForCausalLM(LlamaConfig(vocab_size=len(own), **sizes)), own, settings)
    for tokenizer, tokenize in ((backbone.tokenizer, backbone.tokenize), (teacher.tokenizer, teacher.tokens)):
        size = len(tokenizer)
        tokenizer.add_tokens(["<image>"], special_tokens=True)
        assert token_ids(tokenizer, ["甲<image>"])[0][-1] == size
        with pytest.raises(DataError, match=r"text '乙<image>': holds the token '<image>', for which the model has no"):
            tokenize(["甲", "乙<image>"])


@pytest.mark.parametrize("name", ["teacher", "decoder", "encoder"])
def test_a_checkpoint_whose_tokenizer_is_larger_is_refused_by_every_stage_that_loads_one(
    name: str, tmp_path: Path
) -> None:
    kind, rows, folder = "encoder" if name == "encoder" else "decoder", len(tiny.tokenizer()), tmp_path / "given"
    tiny.backbone(kind, folder)
    tiny.tokenizer(["龙", "凤"]).save_pretrained(folder)
    settings = tiny_settings(tmp_path / "results")
    settings["models"] = dict.fromkeys(("teacher", "decoder", "encoder"), BASE) | {name: {"source": str(folder)}}
    settings["methods"] = {"retromae": settings["methods"]["retromae"]}  # it asks for no words of its own
    message = f"the tokenizer knows {rows + 2} tokens, the model has embeddings for {rows} .none for '龙'.; take"
    with pytest.raises(ConfigError, match=rf"models\.{name}\.source: '{folder}': {message}"):
        make_base(load([], settings), name)
    with pytest.raises(ArtifactError, match=f"{folder}: {message}"):
        Backbone.load(folder, kind)
    if kind == "decoder":
        with pytest.raises(ArtifactError, match=f"{folder}: {message}"):
            Teacher.load(folder, TeacherSettings())


# ----------------------------------------------------------------------------------------------------------- positions
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
