"""Tiny models for tests: width 32, two layers, a few dozen words, made in milliseconds and the same every time."""

from __future__ import annotations

from pathlib import Path

import torch

from d2llm.models.backbone import Backbone

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<bos>", "<eos>"]
WORDS = list('甲乙丙丁戊己庚辛壬癸山水火木金土日月星云吃看给书花猫狗人天地不是能在的了，。？："[]{}')


def tokenizer(words: list[str] | None = None):
    """A WordPiece tokenizer over single characters and the given words; the id of WORDS[i] is len(SPECIAL) + i."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *WORDS, *(words or [])])}
    # The default of 100 letters a word would turn a longer Chinese text into one [UNK].
    limits = {"max_input_chars_per_word": 10_000, "continuing_subword_prefix": ""}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", **limits))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {f"{token.strip('[]<>').lower()}_token": token for token in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def framed_by(tokenizer, before: str = "<bos>", after: str = ""):
    """The same tokenizer, which from now on puts these special tokens around a text, as Llama's does <bos> or BERT's
    [CLS] and [SEP]."""
    from tokenizers.processors import TemplateProcessing

    single = " ".join(filter(None, (before, "$A", after)))
    known = [(token, tokenizer.convert_tokens_to_ids(token)) for token in filter(None, (before, after))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=known)
    return tokenizer


def ids(text: str) -> tuple[int, ...]:
    """Expected ids of a text of single characters, without the tokenizer."""
    return tuple(len(SPECIAL) + WORDS.index(letter) for letter in text)


def backbone(kind: str, folder: Path | None = None, words: list[str] | None = None, **changes) -> Backbone:
    """A random decoder (Llama with biases) or encoder (BERT); with `folder` saved there with its head and loaded
    back."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, LlamaConfig

    torch.manual_seed(0)
    tok = tokenizer(words)
    shared = {
        "vocab_size": len(tok),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    if kind == "decoder":
        options = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 4}
        config = LlamaConfig(**(shared | options | {"bos_token_id": 5, "eos_token_id": 6} | changes))
    else:
        config = BertConfig(**(shared | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} | changes))
    if folder is None:
        options = {"add_pooling_layer": False} if kind == "encoder" else {}
        body = AutoModel.from_config(config, **options)
        return Backbone(body.eval(), tok, kind)
    full = (AutoModelForCausalLM if kind == "decoder" else AutoModelForMaskedLM).from_config(config)
    for name, parameter in full.named_parameters():
        if "bias" in name:  # new models start with zero biases, which would hide mistakes
            torch.nn.init.normal_(parameter, std=0.1)
    full.save_pretrained(folder)
    tok.save_pretrained(folder)
    return Backbone.load(folder, kind)
