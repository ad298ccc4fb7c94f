"""Numbers that are compared are formed in float32 at least, whatever the model computes in: bfloat16 has steps of 1/8
between 16 and 32, hence ties.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


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
