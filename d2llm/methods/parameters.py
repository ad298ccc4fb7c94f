"""The groups an optimiser is given: parameters with and without weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

Groups = list[dict[str, Any]]


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices only, never to biases and normalisation scales (one-dimensional)."""
    return parameter.ndim > 1 and "bias" not in name.rsplit(".", 1)[-1]


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float) -> Groups:
    """Split parameters that train into one group with weight decay and one without; empty groups are left out."""
    split: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        if parameter.requires_grad:
            split[decays(name, parameter)].append(parameter)
    return [
        {"params": members, "lr": learning_rate, "weight_decay": weight_decay if decay else 0.0}
        for decay, members in split.items()
        if members
    ]
