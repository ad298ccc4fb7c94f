"""Gradients by parts against gradients of the whole batch; memory that runs out; precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from test_training import prepared, train
from tiny_run import changed

from d2llm.config.schema import Config
from d2llm.methods import base as methods
from d2llm.models.batch import Batch, TeacherTargets
from d2llm.models.student import Student
from d2llm.run.artifacts import read_jsonl
from d2llm.run.errors import ConfigError, TrainingError
from d2llm.run.paths import Paths
from d2llm.training import optimization
from d2llm.training import train as training
from d2llm.training.gradient_cache import GradientCache
from d2llm.training.memory import retry_on_oom

TEXTS = [
    "甲乙",
    "丙",
    "丁戊己",
    "庚辛壬癸山",
    "水火木",
    "金土日月星云",
    "吃看",
    "给",
    "书花猫",
    "狗人天地",
    "不是",
    "能在的了",
]
# A published 0.05 would hide other entries where other texts are embedded together.
NO_DROPOUT = {"dropout": 0.0}


def batch(size: int = 4, count: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    logits = lambda *shape: torch.randn(*shape, 2, generator=generator)  # noqa: E731
    features = torch.randn(size, count + 1, count + 1, generator=generator)
    index = torch.stack([torch.tensor([j for j in range(size) if j != i]) for i in range(size)])
    targets = TeacherTargets(logits(size), logits(size, count), logits(size, size - 1), index, features)
    negatives = [[TEXTS[(2 * size + i * count + j) % len(TEXTS)] for j in range(count)] for i in range(size)]
    return Batch("s", "symmetric", TEXTS[:size], TEXTS[size : 2 * size], negatives, targets)


def student_of(name: str, more: dict | None = None, **backbone: float):
    method = methods.method(name)
    recipe = method.recipe(
        ({"pooling": {"heads": 4}, "interaction": {"hidden": 16}, "tuning": NO_DROPOUT} if name == "d2llm" else {})
        | (more or {})
    )
    torch.manual_seed(0)
    student = method.build(tiny.backbone(method.kind, **backbone), recipe)
    for key, parameter in student.named_parameters():
        if "lora_B" in key:  # zero at first, which would hide the other's gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return method, recipe, student.train()


def gradients(name: str, size: int | None, more: dict | None = None, **backbone: float) -> dict[str, torch.Tensor]:
    method, recipe, student = student_of(name, more, **backbone)
    torch.manual_seed(5)
    if size is not None:
        student.cache = GradientCache(student.passes, size)
    terms = method.objective(student, student(batch()), batch(), recipe)
    sum(terms.values()).backward()
    if student.cache is not None:
        student.cache.backward()
    return {key: p.grad.clone() for key, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["d2llm", "retromae", "udever", "colbert"])
@pytest.mark.parametrize("size", [1, 5, 100])
def test_the_gradient_by_parts_is_that_of_the_whole_batch(name: str, size: int) -> None:
    whole, parts = gradients(name, None), gradients(name, size)
    assert set(whole) == set(parts) and whole
    largest = max(float(g.abs().max()) for g in whole.values())
    for key, expected in whole.items():
        torch.testing.assert_close(
            parts[key], expected, rtol=1e-3, atol=1e-5 * largest, msg=lambda said, key=key: f"{key}: {said}"
        )


@pytest.mark.parametrize("name", ["d2llm", "retromae"])
@pytest.mark.parametrize("size", [None, 5])
def test_checkpointed_gradients_are_the_same_and_go_together_with_parts(
    name: str, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import modeling_utils

    calls, checkpoint = [], modeling_utils.checkpoint
    monkeypatch.setattr(modeling_utils, "checkpoint", lambda *a, **k: (calls.append(1), checkpoint(*a, **k))[1])
    whole = gradients(name, None)
    assert not calls
    found = gradients(name, size, {"gradient_checkpointing": True})
    assert calls and set(whole) == set(found)
    largest = max(float(g.abs().max()) for g in whole.values())
    for key, expected in whole.items():
        torch.testing.assert_close(found[key], expected, rtol=1e-3, atol=1e-5 * largest)


def test_both_passes_drop_the_same() -> None:
    _, _, student = student_of("retromae", hidden_dropout_prob=0.5)
    rows = student.ids(TEXTS, "query", "symmetric")
    seen: list[torch.Tensor] = []

    def embed(part):
        seen.append(student.passes(sorted(part, key=len)))
        return seen[-1]

    cache = GradientCache(embed, 5)
    before = torch.get_rng_state()
    found = cache.forward(sorted(rows, key=len))
    after = torch.get_rng_state()
    found.square().sum().backward()
    cache.backward()
    assert len(seen) == 6 and not torch.equal(before, after)
    for first, second in zip(seen[:3], seen[3:], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        assert second.requires_grad and not first.requires_grad
    assert torch.equal(torch.get_rng_state(), after)  # the second pass leaves no trace
    with pytest.raises(TrainingError, match="forward and backward in turn"):
        cache.backward()


def test_memory_that_runs_out_halves_the_texts_and_changes_nothing_else(
    tiny_scores: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    d2llm = tiny_scores.methods["d2llm"] | {"tuning": {"r": 2, "alpha": 2.0} | NO_DROPOUT}
    plain = changed(prepared(tiny_scores, tmp_path / "plain"), methods={"d2llm": d2llm})
    train(plain, "d2llm", "base", 1)
    short = changed(prepared(tiny_scores, tmp_path / "short"), methods={"d2llm": d2llm})
    most: list[int] = []
    passes = Student.passes

    def small(self: Student, rows):
        if len(rows) > 10:
            raise torch.OutOfMemoryError("no room")
        most.append(len(rows))
        return passes(self, rows)

    monkeypatch.setattr(Student, "passes", small)
    train(short, "d2llm", "base", 1)
    assert max(most) <= 10
    records = [read_jsonl(Paths.of(c).run("d2llm", "base", 1) / "log.jsonl") for c in (plain, short)]
    losses = [[r["loss"] for r in found if r["stage"] == "fine-tuning"] for found in records]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_one_text_too_much_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, student = student_of("retromae")
    student.cache = GradientCache(student.passes, 2)
    made = torch.optim.SGD(student.parameters(), lr=0.1)

    def update() -> dict[str, float]:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(TrainingError, match=r"out of memory with a single text at a time; lower training\.max_length"):
        retry_on_oom(update, training.smaller(student, made, 8, Accelerator(cpu=True), "here"))


@pytest.mark.parametrize("at_once", [None, 6])
def test_bfloat16_trains_like_float32(
    at_once: int | None, tiny_scores: Config, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        config = prepared(tiny_scores, tmp_path / precision)
        settings = config.training.model_dump() | {"precision": precision, "texts_at_once": at_once}
        config = changed(config, training=settings)
        AcceleratorState._reset_state(reset_partial_state=True)  # it is made once a process
        request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))
        train(config, "d2llm", "base", 1)
        records = read_jsonl(Paths.of(config).run("d2llm", "base", 1) / "log.jsonl")
        losses.append([record["loss"] for record in records if record["stage"] == "fine-tuning"])
        model = training.Backbone.load(Paths.of(config).run("d2llm", "base", 1) / "model" / "backbone", "decoder")
        assert next(model.parameters()).dtype == torch.float32
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)


def test_float16_without_a_gpu_is_refused() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"training\.precision: float16 needs a GPU"):
            optimization.mixed("float16")
