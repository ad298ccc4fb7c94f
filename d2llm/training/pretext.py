"""Stage `pretext`: a method's own pre-training on unlabelled text, done once and shared by all its seeds, and by
variants that leave it as it is.

Published checkpoints are made the same way: pre-trained once, fine-tuned many times. What comes out is a base model in
Hugging Face format, from which `d2llm.training.train` starts as it starts from any other.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from d2llm.methods.base import TrainingContext
from d2llm.methods.registry import method as find_method
from d2llm.models.backbone import Backbone
from d2llm.run.artifacts import atomic, read_frame, write_json
from d2llm.run.checkpoint import Resume
from d2llm.run.paths import Paths
from d2llm.training.optimization import accelerate_precision
from d2llm.training.trackers import Log

if TYPE_CHECKING:
    from d2llm.config.schema import Config


def run(config: Config, method: str, variant: str, resume: Resume | None = None) -> None:
    """Pre-train and save the backbone, with its log and a summary. The seed is the config's first."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    paths, seed, resume = Paths.of(config), config.seeds[0], resume or Resume()
    chosen, recipe = find_method(method), config.recipe(method, variant)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision=accelerate_precision(config.training.precision)
    )
    set_seed(seed)
    texts = read_frame(paths.pretraining, {"text": "str", "next_text": "str"})
    started = time.perf_counter()
    base = paths.base(chosen.base(recipe))
    student = chosen.build(Backbone.load(base, chosen.kind), recipe)
    student.limit_length(config.training.max_length)
    student.to(accelerator.device)
    with atomic(paths.pretext(method, variant)) as folder:
        folder.mkdir(parents=True)
        log = Log.of(folder / "log.jsonl", resume, config.training.trackers, paths, paths.pretext(method, variant))
        # What follows a text, where the source knows it.
        following = texts["next_text"].tolist() if texts["next_text"].astype(bool).any() else None
        context = TrainingContext(
            seed=seed, next_texts=following, device=accelerator.device, accelerator=accelerator,
            loop=partial(resume.loop, log_file=log.file), log=log,
        )  # fmt: skip
        chosen.pretext(student, texts["text"].tolist(), recipe, context)
        log.close()
        student.backbone.save(folder, base)
        seconds = resume.before + time.perf_counter() - started
        write_json(folder / "summary.json", {"method": method, "seconds": round(seconds, 2)})
