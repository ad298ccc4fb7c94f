"""Embedding rows that train while the rest of the matrix stays: k of V rows have gradients and optimiser states, no V
of anything is made.

peft's trainable tokens keep as few parameters, but every pass copies the whole matrix and every backward pass makes a
gradient of its size, which is what is to be spared with a vocabulary of 262,000. Which tokens are added, and how their
rows start, is the backbone's business.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# The name of the module inside the embedding it belongs to.
NAME = "added"


class AddedRows(nn.Module):
    """Rows `ids` of an embedding as a small embedding of their own, from which these tokens are looked up while it is
    `enabled`.
    """

    ids: Tensor

    def __init__(self, embedding: Any, ids: Sequence[int]) -> None:
        super().__init__()
        index = torch.tensor(sorted(set(ids)), device=embedding.weight.device)
        self.register_buffer("ids", index, persistent=False)
        rows = nn.Parameter(embedding.weight.detach()[index].clone())
        # The same kind of module, its matrix replaced: some scale what they look up.
        self.rows = copy.deepcopy(embedding, {id(embedding.weight): rows})
        self.rows.num_embeddings, self.rows.padding_idx = len(index), None
        self.enabled = True

    @property
    def weight(self) -> nn.Parameter:
        """(k, d): what trains."""
        return self.rows.weight

    def forward(self, ids: Tensor, states: Tensor) -> Tensor:
        """Token ids (…) and their states (…, d) by the whole matrix → states (…, d), those of the added tokens by their
        own rows.
        """
        place = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        return torch.where((self.ids[place] == ids)[..., None], self.rows(place), states)

    @torch.no_grad()
    def merge(self, weight: Tensor) -> Tensor:
        """(V, d) → (V, d), in place: the matrix with these rows in it."""
        return weight.index_copy_(0, self.ids, self.weight.to(weight.dtype))

    @torch.no_grad()
    def take(self, weight: Tensor) -> None:
        """The reverse: these rows are what the matrix (V, d) has."""
        self.weight.copy_(weight[self.ids])


def train_rows(embedding: Any, ids: Sequence[int]) -> RemovableHandle:
    """Let rows `ids` of an embedding train, and no other. The handle takes the hook away."""
    embedding.weight.requires_grad_(False)
    added = AddedRows(embedding, ids)
    embedding.add_module(NAME, added)
    return embedding.register_forward_hook(_look_up)


@contextmanager
def only_rows(embedding: Any, ids: Sequence[int]) -> Iterator[None]:
    """The same for a while; what they have learned is then in the matrix. None of one whose rows stand apart already."""
    base = getattr(embedding, "base_layer", embedding)
    base.weight.requires_grad_(False)
    if not ids or hasattr(base, NAME):
        yield
        return
    hook = train_rows(base, ids)
    try:
        yield
    finally:
        getattr(base, NAME).merge(base.weight.detach())
        hook.remove()
        delattr(base, NAME)


def _look_up(embedding: Any, inputs: tuple[Tensor, ...], states: Tensor) -> Tensor:
    added = getattr(embedding, NAME)
    return added(inputs[0], states) if added.enabled else states


def added_rows(model: nn.Module) -> dict[str, AddedRows]:
    """The added rows inside a model, by the name of the embedding they belong to; there is one at most."""
    return {name.removesuffix(f".{NAME}"): part for name, part in model.named_modules() if isinstance(part, AddedRows)}
