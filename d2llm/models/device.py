"""Which device models compute on: the one place that decides it for everything but training, where accelerate does."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
