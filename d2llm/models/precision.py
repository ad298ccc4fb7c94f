"""What numbers are computed in: the one place that decides it for everything but training, where accelerate does.

Texts are embedded in half precision on a GPU, and on a CPU that is told to (`embedding`). Float32 products of a GPU may
use TF32 (`settle`), but not those of scores (`scoring`). Numbers that are compared are formed in float32 at least,
whatever the model computes in: bfloat16 has steps of 1/8 between 16 and 32, hence ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Rows a linear layer takes at a time are a multiple of this in a CPU's bfloat16, whose kernels are compiled for each
# shape: that takes longer than the product of a thousand tokens, and memory.
ROWS = 64

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
    """A context in which texts are embedded, or a teacher reads pairs, without gradients, by a model with this weight:
    half precision for one of float32, where the device is quicker in it. What is scored leaves it first.
    """
    kind = half_type(weight.device) if weight.dtype == torch.float32 else None
    return nullcontext() if kind is None else _mixed(weight.device.type, kind)


@contextmanager
def _mixed(device: str, kind: torch.dtype) -> Iterator[None]:
    with even_rows(device == "cpu"), torch.autocast(device, dtype=kind):
        yield


def even_rows(half: bool) -> AbstractContextManager:
    """A context in which the linear layers of a CPU's autocast, where `half` says that there is one, take their rows in
    multiples of `ROWS`: the filling is zeros, and is cut off.
    """
    return _EvenRows() if half and not torch.cuda.is_available() else nullcontext()


class _EvenRows(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and torch.is_autocast_enabled("cpu"):
            return _even_linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _even_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = x.numel() // x.shape[-1]
    missing = -rows % ROWS
    if rows < ROWS or not missing:
        return F.linear(x, weight, bias)
    filled = F.pad(x.reshape(rows, -1), (0, 0, 0, missing))
    return F.linear(filled, weight, bias)[:rows].view(*x.shape[:-1], -1)


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
