"""A searchable index of passages for a trained student: what its scorer needs of every passage, computed once.

For D2LLM that is Wp·p + b1 of every passage (`passage_cache`), from which its scores follow exactly; for a cosine the unit
vector. A search is exhaustive: every passage is scored, in blocks of both sides that bound the memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from d2llm.artifacts import MEND, read_json, write_json
from d2llm.errors import ArtifactError

if TYPE_CHECKING:
    from d2llm.models.interaction import Mode

# A block of 256 queries × 4096 passages is 4 MB of float32 scores.
QUERY_BLOCK = 256
PASSAGE_BLOCK = 4096
# Bump when the layout of a saved index changes.
LAYOUT = 1

Hits = list[tuple[np.ndarray, np.ndarray]]


class Index:
    """Passages ready to be searched by one student.

    `cache` (m, c) is the scorer's passage cache, a row a passage in the order given; `vector_bytes` what one plain embedding
    takes. Passages are told by their row: texts are the caller's.
    """

    def __init__(self, student: Any, cache: Tensor, vector_bytes: int = 0, mode: Mode = "asymmetric") -> None:
        self.student, self.cache, self.vector_bytes, self.mode = student, cache, vector_bytes, mode

    @classmethod
    def build(cls, student: Any, passages: Sequence[str], batch_size: int = 256, mode: Mode = "asymmetric") -> Index:
        """Encode passages, each distinct text once, and keep what the student's scorer needs of them."""
        distinct = list(dict.fromkeys(passages))
        place = {text: row for row, text in enumerate(distinct)}
        vectors = student.encode(distinct, "passage", mode, batch_size)
        return cls.of_vectors(student, vectors, [place[text] for text in passages], mode)

    @classmethod
    def of_vectors(
        cls, student: Any, vectors: np.ndarray, rows: Sequence[int] | np.ndarray, mode: Mode = "asymmetric"
    ) -> Index:
        """An index whose passage i has the embedding `vectors[rows[i]]`; vectors (n, d) as the student encodes them."""
        table = on_device(student, vectors)
        chosen = torch.as_tensor(np.asarray(rows, dtype=np.int64), device=table.device)
        with torch.inference_mode():
            parts = [
                student.scorer.passage_cache(table[chosen[start : start + PASSAGE_BLOCK]])
                for start in range(0, len(chosen), PASSAGE_BLOCK)
            ]
        cache = torch.cat(parts) if parts else student.scorer.passage_cache(table[:0])
        return cls(student, cache, table.shape[1] * table.element_size(), mode)

    def __len__(self) -> int:
        return len(self.cache)

    @property
    def bytes_per_passage(self) -> int:
        """What the index holds of one passage."""
        return self.cache.shape[1] * self.cache.element_size()

    def search(self, queries: Sequence[str], depth: int) -> Hits:
        """For every query the rows of the `depth` best passages and their scores, best first."""
        return self.search_vectors(self.student.encode(list(queries), "query", self.mode), depth)

    def search_vectors(self, queries: np.ndarray, depth: int) -> Hits:
        """The same for embedded queries (n, d). Scores that are not finite come as +inf, first, for the caller to refuse."""
        q = on_device(self.student, queries)
        scorer = self.student.scorer
        hits: Hits = []
        with torch.inference_mode():
            for first in range(0, len(q), QUERY_BLOCK):
                block = scorer.query_cache(q[first : first + QUERY_BLOCK])
                best = torch.empty(len(block), 0, device=q.device)
                index = torch.empty(len(block), 0, dtype=torch.long, device=q.device)
                for start in range(0, len(self.cache), PASSAGE_BLOCK):
                    chosen = self.cache[start : start + PASSAGE_BLOCK]
                    scores = scorer.matrix_cached(block, chosen, self.mode).float()
                    # What is not finite sorts first, so that the check of what is kept cannot miss it.
                    scores = scores.masked_fill(~scores.isfinite(), torch.inf)
                    ids = torch.arange(start, start + len(chosen), device=q.device).expand(len(block), -1)
                    best, index = torch.cat([best, scores], dim=1), torch.cat([index, ids], dim=1)
                    best, order = best.topk(min(depth, best.shape[1]), dim=1)
                    index = index.gather(1, order)
                hits.extend(zip(index.cpu().numpy(), best.cpu().numpy(), strict=True))
        return hits

    # -------------------------------------------------------------------------------------------------- save and load
    def save(self, folder: str | Path) -> None:
        """Write `index.safetensors` and `index.json`, which names the student by a digest of its weights."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"cache": self.cache.cpu().contiguous()}, str(folder / "index.safetensors"))
        about = {"layout": LAYOUT, "mode": self.mode, "vector_bytes": self.vector_bytes}
        write_json(folder / "index.json", about | {"shape": list(self.cache.shape), "student": weights(self.student)})

    @classmethod
    def load(cls, folder: str | Path, student: Any) -> Index:
        """A saved index of this very student. Raises ArtifactError when it is damaged or another student's."""
        from safetensors.torch import load_file

        folder = Path(folder)
        about = read_json(folder / "index.json")
        try:
            cache = load_file(str(folder / "index.safetensors"))["cache"]
            fits = about["layout"] == LAYOUT and about["shape"] == list(cache.shape)
            mode, vector_bytes, owner = about["mode"], int(about["vector_bytes"]), about["student"]
        except Exception as error:  # noqa: BLE001 - any way a file can be broken ends in the same advice
            raise ArtifactError(f"{folder}: not a saved index ({type(error).__name__}: {error}); {MEND}") from error
        if not fits:
            raise ArtifactError(f"{folder}: index.json is not of index.safetensors or of another layout; {MEND}")
        if owner != weights(student):
            raise ArtifactError(f"{folder}: the index of another student; build it again with this one")
        return cls(student, on_device(student, cache), vector_bytes, mode)


def on_device(student: Any, array: np.ndarray | Tensor) -> Tensor:
    """As a tensor where the student's scorer computes."""
    parameter = next(iter(student.scorer.parameters()), None)
    return torch.as_tensor(array, device=None if parameter is None else parameter.device)


def weights(student: Any) -> str:
    """Digest of a student's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(student.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
