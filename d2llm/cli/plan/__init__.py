"""`d2llm plan`: what a configuration will cost, before anything runs: tokens, FLOPs, hours, memory and disk of every
kind of job.

How much text there is, is in `amounts`, what a model costs in `sizes`, a job of each stage in `jobs`; `requests` makes
of them what a cluster is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from d2llm.cli.plan.amounts import count_texts
from d2llm.cli.plan.devices import GIGA, device_of
from d2llm.cli.plan.jobs import Cost, Given, cost
from d2llm.cli.plan.sizes import all_sizes, row_sizes
from d2llm.config.data import HubTable
from d2llm.config.registry import declared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from d2llm.cli.plan.sizes import Sizes
    from d2llm.config.recipes import TunedWeights
    from d2llm.config.schema import Config
    from d2llm.data.build import Made


def plan(config: Config, device: str | None = None, usual: int = 50_000, data: Made | None = None) -> dict[str, Any]:
    """{"device", "models", "amounts", "costs", "disk", "assumed"} of a configuration on a device; None: the one it is
    meant for. Raises ConfigError for an unknown one, and for a model whose configuration cannot be read.
    """
    amount = count_texts(config, usual, data)
    chosen = device_of(device or config.device)
    models, guesses = all_sizes(config, amount.examples, online=True)
    rows, of_rows = row_sizes(config, online=True)
    given = Given(config, models, rows, amount, chosen if config.gpu.tf32 else chosen.exact())
    return {
        "device": chosen,
        "models": models,
        "amounts": amount,
        "costs": together(cost(given, stage, **arguments) for stage, arguments in all_jobs(config)),
        "disk": disk(given),
        "assumed": (*amount.assumed, *guesses, *of_rows),
    }


def all_jobs(config: Config) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every job of the run that loads a model, as stage and arguments, in the order of the run."""
    for name in config.bases():
        yield "base", {"model": name}
    shards, runs = config.negatives.shards, config.runs()
    if runs:
        yield from (("vectors", {"shard": str(i), "shards": str(shards)}) for i in range(shards) if shards > 1)
        yield "negatives", {}
    scoring = config.asked()
    for name in dict.fromkeys([*scoring, *(["teacher"] if "teacher" in config.references else [])]):
        yield "teacher", {"teacher": name}
    for name in scoring:
        parts = config.teacher.shards
        yield from (("teacher_scores", {"teacher": name, "shard": str(i), "shards": str(parts)}) for i in range(parts))
    owners = ((run.method, config.pretext_of(run.method, run.variant)) for run in runs)
    for method, variant in dict.fromkeys(owners):
        if variant is not None:
            yield "pretext", {"method": method, "variant": variant}
    yield from (("train", run._asdict()) for run in runs)
    parts = config.evaluation.shards
    for run in config.evaluations():
        if parts > 1:
            shared = {**run._asdict(), "shards": str(parts)}
            yield from (("evaluate_shard", {**shared, "shard": str(i)}) for i in range(parts))
        yield "evaluate", run._asdict()
    yield "runtime", {}


def together(costs: Iterator[Cost]) -> list[Cost]:
    """One line a kind of job: the mean of what they take, and the most memory; none for what takes no time."""
    lines: dict[str, list[Cost]] = {}
    for each in costs:
        lines.setdefault(each.stage, []).append(each)
    summary = []
    for jobs in lines.values():
        mean = {key: sum(getattr(job, key) for job in jobs) / len(jobs) for key in ("tokens", "flops", "hours")}
        most = {key: max(getattr(job, key) for job in jobs) for key in ("memory", "host")}
        if most["memory"] and mean["hours"]:
            summary.append(replace(jobs[0], jobs=len(jobs), **mean, **most))
    return summary


