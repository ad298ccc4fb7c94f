"""Text to token ids by a Hugging Face tokenizer, in one go and without what its wrapper adds in time; and what a
tokenizer says of its checkpoint: how texts begin and end, what fills up rows, whether it fits the model's embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from d2llm.run.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tokenizers import Encoding

# One of them has a token in any tokenizer.
PROBES = ("a", "的", "1")


def token_ids(tokenizer: Any, texts: Sequence[str], rows: int | None = None) -> list[list[int]]:
    """Ids of every text, without special tokens, never cut or padded.

    rows: of the model's embedding matrix. Raises DataError for a text with a token that has none
    (`unknown_to_the_model`).
    """
    if tokenizer.is_fast:
        encoded = [encoding.ids for encoding in encodings(tokenizer, texts)]
    else:
        encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    if rows is not None:
        for text, ids in zip(texts, encoded, strict=True):
            if ids and max(ids) >= rows:
                token = tokenizer.convert_ids_to_tokens(max(ids))
                raise DataError(
                    f"text {text[:40]!r}: holds the token {token!r}, for which the model has no embedding; take it out"
                )
    return encoded


def encodings(tokenizer: Any, texts: Sequence[str]) -> list[Encoding]:
    """`ids` and `offsets` (first and last character) of every text, by the fast tokenizer itself.

    The wrapper takes longer to repack its answer than it takes to give it; what it does besides is to switch off the
    truncation and padding that a checkpoint's tokenizer.json may ask for.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend.encode_batch(list(texts), add_special_tokens=False)


def framing(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text: ([<bos>], []) for Llama or Gemma, ([CLS], [SEP]) for BERT,
    nothing for Qwen or GPT-2.

    Read off a text with and without them: that a tokenizer has a first token does not say that it is fed. Raises
    ConfigError where they cannot be told apart.
    """
    for probe in PROBES:
        bare, whole = (list(tokenizer(probe, add_special_tokens=special)["input_ids"]) for special in (False, True))
        if whole == bare:
            return [], []
        places = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
        if bare and len(places) == 1:
            return whole[: places[0]], whole[places[0] + len(bare) :]
    raise ConfigError(
        f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}: what it puts around a text cannot be told "
        "from the text; take another checkpoint"
    )


def rows_of(model: Any) -> int:
    """Rows of a model's embedding matrix: how many tokens it knows."""
    return model.get_input_embeddings().weight.shape[0]


def pad_id(tokenizer: Any, rows: int) -> int:
    """What fills up rows of a batch: the padding token, the last token, else token 0, whichever the model (`rows`
    embeddings) knows. No result depends on it.
    """
    return next((int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None and i < rows), 0)


def unknown_to_the_model(tokenizer: Any, rows: int) -> str | None:
    """What is wrong with a tokenizer beside a model of so many embeddings, None if nothing is: a text may hold a token
    without an embedding.

    Special tokens that nothing here feeds may lack theirs: Gemma 3's text models have the image token of their
    siblings. `token_ids` refuses texts that hold one.
    """
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= rows}
    named = {getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "cls", "sep", "mask")}
    added, fed = tokenizer.added_tokens_decoder, named.union(*framing(tokenizer))
    needed = sorted(i for i in beyond if i in fed or i not in added or not added[i].special)
    if not needed:
        return None
    return (
        f"the tokenizer knows {max(beyond) + 1} tokens, the model has embeddings for {rows} (none for "
        f"{beyond[needed[0]]!r}); "
        "take tokenizer and weights of one checkpoint, or resize the model's embeddings and save it again"
    )
