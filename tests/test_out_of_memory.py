"""Memory that runs out in a method's own pre-training or in the teacher's tuning: the same batches in parts, with the same losses and weights; precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from test_baselines import MASK, STEPS, WORLD, adapted, built, padded
from test_negatives import changed_results
from test_resume import JOB, Stopped, stop_at
from test_teacher import SHORT, made, trivial
from tiny_run import changed

from baselines import bge, llara, retromae
from d2llm.config.schema import Config
from d2llm.methods.base import TrainingContext
from d2llm.models.backbone import head_of
from d2llm.models.enhanced_decoder import EnhancedDecoder
from d2llm.models.student import Student
from d2llm.run import jobs
from d2llm.run.artifacts import read_jsonl
from d2llm.run.checkpoint import Resume
from d2llm.run.errors import TrainingError
from d2llm.run.paths import Paths
from d2llm.teacher import tune as teacher_tuning
from d2llm.teacher.cross_encoder import Teacher
from d2llm.training import optimization, pretext
from d2llm.training.memory import retry_on_oom


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


# What runs out, and what of its arguments counts the examples. Batches are of six texts, BGE's second stage of six pairs.
PLACES = {
    "retromae": (retromae, "autoencoding_loss", lambda backbone, head, decoder, batch: len(batch.ids), 2),
    "llara": (llara, "adaptation_loss", lambda backbone, head, layout, chosen, *_: len(chosen), 2),
    "bge": (Student, "passes", lambda student, rows: len(rows), 5),
}


def same(first: torch.nn.Module, second: torch.nn.Module, tolerance: float) -> None:
    for (key, one), two in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        # A softmax takes no notice of what is added to all keys: that bias has no gradient but rounding, which AdamW makes large.
        if not key.endswith("attention.self.key.bias") or not tolerance:
            torch.testing.assert_close(two, one, atol=tolerance, rtol=tolerance, msg=key)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("order", [WORLD[::-1], ["日月", "", "丙丁", "", "星", ""]])
def test_a_pretext_stage_in_parts_is_the_same(
    name: str, order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second order leaves half of the texts without one that follows, which parts share unequally."""
    whole, log = adapted(name, tmp_path / "whole", next_texts=order)
    seen = narrow(monkeypatch, *PLACES[name])
    parts, again = adapted(name, tmp_path / "parts", next_texts=order)
    assert seen and max(seen) <= PLACES[name][3]
    assert [set(record) for record in again] == [set(record) for record in log]
    for key in set(log[0]) - {"stage", "step"}:
        values = [[record[key] for record in records if key in record] for records in (log, again)]
        np.testing.assert_allclose(values[1], values[0], rtol=2e-3, atol=1e-4, err_msg=key)
    same(whole, parts, 3e-3)


def test_parts_of_unequal_texts_weigh_what_they_hide(tmp_path: Path) -> None:
    backbone = tiny.backbone("encoder", tmp_path)
    head = head_of(backbone.language_model())
    torch.manual_seed(1)
    decoder = EnhancedDecoder(backbone.model.config)
    ids, mask = padded("甲乙丙丁戊己庚", "山", "水火木", "金土日月星")
    stage = retromae.Autoencoding()
    whole = retromae.masked(ids, mask, stage, MASK, backbone.rows, torch.Generator().manual_seed(5))
    expected = retromae.autoencoding_loss(backbone, head, decoder, whole)
    for parts in (2, 3, 4):
        found = whole.split(parts)
        for key, value in expected.items():
            terms = [
                retromae.autoencoding_loss(backbone, head, decoder, part)[key] * shares[key] for part, shares in found
            ]
            torch.testing.assert_close(sum(terms), value, msg=f"{key}, {parts} parts")


