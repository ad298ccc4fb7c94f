"""Training: this suite's loop against sentence-transformers' trainer, on the same encoder, pairs, order of batches,
loss, updates and rates.

Two baselines whose loss is `MultipleNegativesRankingLoss` there (cosine, cross-entropy over the batch's positives and
hard negatives): BGE's fine-tuning, an encoder with [CLS] of which all weights train; and SGPT, a decoder with the
weighted mean, here with LoRA adapters, as most trainings of the suite have them. Both sides run in float32 with AdamW
and the method's schedule; quality is the mean of the headline scores on the run's development samples. A finished run
(`make`) gives base models and pairs; nothing of it is changed. The part of Python in a step is what is left of the
suite's time after the time in torch's operators.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, publish

from baselines.sgpt import DOCUMENT_BRACKETS, QUERY_BRACKETS
from d2llm.cli.main import COLLECT
from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.methods.registry import method
from d2llm.models.backbone import Backbone
from d2llm.models.lora import merge_lora
from d2llm.models.student import Student
from d2llm.run.paths import Paths
from d2llm.training import pretext
from d2llm.training.monitor import Monitor
from d2llm.training.pairs import PairData
from d2llm.training.train import run


def config_of(options: Any, folder: Path) -> Config:
    """The tier's own settings, with BGE without stages before and SGPT with adapters; inputs are linked into a folder of our own."""
    settings = {
        "include": [],
        "results": str(folder),
        "methods": {
            "bge": {"instruction": '""', "pretraining": {"steps": 0}, "unsupervised": {"steps": 0}},
            "sgpt": {"learning_rate": 2e-3, "tuning": {"kind": "lora", "r": 16, "alpha": 16.0}},
        },
    }
    settings["training"] = {"steps": options.steps, "dev_every": 0, "log_every": options.steps}
    config = load([options.config], settings)
    here, there = Paths.of(config), Paths(options.results)
    for name in ("data", "models/encoder", "models/decoder", "pairs"):
        (here.root / name).parent.mkdir(parents=True, exist_ok=True)
        (here.root / name).symlink_to((there.root / name).resolve())
    pretext.run(config, "bge", "base")  # of no updates: the base encoder itself
    return config


def framed(config: Config, name: str, words: Any) -> Callable[[list[str], str, str], list[str]]:
    """What puts a method's tokens around texts for sentence-transformers: its tokenizer where one frame serves all, strings otherwise."""
    from tokenizers.processors import TemplateProcessing

    if name == "bge":
        ends = [
            (token, words.tokenizer.convert_tokens_to_ids(token))
            for token in (words.tokenizer.cls_token, words.tokenizer.sep_token)
        ]
        words.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends
        )
        return lambda texts, role, mode: texts
    words.tokenizer.padding_side = "right"
    around = {"query": QUERY_BRACKETS, "passage": DOCUMENT_BRACKETS}
    return lambda texts, role, mode: (
        texts if mode == "symmetric" else [f"{around[role][0]}{text}{around[role][1]}" for text in texts]
    )


def reference(config: Config, name: str, seed: int) -> tuple[float, Student]:
    """(seconds, student): sentence-transformers' trainer over the very batches of the suite's plan."""
    from datasets import Dataset
    from peft import LoraConfig, inject_adapter_in_model
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from torch.utils.data import BatchSampler, SequentialSampler

    chosen, recipe, settings = method(name), config.recipe(name), config.training
    words = Transformer(str(Paths.of(config).base(chosen.kind)), max_seq_length=settings.max_length)
    frame = framed(config, name, words)
    if recipe.tuning.kind == "lora":
        adapters = LoraConfig(r=recipe.tuning.r, lora_alpha=recipe.tuning.alpha, target_modules="all-linear")
        words.model = inject_adapter_in_model(adapters, words.model)
    pooling = {"bge": "cls", "sgpt": "weightedmean"}[name]
    model = SentenceTransformer(
        modules=[words, Pooling(words.get_embedding_dimension(), pooling), Normalize()], device="cpu"
    )
    data = PairData.load(config, chosen)
    plain = chosen.build(Backbone.load(Paths.of(config).base(chosen.kind), chosen.kind), recipe)
    rows: list[dict[str, str]] = []
    for batch in data.batches(settings.batch_size, settings.steps, seed):
        passages = [
            [positive, *negatives] for positive, negatives in zip(batch.positives, batch.negatives, strict=True)
        ]
        queries = frame(batch.queries, "query", batch.mode)
        if not rows:  # both sides read the same tokens
            there = words.tokenizer(queries)["input_ids"]
            assert [tuple(ids) for ids in there] == plain.ids(batch.queries, "query", batch.mode)
        for query, texts in zip(queries, passages, strict=True):
            positive, *negatives = frame(texts, "passage", batch.mode)
            rows.append(
                {"anchor": query, "positive": positive} | {f"negative_{i}": text for i, text in enumerate(negatives)}
            )
    with tempfile.TemporaryDirectory() as place:
        given = SentenceTransformerTrainingArguments(
            output_dir=place, per_device_train_batch_size=settings.batch_size, num_train_epochs=1, learning_rate=recipe.learning_rate,
            lr_scheduler_type={"constant": "constant_with_warmup"}.get(recipe.schedule, recipe.schedule),
            warmup_steps=int(recipe.warmup * settings.steps) if recipe.warmup < 1 else int(recipe.warmup),
            weight_decay=recipe.weight_decay, adam_beta1=recipe.betas[0], adam_beta2=recipe.betas[1], adam_epsilon=recipe.epsilon,
            max_grad_norm=recipe.clip or 0.0, save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", use_cpu=not torch.cuda.is_available(),
            seed=seed, dataloader_drop_last=False,
            batch_sampler=lambda dataset, batch_size, drop_last, **_: BatchSampler(SequentialSampler(dataset), batch_size, drop_last),
        )  # fmt: skip
        loss = MultipleNegativesRankingLoss(model, scale=1 / recipe.temperature)
        trainer = SentenceTransformerTrainer(model=model, args=given, train_dataset=Dataset.from_list(rows), loss=loss)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        words.model.save_pretrained(f"{place}/model", state_dict=merge_lora(words.model))
        plain.backbone.tokenizer.save_pretrained(f"{place}/model")
        student = chosen.build(Backbone.load(f"{place}/model", chosen.kind), recipe)
    return seconds, student.eval()


