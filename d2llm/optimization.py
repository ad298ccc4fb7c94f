"""Optimiser, schedule and the guarded step: the one home of both, for the training loop and for the methods' pretext stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from d2llm.errors import TrainingError
from d2llm.logs import progress

if TYPE_CHECKING:
    from d2llm.methods import PretextContext

Groups = list[dict[str, Any]]


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices only, never to biases and normalisation scales (one-dimensional)."""
    return parameter.ndim > 1 and "bias" not in name.rsplit(".", 1)[-1]


def groups(named: Iterable[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float) -> Groups:
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
    terms: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    clip: float | None,
    where: str,
    after_backward: Callable[[], None] | None = None,
) -> dict[str, float]:
    """One guarded update from named loss terms (scalars that are summed). Returns the numbers worth logging.

    `where` names method and step for the error, e.g. "sgpt, step 12". Raises TrainingError on a term or gradient that is
    not finite, before any weight changes. `accelerator` may be None (plain backward); it must be the one that prepared
    the optimiser otherwise. `after_backward` runs before gradients are looked at (`gradient_cache`).
    """
    if not terms:
        raise TrainingError(f"{where}: the objective has no term at all; every weight is zero")
    values = torch.stack([term.detach().float() for term in terms.values()]).tolist()
    for name, value in zip(terms, values, strict=True):
        if not math.isfinite(value):
            raise TrainingError(
                f"{where}: loss term {name!r} is {value}; lower the learning rate or raise the temperature, and check "
                "the texts and teacher scores of this batch"
            )
    loss = cast("Tensor", sum(terms.values()))  # there is at least one term
    if accelerator is None:
        loss.backward()
    else:
        accelerator.backward(loss)
    if after_backward is not None:
        after_backward()
    members = [p for group in optimizer.param_groups for p in group["params"]]
    limit = math.inf if clip is None else clip
    if accelerator is None:
        norm = float(torch.nn.utils.clip_grad_norm_(members, limit))
    else:
        norm = float(accelerator.clip_grad_norm_(members, limit))
    # In half precision the loss is scaled: accelerate skips an update that overflows, and lowers the scale.
    scaled = getattr(accelerator, "scaler", None) is not None
    if not math.isfinite(norm) and not scaled:
        raise TrainingError(f"{where}: the gradient of {' + '.join(terms)} is {norm}; lower the learning rate")
    log = dict(zip(terms, values, strict=True)) | {
        "loss": math.fsum(values),
        "gradient_norm": norm,
        "learning_rate": optimizer.param_groups[0]["lr"],
    }
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    return log


def batches(count: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """`steps` batches of indices below `count`, reshuffled every pass; a pass's last short batch is filled by the next."""
    if count < 1:
        raise TrainingError("no texts to draw batches from")
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < size:
            order += torch.randperm(count, generator=generator).tolist()
        yield order[:size]
        order = order[size:]


def fit(
    parameter_groups: Groups,
    loader: Iterable[Any],
    loss: Callable[[Any], dict[str, Tensor]],
    *,
    steps: int,
    name: str,
    context: PretextContext,
    warmup: float | int = 0.1,
    schedule_kind: str = "linear",
    clip: float | None = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    generators: Sequence[torch.Generator] = (),
) -> None:
    """A small training of its own (pretext stages): `loss(batch)` gives named terms for each batch of `loader`.

    `name` says method and stage ("retromae, pre-training"); it appears in errors, in the bar and in `context.log`. `generators` are those that
    `loss` draws from: with them, a stage that was killed goes on where it was. A `loader` of its own draws from none of these.
    """
    made = optimizer(parameter_groups, betas, epsilon)
    plan = schedule(made, schedule_kind, warmup, steps)
    loop = context.loop(name, steps, made, plan, generators=generators)
    source = islice(loader, loop.done, None)
    bar = progress(range(loop.done + 1, steps + 1), name, loop.done)
    for number in bar:
        terms = loss(next(source))
        log = step(context.accelerator, terms, made, plan, clip, f"{name}, step {number}")
        context.log({"stage": name, "step": number, **log})
        bar.show(loss=log["loss"])
        loop.after(number)
