"""Memory that runs out where the loop is used: a method's own pre-training and the teacher's tuning in parts have the
losses and weights of whole batches; precision.

The strategies by themselves are in test_loop.py, fine-tuning by fewer texts in test_gradient_cache.py.
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
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from test_loop import JOB, Stopped
from test_negatives import changed_results
from test_resume import stop_at
from test_teacher import SHORT, made, trivial
from tiny_run import changed

from baselines import llara, retromae
from d2llm.config.schema import Config
from d2llm.methods.base import TrainingContext
from d2llm.methods.registry import method as find_method
from d2llm.models.backbone import head_of
from d2llm.models.enhanced_decoder import EnhancedDecoder
from d2llm.models.student import Student
from d2llm.run import jobs
from d2llm.run.artifacts import read_jsonl
from d2llm.run.checkpoint import Resume
from d2llm.run.paths import Paths
from d2llm.teacher import tune as teacher_tuning
from d2llm.teacher.cross_encoder import Teacher
from d2llm.training import pretext

TEXTS = ["甲吃书", "乙看花", "丙给书", "丁吃看", "山水火", "日月星"]
STAGE = {"steps": 8, "batch_size": 6, "learning_rate": 5e-3, "warmup": 2}
# Of each method: its stages, and settings the tiny vocabulary can spell.
OWN: dict[str, dict[str, Any]] = {
    "bge": {"pretraining": STAGE | {"steps": 4}, "unsupervised": STAGE, "instruction": "给书看"},
    "retromae": {"pretraining": STAGE},
    "llara": {"adaptation": STAGE, "prompts": {"prefix": '"', "summary": "吃，", "prediction": "看，"}},
}
# What runs out of memory, how its arguments count the examples, and for how many there is room (batches are of six
# texts, BGE's second stage of six pairs).
PLACES: dict[str, tuple[Any, str, Callable[..., int], int]] = {
    "retromae": (retromae, "autoencoding_loss", lambda backbone, head, decoder, batch: len(batch.ids), 2),
    "llara": (llara, "adaptation_loss", lambda backbone, head, layout, chosen, *_: len(chosen), 2),
    "bge": (Student, "passes", lambda student, rows: len(rows), 5),
}


def adapted(name: str, folder: Path, following: list[str], **context: Any) -> tuple[Student, list[dict[str, Any]]]:
    """A tiny student after the method's own pre-training, and the log."""
    method, log = find_method(name), list[dict[str, Any]]()
    recipe = method.recipe(OWN[name])
    student = method.build(tiny.backbone(method.kind, folder), recipe)
    torch.manual_seed(7)
    given = TrainingContext(seed=3, next_texts=following, log=log.append, log_every=1, **context)
    method.pretext(student, TEXTS, recipe, given)
    return student, log


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


def check_same(first: torch.nn.Module, second: torch.nn.Module, tolerance: float) -> None:
    for (key, one), two in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        # A softmax takes no notice of what is added to all keys: that bias has no gradient but rounding, which AdamW
        # makes large.
        if not key.endswith("attention.self.key.bias") or not tolerance:
            torch.testing.assert_close(two, one, atol=tolerance, rtol=tolerance, msg=key)