def remembering(told: list[dict[str, Any]], notes: dict[str, Any], **more: Any) -> TrainingContext:
    """A context whose loop has these notes of an earlier process, and tells those it is given."""

    def loop(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(done=0, notes=notes, after=lambda update, **kept: told.append(kept))

    return TrainingContext(loop=loop, **more)


def test_what_an_attempt_that_failed_has_sent_back_is_thrown_away() -> None:
    """The second of two parts fails once; the gradient must not hold the first part twice."""
    weight, failed = torch.nn.Parameter(torch.ones(1)), list[int]()

    def loss(batch: list[float]) -> dict[str, torch.Tensor]:
        if len(batch) == 4 or (3.0 in batch and not failed):
            failed.extend([1] if len(batch) < 4 else [])
            raise torch.OutOfMemoryError
        return {"sum": (weight * torch.tensor(batch)).mean()}

    def split(batch: list[float], parts: int) -> list[tuple[list[float], dict[str, float]]]:
        size = -(-len(batch) // parts)
        pieces = [batch[start : start + size] for start in range(0, len(batch), size)]
        return [(piece, {"sum": len(piece) / len(batch)}) for piece in pieces]

    logged: list[dict[str, Any]] = []
    context = remembering([], {}, log=logged.append)
    group = optimization.groups([("weight", weight)], 0.1, 0.0)
    optimization.fit(group, [[1.0, 2.0, 3.0, 4.0]], loss, steps=1, name="mine", context=context, split=split, clip=None)
    assert failed and logged[0]["gradient_norm"] == pytest.approx(2.5) == logged[0]["sum"]


def test_texts_at_a_time_are_those_of_before_the_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, recipe, student = built(
        "bge", tiny.backbone("encoder", tmp_path), unsupervised={"steps": 2, "batch_size": 5, "pairs": "crop"}
    )
    sizes: list[int] = []
    real = Student.passes
    monkeypatch.setattr(Student, "passes", lambda self, rows: (sizes.append(len(rows)), real(self, rows))[1])
    kept: list[dict[str, Any]] = []
    bge.contrast_pairs(student, WORLD, recipe.unsupervised, remembering(kept, {"parts": 1, "texts_at_once": 3}), "bge")
    assert max(sizes) == 3 and [notes["texts_at_once"] for notes in kept] == [3, 3]


@pytest.mark.parametrize("name", ["retromae", "llara", "bge"])
def test_one_text_that_does_not_fit_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, function, size, _ = PLACES[name]
    narrow(monkeypatch, owner, function, size, 0)
    told = (
        "single text at a time"
        if name == "bge"
        else r"step 1: out of memory; that was one example at a time; lower max_length"
    )
    with pytest.raises(TrainingError, match=told):
        adapted(name, tmp_path)


def test_a_loss_that_cannot_be_split_says_what_to_lower() -> None:
    weight = torch.nn.Parameter(torch.ones(1))

    def loss(batch: list[int]) -> dict[str, torch.Tensor]:
        raise torch.OutOfMemoryError

    group = optimization.groups([("weight", weight)], 0.1, 0.0)
    with pytest.raises(TrainingError, match=r"mine, step 1: out of memory; lower its batch_size"):
        optimization.fit(group, [[1, 2]], loss, steps=1, name="mine", context=TrainingContext())


def test_every_share_adds_up_to_one() -> None:
    texts = [((7, 8), (9,)), ((0, 5, 6), ()), ((4,), (0,)), ((3, 3), ()), ((2, 9), (8, 8))]
    for parts in (1, 2, 3, 4, 5, 9):
        found = llara.split(texts, parts, {0})
        assert sum((part for part, _ in found), []) == texts and len(found) <= parts
        assert sum(shares["language_model"] for _, shares in found) == pytest.approx(1.0)
    # Two bags in all, so each counts half; a part that has the first alone does not halve it itself.
    (first, one), (second, two) = llara.split(texts[:2], 2, {0})
    assert (one["ebae"], two["ebae"]) == (0.5, 0.25) and (one["ebar"], two["ebar"]) == (1.0, 0.0)


def tuned(
    folder: Path, resume: Resume | None = None, precision: str = "float32", **more: Any
) -> tuple[Teacher, list[dict]]:
    teacher = made(seed=3, steps=12, asymmetric_share=0.3, **SHORT, **more)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(5)
    teacher_tuning.tune(teacher, trivial(40, 1), teacher.settings, folder / "log.jsonl", resume, precision)
    return teacher, read_jsonl(folder / "log.jsonl")


@pytest.fixture
def every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_tuning, "LOG_EVERY", 1)


@pytest.mark.usefixtures("every_update")
def test_the_teacher_in_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the candidates have no word with a relation in one case, so that the parts' shares differ."""
    frame = trivial(40, 1)
    frame["relations"] = [["10", "50"] if i % 3 else ["00", "00"] for i in range(40)]
    monkeypatch.setattr("test_out_of_memory.trivial", lambda *_: frame)
    whole, log = tuned(tmp_path / "whole")
    seen = narrow(monkeypatch, Teacher, "forward", lambda teacher, rows, mode: len(rows), 2)
    parts, again = tuned(tmp_path / "parts")
    assert len(log) == 12 and seen and max(seen) <= 2
    settings = whole.settings
    planned = teacher_tuning._Examples(whole, frame).batches(
        settings.batch_pairs, settings.steps, settings.seed, settings.asymmetric_share
    )
    assert [record["mode"] for record in log] == [mode for mode, _ in planned]
    assert len({mode for mode, _ in planned}) == 2
    for key in ("answer", "relation", "gradient_norm"):
        values = [[record.get(key, 0.0) for record in records] for records in (log, again)]
        np.testing.assert_allclose(values[1], values[0], rtol=2e-3, atol=1e-4, err_msg=key)
    same(whole.model, parts.model, 3e-3)


@pytest.mark.usefixtures("every_update")
def test_parts_outlive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that ran out before the kill is not tried again, and the rest is the same bit for bit."""
    failed: list[int] = []
    real = Teacher.forward

    def once(self: Teacher, rows: Any, mode: str, begun: Any = ()) -> Any:
        if not failed and torch.is_grad_enabled():
            failed.append(1)
            raise torch.OutOfMemoryError
        return real(self, rows, mode, begun)

    monkeypatch.setattr(Teacher, "forward", once)
    whole, log = tuned(tmp_path / "whole")
    failed.clear()
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at(patched, 5)
        tuned(tmp_path / "cut", Resume(tmp_path / "state", JOB, 1e-9))
    sizes: list[int] = []
    monkeypatch.setattr(
        Teacher,
        "forward",
        lambda self, rows, mode, begun=(): (sizes.append(len(rows)), real(self, rows, mode, begun))[1],
    )
    cut, again = tuned(tmp_path / "cut", Resume(tmp_path / "state", JOB, 1e-9))
    assert max(sizes) <= 3  # of batches of six rows
    assert again == log
    same(whole.model, cut.model, 0.0)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Accelerate's state, which is made once a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh", "every_update")
def test_the_teacher_in_bfloat16(tmp_path: Path) -> None:
    logs = {}
    for precision in ("float32", "bfloat16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        teacher, logs[precision] = tuned(tmp_path / precision, None, precision)
        assert next(teacher.model.parameters()).dtype == torch.float32
    losses = [[record["loss"] for record in logs[precision]] for precision in logs]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", STEPS)
def test_a_pretext_stage_in_bfloat16(name: str, tmp_path: Path) -> None:
    plain, log = adapted(name, tmp_path / "plain", next_texts=WORLD[::-1])
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    student, half = adapted(name, tmp_path / "half", next_texts=WORLD[::-1], accelerator=accelerator)
    assert next(student.parameters()).dtype == torch.float32
    losses = [[record["loss"] for record in records][:8] for records in (log, half)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.1)


def test_precision_is_a_setting_of_these_stages_where_it_is_not_the_usual(tiny_scores: Config) -> None:
    half = tiny_scores.model_copy(
        update={"training": tiny_scores.training.model_copy(update={"precision": "bfloat16"})}
    )
    for stage, arguments in (("teacher", {"teacher": "teacher"}), ("pretext", {"method": "bge", "variant": "base"})):
        assert "training.precision" not in jobs.settings(tiny_scores, stage, **arguments)
        assert jobs.settings(half, stage, **arguments)["training.precision"] == "bfloat16"


@pytest.mark.slow
@pytest.mark.usefixtures("fresh", "every_update")
def test_the_stages_compute_in_the_configured_precision(
    tiny_scores: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretext, "thinned", lambda write: write)
    losses: dict[str, list[list[float]]] = {}
    for precision in ("float32", "bfloat16"):
        config = changed_results(tiny_scores, tmp_path / precision)
        config = changed(config, training=config.training.model_dump() | {"precision": precision})
        for stage, folder in (
            (lambda c: pretext.run(c, "retromae", "base"), Paths.of(config).pretext("retromae", "base")),
            (lambda c: teacher_tuning.run(c, "teacher"), Paths.of(config).teacher("teacher")),
        ):
            AcceleratorState._reset_state(reset_partial_state=True)
            stage(config)
            losses.setdefault(folder.name, []).append([record["loss"] for record in read_jsonl(folder / "log.jsonl")])
    for full, half in losses.values():
        assert full != half and len(full) == len(half) > 1
        np.testing.assert_allclose(half, full, rtol=0.1)


def test_the_next_attempt_draws_what_the_first_drew() -> None:
    torch.manual_seed(3)
    expected, drawn = torch.rand(4), list[torch.Tensor]()
    torch.manual_seed(3)

    def update() -> torch.Tensor:
        drawn.append(torch.rand(4))
        if len(drawn) < 3:
            raise torch.OutOfMemoryError
        return drawn[-1]

    assert torch.equal(retry_on_oom(update, lambda error: None), expected)
    assert len(drawn) == 3
