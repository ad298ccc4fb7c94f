"""The one training loop: fine-tuning, the teacher, base models and the methods' own pre-training all call it.

Resume, progress, logging, precision and what is done when memory runs out are here; what is computed is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from d2llm.run.logs import progress
from d2llm.training.memory import Terms, Whole, retry_on_oom
from d2llm.training.optimization import optimizer, schedule, step

if TYPE_CHECKING:
    import numpy
    import torch

    Generator = torch.Generator | numpy.random.Generator

    from d2llm.methods.base import TrainingContext

Record = dict[str, float]
# Share of the updates, the last ones, whose records are given back.
TAIL = 0.1


@dataclass(frozen=True)
class Rates:
    """How the rates of the parameter groups go up and down (`optimization.schedule`), Adam's constants, and the largest
    norm of a gradient.
    """

    warmup: float | int = 0.1
    schedule: str = "linear"
    clip: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8


def fit(
    parameter_groups: list[dict[str, Any]], batches: Callable[[int], Iterable[Any]], loss: Callable[[Any], Terms], *,
    steps: int, name: str, context: TrainingContext, rates: Rates | None = None, memory: Whole | None = None,
    label: str = "", draw: Callable[[Any], Any] | None = None, generators: Sequence[Generator] = (),
    about: Callable[[Any], dict[str, Any]] | None = None, watch: Callable[[int], None] | None = None,
) -> list[Record]:  # fmt: skip
    """Train for `steps` updates; the records of the last tenth. `loss(batch)` gives named terms, which are summed.

    batches(k): what comes after k updates. draw: makes of it what `loss` takes, with all that is random about it from
    `generators`: with them, a training that was killed goes on where it was, and an update for which memory ran out is
    made again with the same draws (`memory`).
    name: of the stage in logs and checkpoints; label: in errors and in the bar (the same where there is none).
    about(batch): what else a record says. watch(update): called after each.
    Raises TrainingError for a loss or gradient that is not finite, and where memory runs out for the smallest part.
    """
    rates, memory, label = rates or Rates(), memory or Whole(), label or name
    accelerator, adam = context.accelerator, optimizer(parameter_groups, rates.betas, rates.epsilon)
    plan = schedule(adam, rates.schedule, rates.warmup, steps)
    scaler = getattr(accelerator, "scaler", None)
    loop = context.loop(name, steps, adam, plan, generators=generators, scaler=scaler)
    memory.restore(loop.notes)
    tail: list[Record] = loop.notes.get("tail", [])
    source = iter(batches(loop.done))
    bar = progress(range(loop.done + 1, steps + 1), label, loop.done)
    for number in bar:
        where, given = f"{label}, step {number}", next(source)
        batch = given if draw is None else draw(given)
        record = update(accelerator, batch, loss, adam, plan, rates.clip, memory, where)
        more = {} if about is None else about(batch)
        if number > (1 - TAIL) * steps:
            tail.append(record | {key: value for key, value in more.items() if isinstance(value, float)})
        if number % context.log_every == 0 or number == steps:
            context.log({"stage": name, "step": number, **more, **record})
        if watch is not None:
            watch(number)
        bar.show(loss=record["loss"])
        loop.after(number, tail=tail, **memory.notes)
    return tail


def update(
    accelerator: Any, batch: Any, loss: Callable[[Any], Terms], optimizer: torch.optim.Optimizer, schedule: Any,
    clip: float | None, memory: Whole, where: str,
) -> Record:  # fmt: skip
    """One update of the weights by a batch, in as many parts as memory asks for."""

    def shrink(error: Exception) -> None:
        optimizer.zero_grad(set_to_none=True)
        memory.shrink(batch, where, error)

    return retry_on_oom(
        lambda: step(accelerator, memory.terms(batch, loss), optimizer, schedule, clip, where, memory.finish), shrink
    )


def means(records: Sequence[Record]) -> Record:
    """The mean of every number that records have, over those that have it."""
    keys = sorted({key for record in records for key in record})
    values = {key: [record[key] for record in records if key in record] for key in keys}
    return {key: sum(numbers) / len(numbers) for key, numbers in values.items()}
