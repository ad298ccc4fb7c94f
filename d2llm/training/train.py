"""Stage `train`: the one training loop, for every method.

Base checkpoint, or what the method's own pre-training made of it (`d2llm.training.pretext`) -> the method builds its student -> the shared sampler's
batches, the method's objective, one optimiser. What differs between methods is in their files; what must not differ (texts, order, updates, lengths) is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from d2llm.methods.registry import method as find_method
from d2llm.models.backbone import Backbone
from d2llm.models.batch import Batch
from d2llm.run.artifacts import append_jsonl, atomic, read_json, read_jsonl, write_json
from d2llm.run.checkpoint import Resume
from d2llm.run.errors import ConfigError, TrainingError
from d2llm.run.logs import get_logger, progress
from d2llm.run.paths import Paths
from d2llm.training.gradient_cache import cached, fewer
from d2llm.training.memory import retried
from d2llm.training.monitor import Monitor
from d2llm.training.optimization import mixed, optimizer, schedule, step
from d2llm.training.pairs import PairData
from d2llm.training.parallel import Shares

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator

    from d2llm.config.schema import Config
    from d2llm.models.student import Student


def run(config: Config, method: str, variant: str, seed: int, resume: Resume | None = None) -> None:
    """Train one run and save its student, its log and a summary."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    paths, settings, resume = Paths.of(config), config.training, resume or Resume()
    chosen, recipe = find_method(method), config.recipe(method, variant)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=mixed(settings.precision))
    if accelerator.num_processes != settings.processes:
        raise ConfigError(
            f"training.processes: {settings.processes} processes, started were {accelerator.num_processes}; "
            "start them by torchrun, as the workflow does"
        )
    set_seed(seed)
    folder = paths.run(method, variant, seed)
    # All processes know the same; the first one tells it.
    first = accelerator.is_main_process
    log_file = folder / "log.jsonl" if first else None
    if log_file is not None:
        log_file.unlink(missing_ok=True)
    data = PairData.load(config, chosen, getattr(recipe, "teacher", "teacher"))
    monitor = Monitor.load(config)
    started = time.perf_counter()

    origin = start(config, method, variant)
    pretext_seconds = 0.0
    if config.pretext_of(method, variant):
        # A run's log tells all of its story; what is shared with others is told in each of theirs.
        pretext_seconds = read_json(origin / "summary.json")["seconds"]
        if log_file is not None and (origin / "log.jsonl").exists():
            for record in read_jsonl(origin / "log.jsonl"):
                append_jsonl(log_file, record)
    student = chosen.build(Backbone.load(origin, chosen.kind), recipe)
    student.limit_length(settings.max_length)
    student.to(accelerator.device)
    counts = student.parameter_counts()
    get_logger(__name__).info("%s/%s seed %d: %s", method, variant, seed, counts)

    made = optimizer(chosen.parameter_groups(student, recipe), recipe.betas, recipe.epsilon)
    steps = settings.updates(method)
    plan = schedule(made, recipe.schedule, recipe.warmup, steps)
    # Not wrapped for several processes: `parallel` divides the texts of a step, and averages the gradients.
    wrapped = accelerator.prepare_model(student, evaluation_mode=True)
    if settings.processes > 1:
        student.shares = Shares(accelerator.process_index, settings.processes)
    student.train()
    loop = resume.loop("fine-tuning", steps, made, plan, log_file, scaler=accelerator.scaler)
    tail: list[dict[str, float]] = loop.notes.get("tail", [])
    at_once = loop.notes.get("texts_at_once", settings.texts_at_once)
    if at_once is not None:
        student.cache = cached(student, at_once, accelerator.autocast)
    batches = data.batches(settings.batch_size, steps, seed, loop.done)
    bar = progress(batches, f"training {method}/{variant} seed {seed}", loop.done)
    for number, drawn in enumerate(bar, loop.done + 1):
        # What the method does not use is not embedded either.
        batch = drawn.narrowed(recipe.hard_negatives)
        where = f"{method}/{variant} seed {seed}, step {number}"

        def update(batch: Batch = batch, where: str = where) -> dict[str, float]:
            terms = chosen.objective(student, wrapped(batch), batch, recipe)
            return step(accelerator, [terms], made, plan, recipe.clip, where, lambda: finish(student))

        texts = len(batch) * (2 + batch.negative_count)
        record = retried(update, smaller(student, made, texts, accelerator, where))
        if number > 0.9 * steps:
            tail.append(record)
        if log_file is not None and (number % settings.log_every == 0 or number == steps):
            append_jsonl(log_file, {"stage": "fine-tuning", "step": number, "dataset": batch.dataset, **record})
        if monitor.due(number, steps):
            measured = monitor.measure(student, f"{method}/{variant} seed {seed}, step {number}")
            if log_file is not None:
                append_jsonl(log_file, {"stage": "dev", "step": number, **measured})
        bar.show(loss=record["loss"])
        loop.after(number, tail=tail, texts_at_once=None if student.cache is None else student.cache.size)
    if not first:
        return
    with atomic(folder / "model") as place:
        accelerator.unwrap_model(wrapped).save(place)
    used = data.width if recipe.hard_negatives is None else min(data.width, recipe.hard_negatives)
    write_json(
        folder / "summary.json",
        {"method": method, "variant": variant, "seed": seed, "kind": chosen.kind,
         "pooling": student.pooling_spec, "scorer": student.scorer_spec, "parameters": counts, "updates": steps,
         "queries": steps * settings.batch_size, "negatives_per_query": used, "pretext_seconds": pretext_seconds,
         "seconds": round(resume.before + time.perf_counter() - started, 1),
         "last_losses": {key: float(np.mean([r[key] for r in tail if key in r])) for key in sorted({k for r in tail for k in r})}},
    )  # fmt: skip


def finish(student: Student) -> None:
    """What is left of a backward pass once the loss's own is done."""
    if student.cache is not None:
        student.cache.backward()
    if student.shares is not None:
        student.shares.average(student.parameters())


def smaller(
    student: Student, made: torch.optim.Optimizer, texts: int, accelerator: Accelerator, where: str
) -> Callable[[Exception], None]:
    """What to do about a batch of so many texts that does not fit: half as many texts at a time.

    The batch and its gradient stay what they are (`gradient_cache`). Raises TrainingError when one text is too much.
    """

    def less(error: Exception) -> None:
        if student.shares is not None:  # the others wait for this one
            raise TrainingError(f"{where}: out of memory; lower training.texts_at_once") from error
        made.zero_grad(set_to_none=True)
        fewer(student, texts, accelerator.autocast, where)

    return less


def start(config: Config, method: str, variant: str) -> Path:
    """The folder of the model a run starts from."""
    paths, owner = Paths.of(config), config.pretext_of(method, variant)
    return (
        paths.pretext(method, owner) if owner else paths.base(find_method(method).base(config.recipe(method, variant)))
    )
