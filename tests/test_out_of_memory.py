"""Memory that runs out: gradients by parts against those of the whole batch, a method's own pre-training and the teacher's
tuning in parts against whole batches; precision. The strategies by themselves are in test_loop.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from test_baselines import adapted
from test_resume import CASES, WORK, place
from test_teacher import SHORT, made, trivial
from tiny_run import changed

from baselines import llara, retromae
from d2llm.config.schema import Config
from d2llm.methods.registry import method as find_method
from d2llm.models.batch import Batch, TeacherTargets
from d2llm.models.student import Student
from d2llm.run import jobs
from d2llm.run.artifacts import read_jsonl
from d2llm.run.checkpoint import Resume
from d2llm.run.errors import ConfigError, TrainingError
from d2llm.run.paths import Paths
from d2llm.teacher import tune as teacher_tuning
from d2llm.teacher.cross_encoder import Teacher
from d2llm.training.gradient_cache import GradientCache
from d2llm.training.optimization import accelerate_precision
from d2llm.training.trackers import Log

TEXTS = ["甲吃书乙看", "乙", "丙给书", "丁吃看日月星云", "山水", "日月星"]  # unequal: so are the parts' shares
# What runs out of memory, how its arguments count the examples, and for how many there is room (batches are of six
# texts, BGE's second stage of six pairs).
PLACES: dict[str, tuple[Any, str, Callable[..., int], int]] = {
    "retromae": (retromae, "autoencoding_loss", lambda backbone, head, decoder, batch: len(batch.ids), 2),
    "llara": (llara, "adaptation_loss", lambda backbone, head, layout, chosen, *_: len(chosen), 2),
    "bge": (Student, "passes", lambda student, rows: len(rows), 5),
}


def narrow(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, size: Callable[..., int], room: int) -> list[int]:
    """Let a function run out of memory for more than `room` examples; returns the sizes that fitted, as they come."""
    real, seen = getattr(owner, name), list[int]()

    def small(*arguments: Any, **named: Any) -> Any:
        if torch.is_grad_enabled():  # what is computed without takes little
            if size(*arguments) > room:
                raise torch.OutOfMemoryError("no room")
            seen.append(size(*arguments))
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, small)
    return seen


def check_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    for (key, one), two in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        # A softmax takes no notice of what is added to all keys: that bias has no gradient but rounding, which AdamW
        # makes large.
        if not key.endswith("attention.self.key.bias"):
            torch.testing.assert_close(two, one, atol=3e-3, rtol=3e-3, msg=key)


def check_logs(whole: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    assert [set(record) for record in parts] == [set(record) for record in whole] and whole
    for key in set().union(*whole) - {"stage", "step", "mode"}:
        values = [[record[key] for record in records if key in record] for records in (whole, parts)]
        np.testing.assert_allclose(values[1], values[0], rtol=2e-3, atol=1e-4, err_msg=key)


# ---------------------------------------------------------------------------------------------- gradients by parts
SENTENCES = ["".join(tiny.WORDS[3 * i : 3 * i + size]) for i, size in enumerate((2, 1, 3, 5, 3, 6, 2, 1, 3, 4, 2, 4))]
# A published dropout of 0.05 would hide other entries where other texts are embedded together.
SMALL = {"d2llm": {"pooling": {"heads": 4}, "interaction": {"hidden": 16}, "tuning": {"dropout": 0.0}}}


def batch(size: int = 4, count: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    logits = lambda *shape: torch.randn(*shape, 2, generator=generator)  # noqa: E731
    features = torch.randn(size, count + 1, count + 1, generator=generator)
    index = torch.stack([torch.tensor([j for j in range(size) if j != i]) for i in range(size)])
    targets = TeacherTargets(logits(size), logits(size, count), logits(size, size - 1), index, features)
    negatives = [[SENTENCES[(2 * size + i * count + j) % len(SENTENCES)] for j in range(count)] for i in range(size)]
    return Batch("s", "symmetric", SENTENCES[:size], SENTENCES[size : 2 * size], negatives, targets)


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
@pytest.mark.parametrize(("size", "checkpointed"), [(1, False), (5, False), (None, True), (5, True)])
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
    embedded = cache.forward(sorted(student.ids(SENTENCES, "query", "symmetric"), key=len))
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


# ------------------------------------------------------------------------------------------ a method's own pre-training
@pytest.mark.parametrize("name", PLACES)
def test_a_pretext_stage_in_parts_is_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the texts have none that follows: parts share these unequally, too."""
    adapt = partial(adapted, name, texts=TEXTS, steps=8, next_texts=["日月", "", "丙丁", "", "星", ""])
    whole, log = adapt(tmp_path / "whole")
    seen = narrow(monkeypatch, *PLACES[name])
    parts, again = adapt(tmp_path / "parts")
    assert seen and max(seen) <= PLACES[name][3]
    check_logs(log, again)
    check_same(whole, parts)


