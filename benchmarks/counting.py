"""A device that computes on the CPU and counts as a GPU would be charged: kernels launched, tensors carried between
host and device, times the host waits for the device's numbers. What is counted on it, and how it is shown, is others'.

Tensors of this device are wrappers around tensors of the CPU, by PyTorch's own means for backends written in Python.
Views launch nothing. A look at a number (`item`, `tolist`, `nonzero`, a mask as an index) is one wait, and so is a copy
to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "counted"
aten = torch.ops.aten
# Operators whose result the host has to know before it goes on.
WAITING = (aten._local_scalar_dense.default, aten.nonzero.default, aten._unique2.default, aten.masked_select.default)

# Operators that take tensors of both devices.
MIXED = (aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten.index_put_.default)


@dataclass
class Counts:
    """What has been counted so far."""

    kernels: int = 0
    to_device: int = 0
    to_host: int = 0
    waits: int = 0
    bytes_to_device: int = 0

    def __sub__(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


COUNTS = Counts()


class Counted(Tensor):
    """A tensor of the counting device; `held` is the one of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Counted:
        tensor = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0), requires_grad=held.requires_grad,
        )  # fmt: skip
        tensor.held = held
        return tensor

    def __repr__(self) -> str:
        return f"Counted({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operator with at least one tensor of the device among its arguments, or that makes one there."""
    there = target(kwargs)
    if func is aten._fused_sdp_choice.default:
        return 0  # in plain products: no kernel of its own is known for this device
    if func not in MIXED:
        check_together(func, args, kwargs)
    held_args, held_kwargs = tree_map_only(Counted, lambda x: x.held, (args, kwargs))
    if there is not None:
        held_kwargs["device"] = torch.device("cpu")
    out = func(*held_args, **held_kwargs)
    if func is aten._to_copy.default and there is not None and there.type == "cpu":
        COUNTS.to_host += 1
        COUNTS.waits += 1
        return out
    if func is aten.copy_.default and not isinstance(args[0], Counted):
        COUNTS.to_host += 1
        COUNTS.waits += 1
        return args[0]
    if func is aten._to_copy.default and not isinstance(args[0], Counted):
        COUNTS.to_device += 1
        COUNTS.bytes_to_device += args[0].nbytes
    elif not (func.is_view or func in (aten.detach.default, aten.lift_fresh.default)):
        COUNTS.kernels += 1
    masks = func in (aten.index.Tensor, aten.index_put_.default) and any(
        index is not None and index.dtype == torch.bool for index in args[1]
    )
    COUNTS.waits += bool(func in WAITING or masks)
    wrapped = tree_map_only(Tensor, Counted, out)
    aliasing = func.is_view or func._schema.is_mutable
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if aliasing else wrapped


def check_together(func: Any, args: Any, kwargs: Any) -> None:
    """Raise RuntimeError for numbers of both devices, as a GPU does; a single number may come from the host."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if len({isinstance(x, Counted) for x in tensors if isinstance(x, Counted) or x.ndim}) > 1:
        raise RuntimeError(f"{func}: tensors of the host and of the device")


def target(kwargs: dict[str, Any]) -> torch.device | None:
    """The device an operator is asked for."""
    device = kwargs.get("device")
    return None if device is None else torch.device(device)


class _Factories(TorchDispatchMode):
    """What is made on the device, or carried there, from tensors that are not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = target(kwargs or {})
        mine = any(issubclass(kind, Counted) for kind in types)
        if mine or (there is not None and there.type == NAME):
            return run(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Attention as the one kernel it is on a GPU; tensors of Python's numbers, made on the host and carried over."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = target(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and there is not None and there.type == NAME:
            return func(*args, **{**kwargs, "device": "cpu"}).to(there)
        if func is Tensor.tolist and isinstance(args[0], Counted):
            return args[0].cpu().tolist()
        if func is Tensor.__getitem__ and isinstance(args[0], Counted) and isinstance(args[1], list):
            args = args[0], torch.tensor(args[1]).to(args[0].device)
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], Counted):
            COUNTS.kernels += 1
            held, options = tree_map_only(Counted, lambda x: x.held, (args, kwargs or {}))
            return Counted(func(*held, **options))
        return func(*args, **(kwargs or {}))


@cache
def _register() -> None:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME)


@contextmanager
def counting() -> Iterator[torch.device]:
    """The device, whose operators are counted within."""
    _register()
    # Wrappers have no version counter, which inference mode asks for.
    with mock.patch.object(torch.inference_mode, "__enter__", _enter_no_grad), _Calls(), _Factories():
        yield torch.device(NAME, 0)


def _enter_no_grad(mode: Any) -> None:
    mode._inference_mode_context = torch.no_grad()
    mode._inference_mode_context.__enter__()


def counted(call: Callable[[], Any]) -> Counts:
    """What a call is charged."""
    before = Counts(**vars(COUNTS))
    call()
    return COUNTS - before
