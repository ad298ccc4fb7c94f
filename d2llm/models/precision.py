"""What numbers are computed in: the one place that decides it for everything but training, where accelerate does.

Texts are embedded in half precision on a GPU, and on a CPU that is told to (`embedding`). Float32 products of a GPU may
use TF32 (`settle`), but not those of scores (`scoring`). Numbers that are compared are formed in float32 at least,
whatever the model computes in: bfloat16 has steps of 1/8 between 16 and 32, hence ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

# Whether a kind of device embeds in half precision.
_half = {"cuda": True, "cpu": False}


def settle(half: bool, tf32: bool, half_on_cpu: bool = False) -> None:
    """Set by the command line from the configuration (`gpu`, `cpu`), once a process."""
    _half.update(cuda=half, cpu=half_on_cpu)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32


def half_type(device: torch.device) -> torch.dtype | None:
    """What texts are embedded in on a device: bfloat16, float16 where a GPU lacks it; None: the type of the weights."""
    if not _half.get(device.type, False):
        return None
    if device.type == "cpu":
        return torch.bfloat16
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def embedding(weight: Tensor) -> AbstractContextManager:
    """A context in which texts are embedded, without gradients, by a model with this weight: half precision for one of
    float32, where the device is quicker in it. What is scored leaves it first.
    """
    kind = half_type(weight.device) if weight.dtype == torch.float32 else None
    return nullcontext() if kind is None else torch.autocast(weight.device.type, dtype=kind)


@contextmanager
def scoring() -> Iterator[None]:
    """A context that scores embeddings: without gradients, by exact float32 products whatever `gpu.tf32` says."""
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = False
    try:
        with torch.inference_mode():
            yield
    finally:
        products.allow_tf32 = before


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def as_given(x: Tensor) -> AbstractContextManager:
    """A context in which products on the device of `x` are formed in the type of what goes in, also inside of mixed
    precision.
    """
    kind = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(kind):  # torch knows no autocast of tensors without memory
        return nullcontext()
    return torch.autocast(kind, enabled=False)
