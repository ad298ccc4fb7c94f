"""Text to token ids by a Hugging Face tokenizer, in one go and without what its wrapper adds in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Encoding


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids of every text, without special tokens, never cut or padded."""
    if not tokenizer.is_fast:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [found.ids for found in encodings(tokenizer, texts)]


def encodings(tokenizer: Any, texts: Sequence[str]) -> list[Encoding]:
    """`ids` and `offsets` (first and last character) of every text, by the fast tokenizer itself.

    The wrapper takes longer to repack its answer than it takes to give it; what it does besides is to switch off the
    truncation and padding that a checkpoint's tokenizer.json may ask for.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend.encode_batch(list(texts), add_special_tokens=False)