def suite(config: Config, name: str, seed: int) -> tuple[float, Student]:
    """(seconds of the updates alone, student): the stage `train`, timed from its first update to its last."""
    from d2llm.training import loop

    clock: list[float] = []
    plain = loop.progress

    class Watched:
        """The loop's progress, with the time of every update."""

        def __init__(self, *given: Any) -> None:
            self.bar = plain(*given)
            self.show = self.bar.show

        def __iter__(self) -> Any:
            for batch in self.bar:
                clock.append(time.perf_counter())
                yield batch
            clock.append(time.perf_counter())

    loop.progress = Watched  # type: ignore[assignment]
    try:
        run(config, name, "base", seed)
    finally:
        loop.progress = plain
    return clock[-1] - clock[0], Student.load(Paths.of(config).run(name, "base", seed) / "model")


def overhead(config: Config, name: str, seed: int, steps: int = 40) -> tuple[float, float]:
    """(part of a step's time outside torch's operators, part of the reference-free step): by torch's own profiler."""
    from torch.profiler import ProfilerActivity, profile

    from d2llm.training.optimization import optimizer, schedule, step

    chosen, recipe, settings = method(name), config.recipe(name), config.training
    student = chosen.build(Backbone.load(Paths.of(config).base(chosen.kind), chosen.kind), recipe)
    student.limit_length(settings.max_length)
    student.train()
    adam = optimizer(chosen.parameter_groups(student, recipe), recipe.betas, recipe.epsilon)
    plan = schedule(adam, recipe.schedule, recipe.warmup, steps)
    batches = list(PairData.load(config, chosen).batches(settings.batch_size, steps, seed))

    def go(batch: Any) -> None:
        step(None, [chosen.objective(student, student(batch), batch, recipe)], adam, plan, recipe.clip, "benchmark")

    for batch in batches[:5]:
        go(batch)
    started = time.perf_counter()
    for batch in batches[5:]:
        go(batch)
    plain = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for batch in batches[5:]:
            go(batch)
    inside = (
        sum(
            event.self_cpu_time_total
            for event in profiled.key_averages()
            if event.key.startswith(("aten::", "torch::")) or "Backward" in event.key
        )
        / 1e6
    )
    return max(0.0, 1 - inside / plain), plain / (steps - 5)


def main() -> None:
    options = arguments(
        __doc__ or "",
        config={"default": "config/mini.yaml", "help": "a tier"},
        results={"type": Path, "default": Path("results/mini"), "help": "a finished run of it"},
        steps={"type": int, "default": 200},
        rounds={"type": int, "default": 3, "help": "seeds"},
        methods={"nargs": "+", "default": ["bge", "sgpt"], "choices": ["bge", "sgpt"]},
    )
    # As the command line sets it; the reference has it too.
    gc.set_threshold(*COLLECT)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        config = config_of(options, Path(place))
        watch = Monitor.load(load([options.config], {"include": [], "results": str(place)}))
        for name in options.methods:
            runs: dict[str, list[tuple[float, float]]] = {"sentence-transformers": [], "suite": []}
            for seed in range(1, options.rounds + 1):
                for side, call in (("sentence-transformers", reference), ("suite", suite)):
                    seconds, student = call(config, name, seed)
                    student.limit_length(config.training.max_length)
                    runs[side].append((seconds, float(np.mean(list(watch.measure(student, side).values())))))
            python, each = overhead(config, name, 1)
            print(f"{name}: outside torch's operators: {python:.1%} of {1000 * each:.1f} ms a step")
            base = [seconds for seconds, _ in runs["sentence-transformers"]]
            for side, values in runs.items():
                ratios = sorted(a / b for a, (b, _) in zip(base, values, strict=True))
                rows.append(
                    {"method": name, "what": side, "ms an update": 1000 * float(np.median([s for s, _ in values])) / options.steps,
                     "times faster": float(np.median(ratios)), "from": ratios[0], "to": ratios[-1],
                     "quality on dev": float(np.mean([q for _, q in values])), "spread": float(np.std([q for _, q in values]))}
                )  # fmt: skip
    settings = {
        "tier": config.tier,
        "updates": options.steps,
        "seeds": options.rounds,
        "batch": config.training.batch_size,
    }
    publish("training", rows, settings, options.json)


if __name__ == "__main__":
    main()
