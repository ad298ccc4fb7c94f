"""Which device models compute on: the one place that decides it for everything but training, where accelerate does."""

from __future__ import annotations

import torch

from d2llm.run.errors import ConfigError, first_line


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(name: str) -> torch.device:
    """The device of that name. Raises ConfigError for one that is not there, or on which nothing can be computed."""
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:  # PyTorch raises many kinds, by its build
        here = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise ConfigError(f"device {name!r} cannot be used here ({first_line(error)}); choose one of {here}") from error
    return torch.device(name)
