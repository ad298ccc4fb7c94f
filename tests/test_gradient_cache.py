"""Gradients by parts against gradients of the whole batch; memory that runs out; precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from test_training import prepared, train
from tiny_run import changed

from d2llm.config.schema import Config
from d2llm.methods.registry import method as find_method
from d2llm.models.backbone import Backbone
from d2llm.models.batch import Batch, TeacherTargets
from d2llm.models.student import Student
from d2llm.run.artifacts import read_jsonl
from d2llm.run.errors import ConfigError, TrainingError
from d2llm.run.paths import Paths
from d2llm.training.gradient_cache import GradientCache
from d2llm.training.optimization import accelerate_precision

TEXTS = ["".join(tiny.WORDS[3 * i : 3 * i + size]) for i, size in enumerate((2, 1, 3, 5, 3, 6, 2, 1, 3, 4, 2, 4))]
# A published 0.05 would hide other entries where other texts are embedded together.
NO_DROPOUT = {"dropout": 0.0}
SMALL = {"d2llm": {"pooling": {"heads": 4}, "interaction": {"hidden": 16}, "tuning": NO_DROPOUT}}


def batch(size: int = 4, count: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    logits = lambda *shape: torch.randn(*shape, 2, generator=generator)  # noqa: E731
    features = torch.randn(size, count + 1, count + 1, generator=generator)
    index = torch.stack([torch.tensor([j for j in range(size) if j != i]) for i in range(size)])
    targets = TeacherTargets(logits(size), logits(size, count), logits(size, size - 1), index, features)
    negatives = [[TEXTS[(2 * size + i * count + j) % len(TEXTS)] for j in range(count)] for i in range(size)]
    return Batch("s", "symmetric", TEXTS[:size], TEXTS[size : 2 * size], negatives, targets)


def student_of(name: str, more: dict | None = None, **backbone: float):
    method = find_method(name)
    recipe = method.recipe(SMALL.get(name, {}) | (more or {}))
    torch.manual_seed(0)
    student = method.build(tiny.backbone(method.kind, **backbone), recipe)
    for key, parameter in student.named_parameters():
        if "lora_B" in key:  # zero at first, which would hide the other's gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return method, recipe, student.train()


def gradients(name: str, size: int | None, more: dict | None = None) -> dict[str, torch.Tensor]:
    method, recipe, student = student_of(name, more)
    torch.manual_seed(5)
    if size is not None:
        student.cache = GradientCache(student.passes, size)
    sum(method.objective(student, student(batch()), batch(), recipe).values()).backward()
    if student.cache is not None:
        student.cache.backward()
    return {key: p.grad.clone() for key, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["d2llm", "retromae", "udever", "colbert"])
@pytest.mark.parametrize(("size", "checkpointed"), [(1, False), (5, False), (100, False), (None, True), (5, True)])
def test_the_gradient_by_parts_is_that_of_the_whole_batch(
    name: str, size: int | None, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And checkpointed gradients are the same and go together with parts."""
    from transformers import modeling_utils

    calls, checkpoint = [], modeling_utils.checkpoint
    monkeypatch.setattr(modeling_utils, "checkpoint", lambda *a, **k: (calls.append(1), checkpoint(*a, **k))[1])
    whole = gradients(name, None)
    assert not calls
    parts = gradients(name, size, {"gradient_checkpointing": checkpointed})
    assert bool(calls) == checkpointed and set(whole) == set(parts) and whole
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for key, expected in whole.items():
        torch.testing.assert_close(parts[key], expected, rtol=1e-3, atol=1e-5 * largest)


def test_both_passes_drop_the_same() -> None:
    _, _, student = student_of("retromae", hidden_dropout_prob=0.5)
    vectors: list[torch.Tensor] = []

    def embed(part):
        vectors.append(student.passes(sorted(part, key=len)))
        return vectors[-1]

    cache, before = GradientCache(embed, 5), torch.get_rng_state()
    embedded = cache.forward(sorted(student.ids(TEXTS, "query", "symmetric"), key=len))
    after = torch.get_rng_state()
    embedded.square().sum().backward()
    cache.backward()
    assert len(vectors) == 6 and not torch.equal(before, after)
    for first, second in zip(vectors[:3], vectors[3:], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        assert second.requires_grad and not first.requires_grad
    assert torch.equal(torch.get_rng_state(), after)  # the second pass leaves no trace
    with pytest.raises(TrainingError, match="forward and backward in turn"):
        cache.backward()


def losses(config: Config) -> list[float]:
    """Of D2LLM's fine-tuning, as its log has them."""
    train(config, "d2llm", "base", 1)
    records = read_jsonl(Paths.of(config).run("d2llm", "base", 1) / "log.jsonl")
    return [record["loss"] for record in records if record["stage"] == "fine-tuning"]


def test_memory_that_runs_out_halves_the_texts_and_changes_nothing_else(
    tiny_scores: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    d2llm = tiny_scores.methods["d2llm"] | {"tuning": {"r": 2, "alpha": 2.0} | NO_DROPOUT}
    plain, short = (changed(prepared(tiny_scores, tmp_path / n), methods={"d2llm": d2llm}) for n in ("plain", "short"))
    expected, sizes, passes = losses(plain), [], Student.passes

    def small(self: Student, rows):
        if len(rows) > 10:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(rows))
        return passes(self, rows)

    monkeypatch.setattr(Student, "passes", small)
    np.testing.assert_allclose(losses(short), expected, rtol=1e-3)
    assert 5 < max(sizes) <= 10


@pytest.mark.parametrize("at_once", [None, 6])
def test_bfloat16_trains_like_float32(
    at_once: int | None, tiny_scores: Config, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    logs = []
    for precision in ("float32", "bfloat16"):
        config = prepared(tiny_scores, tmp_path / precision)
        settings = config.training.model_dump() | {"precision": precision, "texts_at_once": at_once}
        config = changed(config, training=settings)
        AcceleratorState._reset_state(reset_partial_state=True)  # there is one a process
        request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))
        logs.append(losses(config))
        model = Backbone.load(Paths.of(config).run("d2llm", "base", 1) / "model" / "backbone", "decoder")
        assert next(model.parameters()).dtype == torch.float32
    assert logs[0] != logs[1]
    np.testing.assert_allclose(logs[1], logs[0], rtol=0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_float16_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.precision: float16 needs a GPU"):
        accelerate_precision("float16")
