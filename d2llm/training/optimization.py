"""Optimiser, schedule, batches of indices, and the guarded step; `loop` calls them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from d2llm.methods.parameters import Groups
from d2llm.run.errors import ConfigError, TrainingError

B = TypeVar("B")
Terms = dict[str, Tensor]


def optimizer(
    parameter_groups: Groups, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW over groups of `{"params", "lr", "weight_decay"}`; fused, which is bit-for-bit repeatable and fastest."""
    members = [p for group in parameter_groups for p in group["params"]]
    if not members:
        raise TrainingError("nothing to train: no parameter requires a gradient; check the method's tuning.kind")
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in members)
    return torch.optim.AdamW(parameter_groups, betas=(betas[0], betas[1]), eps=epsilon, fused=fused)


def warmup_steps(warmup: float | int, steps: int) -> int:
    """Steps of warm-up: an integer counts steps, a float below one is a fraction of all steps."""
    if isinstance(warmup, int):
        return min(warmup, steps)
    return math.ceil(warmup * steps)


def schedule(
    optimizer: torch.optim.Optimizer, kind: str, warmup: float | int, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up from 1/w of the rate to all of it, then `constant`, `linear` or `cosine` (both down to zero)."""
    ramp = warmup_steps(warmup, steps)

    def factor(done: int) -> float:
        if done < ramp:
            return (done + 1) / ramp
        rest = (done - ramp) / max(1, steps - ramp)
        if kind == "constant":
            return 1.0
        if kind == "linear":
            return max(0.0, 1.0 - rest)
        if kind == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, rest)))
        raise ValueError(f"unknown schedule {kind!r}: expected constant, linear or cosine")

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def step(
    accelerator: Any,
    parts: Iterable[Terms],
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    clip: float | None,
    where: str,
    after_backward: Callable[[], None] | None = None,
) -> dict[str, float]:
    """One guarded update from named loss terms (scalars that are summed). Returns the numbers worth logging.

    `parts` are the terms of each part of the batch, of a batch in one pass just one. `where` names method and step for
    the error, e.g. "sgpt, step 12". `accelerator` sends the loss backward, None stands for plain backward. The
    optimiser is torch's own, not one accelerate has wrapped: that wrapper searches the disk for a package at every
    step, which took 3.5% of an update of the mini tier. `after_backward` runs before gradients are looked at
    (`gradient_cache`). Raises TrainingError on a term or gradient that is not finite, before any weight changes.
    """
    values = send_backward(parts, loss_backward if accelerator is None else accelerator.backward, where)
    if after_backward is not None:
        after_backward()
    # In half precision the loss is scaled: an update that overflows is skipped, and the scale lowered.
    scaler = getattr(accelerator, "scaler", None)
    if scaler is not None:
        scaler.unscale_(optimizer)
    members = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(members, math.inf if clip is None else clip))
    if not math.isfinite(norm) and scaler is None:
        raise TrainingError(f"{where}: the gradient of {' + '.join(values)} is {norm}; lower the learning rate")
    rate = optimizer.param_groups[0]["lr"]
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    if scheduler is not None:
        scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    return values | {"loss": math.fsum(values.values()), "gradient_norm": norm, "learning_rate": rate}


def send_backward(parts: Iterable[Terms], backward: Callable[[Tensor], None], where: str) -> dict[str, float]:
    """Send each part's loss backward before the next is asked for, so that one at a time is in memory; the terms' sums.

    Raises TrainingError for a term that is not finite, and where there is none at all.
    """
    values: dict[str, float] = {}
    for terms in filter(None, parts):
        numbers = torch.stack([term.detach().float() for term in terms.values()]).tolist()
        for name, value in zip(terms, numbers, strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"{where}: loss term {name!r} is {value}; lower the learning rate or raise the temperature, and "
                    "check the texts and teacher scores of this batch"
                )
            values[name] = values.get(name, 0.0) + value
        backward(cast("Tensor", sum(terms.values())))  # there is at least one term
    if not values:
        raise TrainingError(f"{where}: the objective has no term at all; every weight is zero")
    return values


def loss_backward(loss: Tensor) -> None:
    """Plain backward."""
    loss.backward()


def accelerate_precision(precision: str) -> str:
    """Accelerate's name of a precision. Raises ConfigError for one this machine does not have."""
    if precision == "float16" and not torch.cuda.is_available():
        raise ConfigError("training.precision: float16 needs a GPU and there is none; bfloat16 works without")
    return {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision]


def batches(count: int, size: int, steps: int, seed: int, done: int = 0) -> Iterator[list[int]]:
    """`steps` batches of indices below `count`, from the one after `done` of them on, reshuffled every pass; a pass's
    last short batch is filled by the next.
    """
    if count < 1:
        raise TrainingError("no texts to draw batches from")
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for step in range(steps):
        while len(order) < size:
            order += torch.randperm(count, generator=generator).tolist()
        if step >= done:
            yield order[:size]
        order = order[size:]