def check_logs(whole: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    assert [set(record) for record in parts] == [set(record) for record in whole] and whole
    for key in set().union(*whole) - {"stage", "step", "mode"}:
        values = [[record[key] for record in records if key in record] for records in (whole, parts)]
        np.testing.assert_allclose(values[1], values[0], rtol=2e-3, atol=1e-4, err_msg=key)


# ------------------------------------------------------------------------------------------ a method's own pre-training
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("following", [TEXTS[::-1], ["日月", "", "丙丁", "", "星", ""]])
def test_a_pretext_stage_in_parts_is_the_same(
    name: str, following: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second order leaves half of the texts without one that follows, which parts share unequally."""
    whole, log = adapted(name, tmp_path / "whole", following)
    seen = narrow(monkeypatch, *PLACES[name])
    parts, again = adapted(name, tmp_path / "parts", following)
    assert seen and max(seen) <= PLACES[name][3]
    check_logs(log, again)
    check_same(whole, parts, 3e-3)


def test_parts_of_unequal_texts_weigh_what_they_hide(tmp_path: Path) -> None:
    backbone = tiny.backbone("encoder", tmp_path)
    torch.manual_seed(1)
    loss = partial(
        retromae.autoencoding_loss, backbone, head_of(backbone.language_model()), EnhancedDecoder(backbone.model.config)
    )
    cls, sep, mask = 2, 3, 4
    rows = [(cls, *tiny.ids(text), sep) for text in ("甲乙丙丁戊己庚", "山", "水火木", "金土日月星")]
    ids, real = backbone.pad(rows)
    generator = torch.Generator().manual_seed(5)
    whole = retromae.masked(ids, real, retromae.Autoencoding(), mask, backbone.rows, generator)
    for parts in (2, 3, 4):
        split = [(loss(part), shares) for part, shares in whole.split(parts)]
        for key, value in loss(whole).items():
            torch.testing.assert_close(sum(terms[key] * shares[key] for terms, shares in split), value, msg=key)


def test_every_share_adds_up_to_one() -> None:
    texts = [((7, 8), (9,)), ((0, 5, 6), ()), ((4,), (0,)), ((3, 3), ()), ((2, 9), (8, 8))]
    for parts in (1, 2, 3, 4, 5, 9):
        split = llara.split(texts, parts, {0})
        assert sum((part for part, _ in split), []) == texts and len(split) <= parts
        assert sum(shares["language_model"] for _, shares in split) == pytest.approx(1.0)
    # Two bags in all, so each counts half; a part that has the first alone does not halve it itself.
    (_, one), (_, two) = llara.split(texts[:2], 2, {0})
    assert (one["ebae"], two["ebae"]) == (0.5, 0.25) and (one["ebar"], two["ebar"]) == (1.0, 0.0)


# ---------------------------------------------------------------------------------------------------------- the teacher
def tuned(
    folder: Path, frame: Any = None, resume: Resume | None = None, precision: str = "float32"
) -> tuple[Teacher, list[dict[str, Any]]]:
    teacher = made(seed=3, steps=12, asymmetric_share=0.3, **SHORT)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(5)
    frame = trivial(40, 1) if frame is None else frame
    teacher_tuning.tune(teacher, frame, teacher.settings, folder / "log.jsonl", resume, precision)
    return teacher, read_jsonl(folder / "log.jsonl")


@pytest.fixture
def every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs hold every update."""
    monkeypatch.setattr(teacher_tuning, "LOG_EVERY", 1)
    monkeypatch.setattr(pretext, "TrainingContext", partial(TrainingContext, log_every=1))


@pytest.mark.usefixtures("every_update")
def test_the_teacher_in_parts_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the groups have no word with a relation, so that the parts' shares differ."""
    frame = trivial(40, 1)
    frame["relations"] = [["10", "50"] if i % 3 else ["00", "00"] for i in range(40)]
    whole, log = tuned(tmp_path / "whole", frame)
    seen = narrow(monkeypatch, Teacher, "forward", lambda teacher, rows, mode: len(rows), 2)
    parts, again = tuned(tmp_path / "parts", frame)
    assert len(log) == 12 and seen and max(seen) <= 2
    assert [record["mode"] for record in log] == [record["mode"] for record in again]
    assert {record["mode"] for record in log} == {"symmetric", "asymmetric"}
    check_logs(log, again)
    check_same(whole.model, parts.model, 3e-3)


@pytest.mark.usefixtures("every_update")
def test_parts_outlive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that ran out once before the kill is not tried again, and the rest is the same bit for bit."""
    failed, sizes, real = list[int](), list[int](), Teacher.forward

    def once(self: Teacher, rows: Any, mode: str, begun: Any = ()) -> Any:
        if not failed and torch.is_grad_enabled():
            failed.append(1)
            raise torch.OutOfMemoryError
        sizes.append(len(rows))
        return real(self, rows, mode, begun)

    monkeypatch.setattr(Teacher, "forward", once)
    whole, log = tuned(tmp_path / "whole")
    failed.clear()
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at(patched, 5)
        tuned(tmp_path / "cut", resume=Resume(tmp_path / "state", JOB, 1e-9))
    sizes.clear()
    cut, again = tuned(tmp_path / "cut", resume=Resume(tmp_path / "state", JOB, 1e-9))
    assert max(sizes) <= 3 and again == log  # of batches of six rows
    check_same(whole.model, cut.model, 0.0)


# ------------------------------------------------------------------------------------------------------------ precision
@pytest.fixture
def fresh() -> Iterator[Callable[[], None]]:
    """Accelerate's state is made once a process; called: it will be made anew."""

    def reset() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)

    reset()
    yield reset
    reset()


@pytest.mark.usefixtures("every_update")
@pytest.mark.parametrize("name", [*OWN, "teacher"])
def test_a_stage_in_bfloat16(name: str, tmp_path: Path, fresh: Callable[[], None]) -> None:
    """Near float32, not the same, and weights stay float32."""
    if name == "teacher":
        _, log = tuned(tmp_path / "full")
        fresh()
        teacher, half = tuned(tmp_path / "half", precision="bfloat16")
        model = teacher.model
    else:
        _, log = adapted(name, tmp_path / "full", TEXTS[::-1])
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        model, half = adapted(name, tmp_path / "half", TEXTS[::-1], accelerator=accelerator)
    assert next(model.parameters()).dtype == torch.float32
    losses = [[record["loss"] for record in records][:8] for records in (log, half)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.1)


def test_precision_is_a_setting_of_these_stages_where_it_is_not_the_usual(tiny_scores: Config) -> None:
    half = changed(tiny_scores, training={"precision": "bfloat16"})
    for stage, arguments in (("teacher", {"teacher": "teacher"}), ("pretext", {"method": "bge", "variant": "base"})):
        assert "training.precision" not in jobs.settings(tiny_scores, stage, **arguments)
        assert jobs.settings(half, stage, **arguments)["training.precision"] == "bfloat16"


@pytest.mark.slow
@pytest.mark.usefixtures("every_update")
def test_the_stages_compute_in_the_configured_precision(
    tiny_scores: Config, tmp_path: Path, fresh: Callable[[], None]
) -> None:
    losses: dict[str, list[list[float]]] = {}
    for precision in ("float32", "bfloat16"):
        config = changed(changed_results(tiny_scores, tmp_path / precision), training={"precision": precision})
        for stage, folder in (
            (partial(pretext.run, config, "retromae", "base"), Paths.of(config).pretext("retromae", "base")),
            (partial(teacher_tuning.run, config, "teacher"), Paths.of(config).teacher("teacher")),
        ):
            fresh()
            stage()
            losses.setdefault(folder.name, []).append([record["loss"] for record in read_jsonl(folder / "log.jsonl")])
    for full, half in losses.values():
        assert full != half and len(full) == len(half) > 1
        np.testing.assert_allclose(half, full, rtol=0.1)
