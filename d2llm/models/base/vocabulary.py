"""The tokenizer of models that are made in the pipeline: greedy longest match over a known word list, in Hugging Face
format.

A vocabulary trained on millions of prompted texts would hold the frequent words and the fixed prompt sentences as
pieces of their own; a generated world knows its words, so they are listed instead of learnt. Anything else falls back
to characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EOS]")


def build_tokenizer(words: Iterable[str], max_length: int = 512) -> PreTrainedTokenizerFast:
    """A fast tokenizer whose pieces are the special tokens, `words`, and every character of them.

    Whitespace separates and is not kept. Ids are sorted, so the same words give the same vocabulary.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = {piece for word in words for piece in word.split()}
    characters = {character for piece in pieces for character in piece}
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *sorted(pieces | characters)))}
    model = models.WordPiece(
        vocabulary, unk_token="[UNK]", continuing_subword_prefix="", max_input_chars_per_word=100_000
    )
    tokenizer = Tokenizer(model)
    # A character outside the vocabulary is an unknown token of its own and does not swallow its neighbours.
    known = "".join(re.escape(character) for character in sorted(characters))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(f"[^{known}]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", eos_token="[EOS]", model_max_length=max_length,
    )  # fmt: skip