# ---------------------------------------------------------------------------------------------------------- the teacher
def tuned(folder: Path, frame: Any) -> tuple[Teacher, list[dict[str, Any]]]:
    teacher = made(seed=3, steps=12, asymmetric_share=0.3, **SHORT)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(5)
    teacher_tuning.tune(teacher, frame, teacher.settings, Log(folder / "log.jsonl"))
    return teacher, read_jsonl(folder / "log.jsonl")


def test_the_teacher_in_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the groups have no word with a relation, so that the parts' shares differ."""
    frame = trivial(40, 1)
    monkeypatch.setattr(teacher_tuning, "LOG_EVERY", 1)
    frame["relations"] = [["10", "50"] if i % 3 else ["00", "00"] for i in range(40)]
    whole, log = tuned(tmp_path / "whole", frame)
    seen = narrow(monkeypatch, Teacher, "forward", lambda teacher, rows, *_: len(rows), 2)
    parts, again = tuned(tmp_path / "parts", frame)
    assert len(log) == 12 and seen and max(seen) <= 2
    assert [record["mode"] for record in log] == [record["mode"] for record in again]
    assert {record["mode"] for record in log} == {"symmetric", "asymmetric"}
    check_logs(log, again)
    check_same(whole.model, parts.model)


# ------------------------------------------------------------------------------------------------------------ precision
@pytest.fixture
def fresh() -> Iterator[Callable[[], None]]:
    """Accelerate's state is made once a process; called: it will be made anew."""

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)

    reset()
    yield reset
    reset()


def test_precision_is_a_setting_of_these_stages_where_it_is_not_the_usual(tiny_scores: Config) -> None:
    half = changed(tiny_scores, training={"precision": "bfloat16"})
    for stage, arguments in (("teacher", {"teacher": "teacher"}), ("pretext", {"method": "bge", "variant": "base"})):
        assert "training.precision" not in jobs.settings(tiny_scores, stage, **arguments)
        assert jobs.settings(half, stage, **arguments)["training.precision"] == "bfloat16"


MORE = [pytest.param(case, marks=pytest.mark.slow) for case in ("d2llm by parts", "llara, own")]


@pytest.mark.parametrize("case", ["d2llm", "bge, own", "teacher", *MORE])
def test_a_stage_computes_in_the_configured_precision(
    case: str, tiny_scores: Config, tmp_path: Path, fresh: Callable[[], None]
) -> None:
    """In bfloat16 near float32, not the same; weights stay float32."""
    (stage, name, changes), losses = CASES[case], list[list[float]]()
    work, result = WORK[stage]
    for precision in ("float32", "bfloat16"):
        training = changes.get("training", {}) | {"precision": precision}
        config = place(tiny_scores, tmp_path / precision, **(changes | {"training": training}))
        fresh()
        work(config, name, Resume())
        folder = result(Paths.of(config), name)
        losses.append([record["loss"] for record in read_jsonl(folder / "log.jsonl") if "loss" in record])
        weights = [value for file in folder.rglob("*.safetensors") for value in load_file(file).values()]
        assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.float32}
    assert losses[0] != losses[1] and losses[0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_float16_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.precision: float16 needs a GPU"):
        accelerate_precision("float16")
