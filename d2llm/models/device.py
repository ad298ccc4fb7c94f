"""Which device models compute on, and how much of its memory a block of scores may take: the one place that decides it
for everything but training, where accelerate does.
"""

from __future__ import annotations

from functools import cache

import torch

from d2llm.run.errors import ConfigError, first_line

# Of a GPU's memory, what a block's intermediate values may take: large enough that its kernels outlast their launches.
BLOCK_SHARE, LEAST_BLOCK, MOST_BLOCK = 1 / 64, 64 << 20, 1 << 30


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


def block_bytes(device: torch.device, in_cache: int) -> int:
    """Bytes that the intermediate values of a block may take: `in_cache` on a CPU, where a block is fastest in the
    cache; on a GPU a share of its memory, the same in every run.
    """
    return in_cache if device.type in ("cpu", "meta") else max(in_cache, _gpu_block(device))


@cache
def _gpu_block(device: torch.device) -> int:
    if device.type != "cuda":
        return LEAST_BLOCK
    share = int(torch.cuda.get_device_properties(device).total_memory * BLOCK_SHARE)
    return min(max(share, LEAST_BLOCK), MOST_BLOCK)
