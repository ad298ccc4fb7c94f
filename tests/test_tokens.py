"""What a tokenizer says of its checkpoint: how texts begin and end, what fills up rows, whether the model knows its tokens."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from test_pretrained import config
from test_teacher import ASYMMETRIC, LETTERS, SYMMETRIC, made
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from d2llm.config.sections import TeacherSettings
from d2llm.models.backbone import Backbone
from d2llm.models.base.vocabulary import build_tokenizer
from d2llm.models.tokens import framing, pad_id, token_ids, unknown_to_the_model
from d2llm.run.errors import ArtifactError, ConfigError, DataError
from d2llm.teacher.cross_encoder import Teacher
from d2llm.training import pretraining

BOS, EOS, CLS, SEP = 5, 6, 2, 3


# ------------------------------------------------------------------------------------------------------------- framing
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [("<bos>", "", ([BOS], [])), ("[CLS]", "[SEP]", ([CLS], [SEP])), ("", "<eos>", ([], [EOS]))],
    ids=["as Llama and Gemma", "as BERT", "an end alone"],
)
def test_framing_is_what_the_tokenizer_adds(before: str, after: str, expected: tuple, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = tiny.framed_by(tiny.tokenizer(), before, after)
    assert framing(tokenizer) == expected
    tokenizer.save_pretrained(tmp_path)
    assert framing(AutoTokenizer.from_pretrained(tmp_path)) == expected


def test_a_first_token_that_is_not_fed_is_no_framing(tmp_path: Path) -> None:
    """GPT-2 and Qwen have one in name; the tokenizer of models made in the pipeline adds none."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    end = "<|endoftext|>"
    assert framing(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end)) == ([], [])
    own = build_tokenizer([*SYMMETRIC, *ASYMMETRIC, *LETTERS])
    assert framing(own) == framing(tiny.tokenizer()) == ([], [])
    own.save_pretrained(tmp_path)
    assert framing(AutoTokenizer.from_pretrained(tmp_path)) == ([], [])


def test_framing_that_cannot_be_told_is_refused() -> None:
    class Odd:
        name_or_path = "org/odd"

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [7, 9, 7] if add_special_tokens else [7]}

    with pytest.raises(ConfigError, match="tokenizer org/odd: what it puts around a text cannot be told"):
        framing(Odd())


@pytest.mark.parametrize(
    ("kind", "before", "after", "expected"),
    [
        ("decoder", "", "", ([], [])),
        ("decoder", "<bos>", "<eos>", ([BOS], [])),  # an end is a recipe's to add
        ("encoder", "", "", ([CLS], [SEP])),  # as every recipe has it, where the tokenizer leaves it to the method
        ("encoder", "<bos>", "<eos>", ([BOS], [EOS])),
    ],
)
def test_decoders_begin_and_encoders_are_framed(kind: str, before: str, after: str, expected: tuple) -> None:
    backbone = tiny.backbone(kind)
    if before:
        tiny.framed_by(backbone.tokenizer, before, after)
    assert backbone.framing() == expected


# ------------------------------------------------------------------------------------------------------------- padding
@pytest.mark.parametrize(
    ("pad", "eos", "rows", "expected"),
    [(0, 6, 9, 0), (4, 6, 9, 4), (None, 6, 9, 6), (None, None, 9, 0), (9, 6, 9, 6), (9, 9, 9, 0)],
)
def test_rows_are_filled_up_with_what_the_model_knows(
    pad: int | None, eos: int | None, rows: int, expected: int
) -> None:
    assert pad_id(SimpleNamespace(pad_token_id=pad, eos_token_id=eos), rows) == expected


# ---------------------------------------------------------------------------------------------------------- vocabulary
def test_tokens_without_an_embedding() -> None:
    tokenizer = tiny.tokenizer()
    size = len(tokenizer)
    assert unknown_to_the_model(tokenizer, size) is None
    assert unknown_to_the_model(tokenizer, size + 7) is None  # rows to spare, as Qwen has
    last = tokenizer.convert_ids_to_tokens(size - 1)
    said = unknown_to_the_model(tokenizer, size - 1)
    assert (
        said is not None and f"knows {size} tokens, the model has embeddings for {size - 1} (none for {last!r})" in said
    )
    # A special token that is never fed may be without one, as Gemma 3's text models have it; one that is fed may not.
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    assert unknown_to_the_model(tokenizer, size) is None
    assert unknown_to_the_model(tiny.framed_by(tokenizer, "<image>"), size) is not None
    named = tiny.tokenizer()
    named.add_special_tokens({"mask_token": "<mask>"})
    assert unknown_to_the_model(named, size) is not None
    plain = tiny.tokenizer()
    plain.add_tokens(["word"])
    assert unknown_to_the_model(plain, size) is not None


def test_a_text_with_a_token_that_has_no_embedding_is_refused() -> None:
    backbone, teacher = tiny.backbone("decoder"), made()
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
    kind = "encoder" if name == "encoder" else "decoder"
    rows = len(tiny.tokenizer())
    tiny.backbone(kind, tmp_path / "given")
    tiny.tokenizer(["龙", "凤"]).save_pretrained(tmp_path / "given")
    made = config(tmp_path, **{name: {"source": str(tmp_path / "given")}})
    message = f"the tokenizer knows {rows + 2} tokens, the model has embeddings for {rows} .none for '龙'.; take"
    with pytest.raises(ConfigError, match=rf"models\.{name}\.source: '{tmp_path / 'given'}': {message}"):
        pretraining.run(made, name)
    with pytest.raises(ArtifactError, match=f"{tmp_path / 'given'}: {message}"):
        Backbone.load(tmp_path / "given", kind)
    if kind == "decoder":
        with pytest.raises(ArtifactError, match=f"{tmp_path / 'given'}: {message}"):
            Teacher.load(tmp_path / "given", TeacherSettings())
