"""An index on the disk, written a block at a time, so that neither texts nor rows have to fit into the memory.

`Distinct` numbers texts in a table on the disk; `Store` appends rows to what becomes `index.safetensors`. What the rows
are is `index`'s to say.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Passages whose places are kept at a time.
PLACES = 1 << 16
# Types as safetensors names them.
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8", torch.uint8: "U8"}
TYPES |= {torch.int64: "I64", torch.float64: "F64"}


class Distinct:
    """Numbers keys, equal ones alike, in the order they come: in a file, which is removed in the end, or in memory."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.table = sqlite3.connect(":memory:" if file is None else file, isolation_level=None)
        for word in ("journal_mode = OFF", "synchronous = OFF"):
            self.table.execute(f"PRAGMA {word}")
        self.table.execute("CREATE TABLE seen (number INTEGER PRIMARY KEY, key UNIQUE)")
        self.table.execute("BEGIN")

    def number(self, key: bytes | str) -> tuple[int, bool]:
        """The number of a key, from 0, and whether it is new."""
        done = self.table.execute("INSERT OR IGNORE INTO seen (key) VALUES (?)", (key,))
        if done.rowcount:
            return int(done.lastrowid or 0) - 1, True
        (rowid,) = self.table.execute("SELECT number FROM seen WHERE key = ?", (key,)).fetchone()
        return rowid - 1, False

    def descending(self) -> Iterator[int]:
        """The numbers of all keys, in descending order of the keys: by code points, as Python compares texts."""
        for (number,) in self.table.execute("SELECT number FROM seen ORDER BY key DESC"):
            yield number - 1

    def close(self) -> None:
        """Forget all."""
        self.table.close()
        if self.file is not None:
            self.file.unlink(missing_ok=True)


def digest(text: str) -> bytes:
    """Sixteen bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def blocks(passages: Iterable[str], size: int, seen: Distinct) -> Iterator[tuple[list[str], list[bytes], list[int]]]:
    """Passages as they come → `size` texts not seen before with their digests, and the numbers of all passages read.

    Texts of the last block are fewer; a block may have none of them yet.
    """
    texts: list[str] = []
    digests: list[bytes] = []
    places: list[int] = []
    for passage in passages:
        key = digest(passage)
        place, new = seen.number(key)
        places.append(place)
        if new:
            texts.append(passage)
            digests.append(key)
        if len(texts) == size:
            yield texts, digests, places
            texts, digests, places = [], [], []
        elif len(places) == PLACES:
            yield [], [], places
            places = []
    yield texts, digests, places


class Store:
    """Tensors of one folder, each written a block of rows at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[torch.dtype, list[int]]] = {}

    def add(self, name: str, rows: Tensor) -> None:
        """Append rows (k, …) to a tensor."""
        rows = rows.detach().cpu().contiguous()
        kind, shape = self.shapes.setdefault(name, (rows.dtype, [0, *rows.shape[1:]]))
        if kind != rows.dtype or shape[1:] != list(rows.shape[1:]):
            raise ValueError(f"{name}: expected rows of {kind} {shape[1:]}; found {rows.dtype} {list(rows.shape[1:])}")
        shape[0] += len(rows)
        with (self.folder / f"{name}.part").open("ab") as stream:
            stream.write(rows.view(-1).view(torch.uint8).numpy().data)

    def close(self, without: Iterable[str] = ()) -> None:
        """Bring all tensors together as `index.safetensors`, but for those to be left out."""
        parts = {name: self.folder / f"{name}.part" for name in self.shapes}
        about, start = {}, 0
        # The wide types first: safetensors wants every tensor at a multiple of its size.
        kept = sorted((name for name in parts if name not in without), key=lambda name: -self.shapes[name][0].itemsize)
        for name in kept:
            kind, shape = self.shapes[name]
            end = start + parts[name].stat().st_size
            about[name] = {"dtype": TYPES[kind], "shape": shape, "data_offsets": [start, end]}
            start = end
        header = json.dumps(about).encode()
        header += b" " * (-len(header) % 8)
        with (self.folder / "index.safetensors").open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            for name in kept:
                with parts[name].open("rb") as part:
                    shutil.copyfileobj(part, stream, 1 << 20)
        for file in parts.values():
            file.unlink()


def digests_of(keys: list[bytes]) -> Tensor:
    """(k, 16) bytes."""
    return torch.from_numpy(np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16).copy())


def order_file(file: Path, descending: Iterable[int], count: int) -> None:
    """Write the tie numbers (m,) of passages whose numbers come in descending order of their ids, as tensor `ties`."""
    header = json.dumps({"ties": {"dtype": "I64", "shape": [count], "data_offsets": [0, 8 * count]}}).encode()
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8) * min(count, 1))
    if count:
        ties = np.memmap(file, dtype=np.int64, mode="r+", offset=8 + len(header), shape=(count,))
        for place, number in enumerate(descending):
            ties[number] = place
        ties.flush()
