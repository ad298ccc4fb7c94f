"""Stage `train`: the one training loop, for every method.

Base checkpoint, or what the method's own pre-training made of it (`d2llm.pretext`) -> the method builds its student -> the shared sampler's
batches, the method's objective, one optimiser. What differs between methods is in their files; what must not differ (texts, order, updates, lengths) is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from d2llm.artifacts import append_jsonl, atomic, read_frame, read_json, read_jsonl, write_json
from d2llm.contrastive_losses import off_diagonal
from d2llm.errors import ConfigError, DataError, TrainingError
from d2llm.gradient_cache import cached, fewer
from d2llm.logs import get_logger, progress
from d2llm.memory import retried
from d2llm.methods import Batch, TeacherTargets
from d2llm.methods import method as find_method
from d2llm.models.backbone import Backbone
from d2llm.monitor import Monitor
from d2llm.optimization import mixed, optimizer, schedule, step
from d2llm.parallel import Shares
from d2llm.paths import Paths
from d2llm.resume import Resume
from d2llm.text_ids import PairTextIds

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from accelerate import Accelerator

    from d2llm.config import Config
    from d2llm.methods import Method
    from d2llm.models.student import Student

PAIRS = {
    "qid": "str",
    "query": "str",
    "positive": "str",
    "dataset": "str",
    "mode": "str",
    "pack": "int",
    "marked": "list",
    "negatives": "list",
}


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


class PairData:
    """The training pairs with, for methods that use it, the teacher's scores."""

    def __init__(self, pairs: pd.DataFrame, scores: pd.DataFrame | None) -> None:
        self.pairs = pairs
        self.queries, self.positives = pairs["query"].tolist(), pairs["positive"].tolist()
        self.negatives = [list(found) for found in pairs["negatives"]]
        widths = {len(found) for found in self.negatives}
        if len(widths) != 1:
            raise DataError(
                f"pairs: every query needs the same number of negatives, found {sorted(widths)}; remove pairs/ and run again"
            )
        self.width = widths.pop()
        self.text_ids = PairTextIds(
            pairs["dataset"].tolist(), self.queries, self.positives, self.negatives, pairs["marked"].tolist()
        )
        self.scores = None if scores is None else _Scores(scores, self.width)
        # Rows of every pack, packs of every data set (one mode each).
        self.packs = [rows.to_numpy() for _, rows in pairs.groupby("pack", sort=True).groups.items()]
        owner = pairs.groupby("pack", sort=True)["dataset"].first().to_numpy()
        self.datasets = {str(name): np.flatnonzero(owner == name) for name in dict.fromkeys(owner)}
        self.modes = pairs.groupby("dataset")["mode"].first().to_dict()

    @classmethod
    def load(cls, config: Config, method: Method, teacher: str = "teacher") -> PairData:
        """Read what the run needs; a method that does not use a teacher never sees any scores."""
        pairs = read_frame(Paths.of(config).pairs, PAIRS)
        scores = None
        if method.uses_teacher:
            from d2llm.teacher_scores import read_scores

            scores = read_scores(config, pairs["qid"].tolist(), teacher)
        return cls(pairs, scores)

    def plan(self, size: int, steps: int, seed: int) -> list[tuple[str, list[int]]]:
        """`steps` batches of one data set each, as (data set, pack numbers): the same for every method of a seed.

        A data set is drawn in proportion to its size; its packs are reshuffled every pass.
        """
        rng = np.random.default_rng(seed)
        names = list(self.datasets)
        share = np.array([len(self.datasets[name]) for name in names], dtype=float)
        per_batch = max(1, size // len(self.packs[0]))
        queues: dict[str, list[int]] = {name: [] for name in names}
        out = []
        for name in rng.choice(names, size=steps, p=share / share.sum()):
            queue = queues[name]
            while len(queue) < per_batch:
                queue += rng.permutation(self.datasets[name]).tolist()
            out.append((str(name), queue[:per_batch]))
            del queue[:per_batch]
        return out

    def batches(self, size: int, steps: int, seed: int, done: int = 0) -> Batches:
        """The batches of `plan` after the first `done`, made one at a time."""
        return Batches(self, self.plan(size, steps, seed)[done:])

    def batch(self, dataset: str, packs: list[int]) -> Batch:
        """The batch of some packs; easy negatives are the other positives of a query's pack."""
        rows = np.concatenate([self.packs[number] for number in packs])
        teacher = None
        if self.scores is not None:
            teacher = self.scores.targets(rows, [len(self.packs[number]) for number in packs])
        return Batch(
            dataset=dataset, mode=self.modes[dataset], queries=[self.queries[i] for i in rows],
            positives=[self.positives[i] for i in rows], negatives=[self.negatives[i] for i in rows], teacher=teacher,
            text_ids=self.text_ids.of(rows),
        )  # fmt: skip


class Batches:
    """A sized iterable over planned batches."""

    def __init__(self, data: PairData, plan: list[tuple[str, list[int]]]) -> None:
        self.data, self.plan = data, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:
        for dataset, packs in self.plan:
            yield self.data.batch(dataset, packs)


class _Scores:
    """Teacher scores as arrays in the order of the training pairs."""

    def __init__(self, scores: pd.DataFrame, width: int) -> None:
        stack = {
            key: np.stack(scores[key]).astype(np.float32) for key in ("yes", "no", "easy_yes", "easy_no", "features")
        }
        if stack["yes"].shape[1] != width + 1:
            raise DataError(
                f"teacher scores cover {stack['yes'].shape[1] - 1} negatives a query, the pairs have {width}; remove teacher/scores and run again"
            )
        self.hard = np.stack([stack["yes"], stack["no"]], axis=-1)
        self.easy = np.stack([stack["easy_yes"], stack["easy_no"]], axis=-1)
        self.features = stack["features"].reshape(-1, width + 1, width + 1)

    def targets(self, rows: np.ndarray, sizes: list[int]) -> TeacherTargets:
        packs = torch.arange(len(rows)).split(sizes)
        index = torch.cat([off_diagonal(pack.expand(len(pack), -1)) for pack in packs])  # all but oneself
        hard = torch.from_numpy(self.hard[rows])
        return TeacherTargets(
            positive_logits=hard[:, 0], negative_logits=hard[:, 1:], easy_logits=torch.from_numpy(self.easy[rows]),
            easy_index=index, features=torch.from_numpy(self.features[rows]),
        )  # fmt: skip
