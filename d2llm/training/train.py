"""Stage `train`: a run from its base model to its student, for every method.

Base checkpoint, or what the method's own pre-training made of it (`d2llm.training.pretext`) -> the method builds its
student -> the shared sampler's batches, the method's objective, the one loop (`loop`). What differs between methods is
in their files; what must not differ (texts, order, updates, lengths) is here.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from d2llm.config.schema import Run
from d2llm.methods.base import TrainingContext
from d2llm.methods.registry import method as find_method
from d2llm.models.backbone import Backbone
from d2llm.models.precision import even_rows
from d2llm.run.artifacts import append_jsonl, atomic, read_json, read_jsonl, write_json
from d2llm.run.checkpoint import Resume
from d2llm.run.errors import ConfigError
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths
from d2llm.run.schemas import DEV, FINE_TUNING
from d2llm.training.loop import Rates, Record, fit, means
from d2llm.training.memory import FewerTexts
from d2llm.training.monitor import Monitor
from d2llm.training.optimization import accelerate_precision
from d2llm.training.pairs import PairData
from d2llm.training.parallel import Shares
from d2llm.training.trackers import Log

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator
    from torch import Tensor

    from d2llm.config.schema import Config
    from d2llm.config.sections import TrainingSettings
    from d2llm.models.batch import Batch
    from d2llm.models.student import Student


def run(config: Config, method: str, variant: str, seed: int, resume: Resume | None = None) -> None:
    """Train one run and save its student, its log and a summary."""
    from accelerate.utils import set_seed

    resume = resume or Resume()
    accelerator = accelerator_of(config.training)
    set_seed(seed)
    folder = Paths.of(config).run(method, variant, seed)
    # All processes know the same; the first one tells it.
    log_file = folder / "log.jsonl" if accelerator.is_main_process else None
    log = Log.of(log_file, resume, config.training.trackers, Paths.of(config), folder)
    chosen, recipe = find_method(method), config.recipe(method, variant)
    data = PairData.load(config, chosen, recipe, seed)
    started = time.perf_counter()
    student, pretext_seconds = begin(config, method, variant, log_file)
    student.to(accelerator.device)
    counts = student.parameter_counts()
    get_logger(__name__).info("%s/%s seed %d: %s", method, variant, seed, counts)
    tail = fine_tune(config, Run(method, variant, seed), student, data, accelerator, resume, log)
    log.close()
    if not accelerator.is_main_process:
        return
    with atomic(folder / "model") as place:
        student.save(place, start(config, method, variant))
    used = data.width if recipe.hard_negatives is None else min(data.width, recipe.hard_negatives)
    steps = config.training.updates(method)
    write_json(
        folder / "summary.json",
        {"method": method, "variant": variant, "seed": seed, "kind": chosen.kind,
         "pooling": student.pooling_spec, "scorer": student.scorer_spec, "parameters": counts, "updates": steps,
         "queries": steps * config.training.batch_size, "negatives_per_query": used, "pretext_seconds": pretext_seconds,
         "labels": data.counts, "seconds": round(resume.before + time.perf_counter() - started, 1), "last_losses": means(tail)},
    )  # fmt: skip


def accelerator_of(settings: TrainingSettings) -> Accelerator:
    """Device, precision and processes of a training. Raises ConfigError where others were started than the
    config says.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision=accelerate_precision(settings.precision)
    )
    if accelerator.num_processes != settings.processes:
        raise ConfigError(
            f"training.processes: {settings.processes} processes, started were {accelerator.num_processes}; "
            "start them by torchrun, as the workflow does"
        )
    return accelerator


def begin(config: Config, method: str, variant: str, log_file: Path | None) -> tuple[Student, float]:
    """The student as its training begins, and the seconds that its pre-training took, whose log is the beginning of the
    run's.
    """
    chosen, recipe, origin = find_method(method), config.recipe(method, variant), start(config, method, variant)
    seconds = 0.0
    if config.pretext_of(method, variant):
        # A run's log tells all of its story; what is shared with others is told in each of theirs.
        seconds = read_json(origin / "summary.json")["seconds"]
        if log_file is not None and (origin / "log.jsonl").exists():
            for record in read_jsonl(origin / "log.jsonl"):
                append_jsonl(log_file, record)
    student = chosen.build(Backbone.load(origin, chosen.kind), recipe)
    student.limit_length(config.training.max_length)
    return student, seconds


def fine_tune(
    config: Config, run: Run, student: Student, data: PairData, accelerator: Accelerator, resume: Resume,
    log: Log,
) -> list[Record]:  # fmt: skip
    """Train a student in place on the batches that all methods of a seed share; the records of the last tenth."""
    settings, chosen, recipe = config.training, find_method(run.method), config.recipe(run.method, run.variant)
    label, steps = f"{run.method}/{run.variant} seed {run.seed}", settings.updates(run.method)
    monitor = Monitor.load(config)
    # Not wrapped for several processes: `parallel` divides the texts of a step, and averages the gradients.
    wrapped = accelerator.prepare_model(student, evaluation_mode=True)
    if settings.processes > 1:
        student.shares = Shares(accelerator.process_index, settings.processes)
    student.train()

    def objective(batch: Batch) -> dict[str, Tensor]:
        with even_rows(accelerator.mixed_precision == "bf16"):  # the wrapping has the rest of `context.autocast`
            embedded = wrapped(batch)
        return chosen.objective(student, embedded, batch, recipe)

    def watch(number: int) -> None:
        if monitor.due(number, steps):
            log({"stage": DEV, "step": number, **monitor.measure(student, f"{label}, step {number}")})

    loop = partial(resume.loop, log_file=log.file)
    context = TrainingContext(accelerator=accelerator, loop=loop, log=log, log_every=settings.log_every)
    return fit(
        chosen.parameter_groups(student, recipe),
        lambda done: data.batches(settings.batch_size, steps, run.seed, done),
        objective,
        steps=steps,
        name=FINE_TUNING,
        label=label,
        context=context,
        rates=Rates(recipe.warmup, recipe.schedule, recipe.clip, recipe.betas, recipe.epsilon),
        memory=FewerTexts(student, texts_of, context.autocast, settings.texts_at_once),
        # What the method does not use is not embedded either.
        draw=lambda batch: batch.narrowed(recipe.hard_negatives),
        about=lambda batch: {"dataset": batch.dataset},
        watch=watch,
    )


def texts_of(batch: Batch) -> int:
    """How many texts a batch has."""
    return len(batch) * (2 + batch.negative_count)


def start(config: Config, method: str, variant: str) -> Path:
    """The folder of the model a run starts from."""
    paths, owner = Paths.of(config), config.pretext_of(method, variant)
    return (
        paths.pretext(method, owner) if owner else paths.base(find_method(method).base(config.recipe(method, variant)))
    )
