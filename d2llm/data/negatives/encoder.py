"""The pipeline's encoder as a dense retriever, for hard negatives and for the teacher's candidates.

Which ranks become negatives is left to `mine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from torch import Tensor

    from d2llm.config.recipes import Role
    from d2llm.config.schema import Config
    from d2llm.models.student import Student

# Queries compared with all passages at a time, on a CPU.
QUERY_BLOCK = 512
# (texts, role) → vectors.
Encode = Callable[[Sequence[str], "Role"], np.ndarray]


def base_encoder(config: Config) -> Student:
    """The pipeline's encoder as a dense retriever: mean of its states, cosine, texts framed as it was pre-trained on
    them.
    """
    from d2llm.config.recipes import MaxLengths
    from d2llm.models.backbone import Backbone
    from d2llm.models.device import default_device
    from d2llm.models.student import Student, same_formats

    backbone = Backbone.load(Paths.of(config).base("encoder"), "encoder")
    length = config.training.max_length
    formats = same_formats(MaxLengths(query=length, passage=length, symmetric=length), *backbone.framing())
    return Student(backbone, ("mean", {}), ("cosine", {}), formats, normalize=True).eval().to(default_device())


def dense_ranks(
    config: Config,
    queries: Sequence[str],
    passages: Sequence[str],
    depth: int,
    encode: Encode | None = None,
    ties: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Indices of the `depth` nearest passages of every query, best first: cosine of the base encoder's mean states,
    compared where the encoder computes.

    `encode` gives vectors that are there already (`dense.reader`); without it they are made. Of equal cosines the
    smaller of `ties` is first; None: the first passage in the order given.

    The encoder is the pipeline's own base checkpoint, before any method trains, so no method's training pairs are its
    own choice.
    """
    import torch

    from d2llm.models.device import default_device

    if encode is None:
        encoder = base_encoder(config)

        def encode(texts: Sequence[str], role: Role) -> np.ndarray:
            return encoder.encode(list(texts), role, "symmetric")

    # Each text once: in two batches, rounding could tell equal passages apart.
    distinct = {text: row for row, text in enumerate(dict.fromkeys(passages))}
    device = default_device()
    q = torch.from_numpy(encode(queries, "query")).to(device)
    p = torch.from_numpy(encode(list(distinct), "passage")).to(device)
    places = None
    if len(distinct) < len(passages):
        places = torch.tensor([distinct[text] for text in passages], device=device)
    order = torch.arange(len(passages)) if ties is None else torch.from_numpy(ties)
    return nearest(q, p, places, order.to(device), depth)


def nearest(q: Tensor, p: Tensor, places: Tensor | None, ties: Tensor, depth: int) -> list[np.ndarray]:
    """Of queries (n, d) the `depth` nearest passages by their tie numbers (m,); the vector of passage i is
    `p[places[i]]`, `p[i]` where places is None.
    """
    import torch

    from d2llm.models.device import block_bytes
    from d2llm.search.ranking import best

    rows = torch.arange(len(ties), device=q.device)
    # The similarities of a block are held three times while the best are found.
    size = QUERY_BLOCK if q.device.type == "cpu" else max(1, block_bytes(q.device, 0) // (12 * len(ties)))
    out: list[np.ndarray] = []
    for start in range(0, len(q), size):
        similarity = q[start : start + size] @ p.T
        similarity = similarity if places is None else similarity[:, places]
        out += list(best(similarity, rows.expand(len(similarity), -1), ties, depth)[1].cpu().numpy())
    return out
