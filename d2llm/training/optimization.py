"""Optimiser, schedule and the guarded step: the one home of both, for the training loop and for the methods' pretext stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from d2llm.methods.parameters import Groups
from d2llm.run.errors import ConfigError, TrainingError
from d2llm.run.logs import get_logger, progress
from d2llm.training.gradient_cache import cached, fewer
from d2llm.training.memory import retried

if TYPE_CHECKING:
    from d2llm.methods.base import PretextContext
    from d2llm.models.student import Student

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

    `parts` are the terms of each part of the batch, of a batch in one pass just one; each is sent backward before the next is asked for, so that one
    at a time is in memory. `where` names method and step for the error, e.g. "sgpt, step 12". Raises TrainingError on a term or gradient that is
    not finite, before any weight changes. `accelerator` sends the loss backward, None stands for plain backward. The optimiser is torch's own, not one
    accelerate has wrapped: that wrapper searches the disk for a package at every step, which took 3.5% of an update of the mini tier.
    `after_backward` runs before gradients are looked at (`gradient_cache`).
    """
    values: dict[str, float] = {}
    for terms in parts:
        if not terms:
            continue
        for name, value in zip(
            terms, torch.stack([term.detach().float() for term in terms.values()]).tolist(), strict=True
        ):
            if not math.isfinite(value):
                raise TrainingError(
                    f"{where}: loss term {name!r} is {value}; lower the learning rate or raise the temperature, and check "
                    "the texts and teacher scores of this batch"
                )
            values[name] = values.get(name, 0.0) + value
        loss = cast("Tensor", sum(terms.values()))  # there is at least one term
        if accelerator is None:
            loss.backward()
        else:
            accelerator.backward(loss)
    if not values:
        raise TrainingError(f"{where}: the objective has no term at all; every weight is zero")
    if after_backward is not None:
        after_backward()
    members = [p for group in optimizer.param_groups for p in group["params"]]
    limit = math.inf if clip is None else clip
    # In half precision the loss is scaled: an update that overflows is skipped, and the scale lowered.
    scaler = getattr(accelerator, "scaler", None)
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = float(torch.nn.utils.clip_grad_norm_(members, limit))
    if not math.isfinite(norm) and scaler is None:
        raise TrainingError(f"{where}: the gradient of {' + '.join(values)} is {norm}; lower the learning rate")
    log = values | {
        "loss": math.fsum(values.values()),
        "gradient_norm": norm,
        "learning_rate": optimizer.param_groups[0]["lr"],
    }
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    if scheduler is not None:
        scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    return log


def mixed(precision: str) -> str:
    """Accelerate's name of a precision. Raises ConfigError for one this machine does not have."""
    if precision == "float16" and not torch.cuda.is_available():
        raise ConfigError("training.precision: float16 needs a GPU and there is none; bfloat16 works without")
    return {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[precision]


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
    loss: Callable[[B], Terms],
    *,
    steps: int,
    name: str,
    context: PretextContext,
    split: Callable[[B, int], Sequence[tuple[B, Mapping[str, float]]]] | None = None,
    student: Student | None = None,
    texts: int = 0,
    warmup: float | int = 0.1,
    schedule_kind: str = "linear",
    clip: float | None = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    draw: Callable[[Any], B] | None = None,
    generators: Sequence[torch.Generator] = (),
) -> None:
    """A small training of its own (pretext stages, the teacher): `loss(batch)` gives named terms for each batch of `loader`.

    `name` says method and stage ("retromae, pre-training"); it appears in errors, in the bar and in `context.log`. `draw` makes of what the loader
    gives what `loss` takes, with all that is random about it from `generators`: with them, a stage that was killed goes on where it was.

    When memory runs out the update is made again with the same draws. With `split(batch, k)` the batch is taken in k parts (or as many as it has
    examples), each with its share of every term, so that the terms of all parts add up to those of the whole. With `student`, for a loss that
    takes all embeddings of a batch at once, its `texts` a batch are embedded fewer at a time. Without either it raises TrainingError.
    """
    accelerator = context.accelerator
    made = optimizer(parameter_groups, betas, epsilon)
    plan = schedule(made, schedule_kind, warmup, steps)
    loop = context.loop(name, steps, made, plan, generators=generators, scaler=getattr(accelerator, "scaler", None))
    parts: int = loop.notes.get("parts", 1)
    if student is not None and loop.notes.get("texts_at_once"):
        student.cache = cached(student, loop.notes["texts_at_once"], context.autocast)

    def terms(batch: B) -> Iterator[Terms]:
        if split is None or parts == 1:
            yield loss(batch)
            return
        for part, shares in split(batch, parts):
            yield {key: value * shares[key] for key, value in loss(part).items()}

    def finish() -> None:
        if student is not None and student.cache is not None:
            student.cache.backward()

    source = islice(loader, loop.done, None)
    bar = progress(range(loop.done + 1, steps + 1), name, loop.done)
    for number in bar:
        where, given = f"{name}, step {number}", next(source)
        batch = given if draw is None else draw(given)

        def update(batch: B = batch, where: str = where) -> dict[str, float]:
            return step(accelerator, terms(batch), made, plan, clip, where, finish)

        def less(error: Exception, batch: B = batch, where: str = where) -> None:
            nonlocal parts
            made.zero_grad(set_to_none=True)
            if student is not None:
                fewer(student, texts, context.autocast, where)
                return
            more = 1 if split is None else len(split(batch, 2 * parts))
            if more <= parts:
                alone = "lower its batch_size" if split is None else "that was one example at a time; lower max_length"
                raise TrainingError(
                    f"{where}: out of memory; {alone}, or take a smaller model or more memory"
                ) from error
            parts = more
            get_logger(__name__).warning("%s: out of memory; batches in %d parts from now on", where, parts)

        log = retried(update, less)
        context.log({"stage": name, "step": number, **log})
        bar.show(loss=log["loss"])
        at_once = None if student is None or student.cache is None else student.cache.size
        loop.after(number, parts=parts, texts_at_once=at_once)