def disk(given: Given) -> dict[str, float]:
    """Bytes by what they hold."""
    config, models, amount = given.config, given.models, given.amount
    bases = sum(size.parameters * given.kept(name) for name, size in models.items())
    recipes = [(declared(run.method), config.recipe(run.method, run.variant)) for run in config.runs()]
    students = sum(4 * models[chosen.base(recipe)].changed(recipe.tuning) for chosen, recipe in recipes)
    owners = {(run.method, config.pretext_of(run.method, run.variant)) for run in config.runs()}
    bodies = [models[declared(name).base(config.recipe(name, own))] for name, own in owners if own is not None]
    asked = {arguments["teacher"] for stage, arguments in all_jobs(config) if stage == "teacher"}
    tuned = [config.teacher_of(name).tuning for name in asked if config.teacher_of(name).steps]
    count = config.negatives.per_query
    scores = amount.queries * 4 * (2 * (count + config.training.pack) + (count + 1) ** 2)
    keep = config.evaluation.keep
    sets = amount.split(config.evaluation.split)
    rows = sum(part.queries.count * (30 * keep if part.type == "retrieval" else 40) for part in sets)
    fetched = any(isinstance(table, HubTable) for table in config.data.files.downloads().values())
    return {
        "base models": bases,
        "tuned teachers": sum(_tuned(models["teacher"], tuning) for tuning in tuned) * given.kept("teacher"),
        "models pre-trained by methods": sum(4 * (size.body + size.vocabulary * size.hidden) for size in bodies),
        "trained students": students,
        "teacher scores": scores,
        "predictions": len(config.evaluations()) * rows,
    } | ({"downloads of the hub, not known before they are there": 0.0} if fetched else {})


def _tuned(size: Sizes, tuning: TunedWeights) -> int:
    """Weights that a tuned teacher has of its own, its head among them."""
    return size.parameters if tuning.kind == "full" else size.changed(tuning)


# ---------------------------------------------------------------------------------------------------------------- words
def smaller(stage: str) -> str:
    """The keys that make a job smaller."""
    if stage.startswith("pretext"):
        return "its stage's batch_size and max_length, gradient_checkpointing"
    if stage == "teacher, tuning":
        return "teacher.batch_pairs, teacher.tuning.first_layer"
    if stage.startswith(("teacher", "evaluate teacher")):
        return "teacher.batch_tokens, dtype, quantization"
    return "evaluation.batch_size" if stage.startswith("evaluate") else "texts_at_once, gradient_checkpointing"


def duration(hours: float) -> str:
    """Hours, or what is less than a tenth of one in minutes or seconds, so that small jobs do not read as nothing.

    >>> [duration(hours) for hours in (217.04, 1.5, 0.1, 0.05, 0.01, 1e-4)]
    ['217.0 h', '1.50 h', '0.10 h', '3.0 min', '36 s', 'under 1 s']
    """
    if hours >= 0.1:
        return f"{hours:.{2 if hours < 10 else 1}f} h"
    if hours * 60 >= 1:
        return f"{hours * 60:.1f} min"
    return f"{hours * 3600:.0f} s" if hours * 3600 >= 1 else "under 1 s"


def text(estimate: dict[str, Any]) -> str:
    """The plan as a table for a terminal."""
    device = estimate["device"]
    lines = [f"On {device.title} ({device.memory / GIGA:.0f} GB):", ""]
    for name, size in estimate["models"].items():
        lines.append(
            f"  {name:9} {size.parameters / 1e6:9.1f} M parameters, {size.layers} layers of width {size.hidden}"
        )
    lines += ["", f"  {'stage':24} {'jobs':>5} {'M tokens':>10} {'TFLOP':>12} {'GB':>7} {'time':>9} {'all':>9}"]
    for job in estimate["costs"]:
        over = f"  more than it has: see {smaller(job.stage)}" if job.memory > device.memory else ""
        lines.append(
            f"  {job.stage:24} {job.jobs:5} {job.tokens / 1e6:10.1f} {job.flops / 1e12:12.1f} "
            f"{job.memory / GIGA:7.1f} {duration(job.hours):>9} {duration(job.jobs * job.hours):>9}{over}"
        )
    total = sum(job.jobs * job.hours for job in estimate["costs"])
    lines += [
        "",
        f"  together {duration(total)} of one device (tokens, FLOPs and time: mean of a job; GB: the largest)",
        "",
        "  disk, GB:",
    ]
    lines += [f"    {value / GIGA:9.2f}  {name}" for name, value in estimate["disk"].items()]
    if estimate["assumed"]:
        lines += ["", "  assumed: " + "; ".join(estimate["assumed"])]
    lines += [
        "  Estimates: real runs differ by a factor of two and more, mostly by what share of the device's rate is "
        "reached."
    ]
    return "\n".join(lines)


def run(config: Config, device: str | None, queries: int) -> str:
    """The plan in words."""
    return text(plan(config, device, queries))
