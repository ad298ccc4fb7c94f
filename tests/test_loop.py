"""The one training loop on a model of three numbers: updates by hand, what it logs and gives back, a kill anywhere, and
memory that runs out."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from d2llm.methods.base import TrainingContext
from d2llm.models.student import Student, TextFormat
from d2llm.run.artifacts import append_jsonl, read_jsonl
from d2llm.run.checkpoint import Resume
from d2llm.run.errors import TrainingError
from d2llm.training.loop import Rates, fit, means
from d2llm.training.memory import FewerTexts, InParts, Whole, retry_on_oom

JOB = {"settings": {"a": 1}, "code": "c", "inputs": {}, "threads": 1, "versions": {}}
STEPS = 20
FORMATS = {(role, "symmetric"): TextFormat() for role in ("query", "passage")}


class Stopped(Exception):
    """What a kill is in these tests."""


def context(resume: Resume | None = None, log_file: Path | None = None, **more: Any) -> TrainingContext:
    """What a stage gives the loop; the log goes to a file where one is named."""
    log = {} if log_file is None else {"log": partial(append_jsonl, log_file)}
    loop = partial((resume or Resume()).loop, log_file=log_file)
    return TrainingContext(**({"loop": loop, "log_every": 1} | log | more))


def group(weight: torch.nn.Parameter) -> list[dict[str, Any]]:
    return [{"params": [weight], "lr": 0.1, "weight_decay": 0.0}]


def halves(batch: torch.Tensor, parts: int) -> list[tuple[torch.Tensor, dict[str, float]]]:
    """Rows in at most so many parts, each with its share of a mean over rows."""
    pieces = torch.tensor_split(batch, min(parts, len(batch)))
    return [(piece, {"fit": len(piece) / len(batch), "size": 1 / len(pieces)}) for piece in pieces]


def train(
    folder: Path | None = None, stop: int = 0, memory: Whole | None = None, room: Callable[[], int] = lambda: 99,
    steps: int = STEPS, log_file: Path | None = None, **more: Any,
) -> tuple[torch.Tensor, list[dict[str, float]], list[int]]:  # fmt: skip
    """Weights, last records and the updates that were made. `stop`: killed after that update, before its checkpoint;
    `room`: rows that memory has room for, asked once a loss."""
    weight, updates = torch.nn.Parameter(torch.ones(3)), list[int]()
    numbers, noise = np.random.default_rng(3), torch.Generator().manual_seed(4)

    def draw(number: int) -> torch.Tensor:
        return torch.from_numpy(numbers.random((4, 3))).float() * number + torch.rand((4, 3), generator=noise)

    def loss(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(batch) > room():
            raise torch.OutOfMemoryError("no room")
        kept = batch * (torch.rand(()) + random.random() + np.random.random())  # noqa: NPY002 - as libraries draw
        return {"fit": (kept @ weight - 1).square().mean(), "size": 0.01 * weight.square().sum()}

    def watch(number: int) -> None:
        updates.append(number)
        if number == stop:
            raise Stopped

    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    given = context(Resume(folder, JOB, 1e-9), log_file, log_every=3 if log_file else 1)
    tail = fit(
        group(weight), lambda done: range(done + 1, steps + 1), loss, steps=steps, name="toy", context=given,
        rates=Rates(warmup=2), memory=memory, draw=draw, generators=[numbers, noise], watch=watch, **more,
    )  # fmt: skip
    return weight.detach(), tail, updates


# -------------------------------------------------------------------------------------------------- updates and records
def test_updates_are_those_of_a_plain_loop() -> None:
    weight, records = torch.nn.Parameter(torch.tensor([1.0, -2.0])), list[dict[str, Any]]()
    batches = [torch.tensor([float(n), 0.5]) for n in range(1, 6)]
    fit(
        group(weight), lambda done: batches, lambda batch: {"a": (weight * batch).square().sum(), "b": weight[0]},
        steps=5, name="toy", context=context(log=records.append), rates=Rates(0.4, clip=1.0, betas=(0.8, 0.9)),
    )  # fmt: skip
    value, mean, square = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for n, batch in enumerate(batches, 1):
        a, b = float(np.sum((value * batch.numpy()) ** 2)), float(value[0])
        gradient = 2 * value * batch.numpy() ** 2 + np.array([1.0, 0.0])
        norm = np.linalg.norm(gradient)
        rate = 0.1 * (n / 2 if n <= 2 else 1 - (n - 3) / 3)  # two updates of warm-up, then down to zero after the last
        expected = {"step": n, "a": a, "b": b, "loss": a + b, "gradient_norm": norm, "learning_rate": rate}
        assert records[n - 1].pop("stage") == "toy" and records[n - 1] == pytest.approx(expected, rel=1e-4)
        gradient = gradient * min(1, 1 / norm)
        mean, square = 0.8 * mean + 0.2 * gradient, 0.9 * square + 0.1 * gradient**2
        value = value - rate * (mean / (1 - 0.8**n)) / (np.sqrt(square / (1 - 0.9**n)) + 1e-8)
    np.testing.assert_allclose(weight.detach().numpy(), value, rtol=1e-4)


def test_what_is_logged_watched_and_given_back(tmp_path: Path) -> None:
    """Every third update and the last are logged, all are watched, the last tenth is given back."""
    _, tail, updates = train(
        log_file=tmp_path / "log", steps=40, about=lambda batch: {"kind": "x", "rows": float(len(batch))}
    )
    assert updates == list(range(1, 41))
    records = read_jsonl(tmp_path / "log")
    assert [record["step"] for record in records] == [*range(3, 40, 3), 40]
    assert all((record["stage"], record["kind"], record["rows"]) == ("toy", "x", 4.0) for record in records)
    assert len(tail) == 4 and set(tail[0]) == {"fit", "size", "loss", "gradient_norm", "learning_rate", "rows"}
    assert tail[-1]["loss"] == records[-1]["loss"] == tail[-1]["fit"] + tail[-1]["size"]
    assert means([{"a": 1.0, "b": 4.0}, {"a": 3.0}]) == {"a": 2.0, "b": 4.0}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (lambda w: {"good": w.sum(), "bad": w.sum() * math.nan}, r"sgpt seed 1, step 2: loss term 'bad' is nan"),
        (lambda w: {}, r"sgpt seed 1, step 2: the objective has no term"),
        (lambda w: {"root": (w - w).sqrt().sum()}, r"sgpt seed 1, step 2: the gradient of root is nan"),
    ],
)
def test_a_loss_that_is_wrong_is_told_and_changes_nothing(terms: Callable[..., Any], message: str) -> None:
    weight, before = torch.nn.Parameter(torch.ones(3)), list[torch.Tensor]()
    with pytest.raises(TrainingError, match=f"^{message}"):
        fit(
            group(weight), lambda done: [1, 2], lambda batch: {"a": weight.sum()} if batch == 1 else terms(weight),
            steps=2, name="toy", label="sgpt seed 1", context=context(),
            watch=lambda number: before.append(weight.detach().clone()),
        )  # fmt: skip
    assert len(before) == 1 and torch.equal(weight, before[0]) and not torch.equal(weight, torch.ones(3))


# ------------------------------------------------------------------------------------------------------- a kill
@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("stops", [(1,), (3, 7), (1, 20, 20)])
def test_killed_anywhere_it_ends_with_the_same_bits(stops: tuple[int, ...], parts: bool, tmp_path: Path) -> None:
    """Weights, log and last records, though other processes drew and memory ran out before; once at its end, nothing
    is done again."""

    def memory() -> Whole:
        return InParts(halves) if parts else Whole()

    room = (lambda: 2) if parts else (lambda: 4)
    weight, tail, _ = train(memory=memory(), room=room, log_file=tmp_path / "whole")
    for stop in stops:
        with pytest.raises(Stopped):
            train(tmp_path / "state", stop, memory(), room, log_file=tmp_path / "cut")
    for left in (list(range(max(stops), STEPS + 1)), []):  # of the one killed in an update nothing was kept
        again, last, updates = train(tmp_path / "state", memory=memory(), room=room, log_file=tmp_path / "cut")
        assert updates == left and torch.equal(again, weight) and last == tail
        assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


# ------------------------------------------------------------------------------------------------- memory that runs out
@pytest.mark.parametrize("room", [2, 3])
def test_a_batch_in_parts_is_the_same_batch(room: int) -> None:
    """Though the attempt that failed had sent part of its gradient back already."""
    sizes, weights = list[int](), list[torch.Tensor]()
    batches = [torch.rand((4, 3), generator=torch.Generator().manual_seed(n)) for n in range(6)]

    def run(rows: int) -> None:
        weight, failed = torch.nn.Parameter(torch.ones(3)), list[bool]()

        def loss(batch: torch.Tensor) -> dict[str, torch.Tensor]:
            # The last part of the first batch fails once more.
            second = len(batch) < 4 and not failed and torch.equal(batch[-1], batches[0][-1])
            if len(batch) > rows or second:
                failed.extend([True] * second)
                raise torch.OutOfMemoryError
            sizes.append(len(batch))
            return {"fit": (batch @ weight - 1).square().mean(), "size": 0.01 * weight.square().sum()}

        memory = InParts(halves)
        fit(group(weight), lambda done: batches, loss, steps=6, name="toy", context=context(), memory=memory)
        assert bool(failed) == (rows < 4)
        weights.append(weight.detach())

    run(4)
    run(room)
    assert max(sizes[6:]) <= room
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_the_next_attempt_draws_what_the_first_drew(error: type[Exception]) -> None:
    torch.manual_seed(3)
    expected, drawn = torch.rand(4), list[torch.Tensor]()
    torch.manual_seed(3)

    def update() -> torch.Tensor:
        drawn.append(torch.rand(4))
        if len(drawn) < 3:
            raise error
        return drawn[-1]

    errors: list[Exception] = []
    assert torch.equal(retry_on_oom(update, errors.append), expected)
    assert len(drawn) == 3 and [type(one) for one in errors] == [error] * 2


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (None, "toy, step 1: out of memory; lower its batch_size"),
        (InParts(halves), "toy, step 1: out of memory; that was one example at a time; lower max_length"),
    ],
)
def test_where_nothing_smaller_is_left_it_says_what_to_lower(memory: Whole | None, message: str) -> None:
    with pytest.raises(TrainingError, match=f"^{message}"):
        train(memory=memory, room=lambda: 0)


def test_parts_are_those_of_before_the_kill(tmp_path: Path) -> None:
    """Memory ran out once before it; afterwards a whole batch is not tried again, though it would fit."""
    rooms = iter([3])
    with pytest.raises(Stopped):
        train(tmp_path, 4, InParts(halves), lambda: next(rooms, 4))
    memory = InParts(halves)
    train(tmp_path, memory=memory)
    assert memory.parts == 2 and memory.notes == {"parts": 2}


@pytest.fixture
def student() -> Student:
    return Student(tiny.backbone("encoder"), ("cls", {}), ("cosine", {}), FORMATS).train()


def embed(
    student: Student, room: int, at_once: int | None = None, folder: Path | None = None, stop: int = 0
) -> tuple[list[int], list[dict[str, Any]]]:
    """Train on the distances of six texts; sizes of the passes that fitted, and records."""
    rows = [tiny.ids(text) for text in ("甲", "乙山", "丙水火", "丁", "戊金土", "己日月星")]
    sizes, records, real = list[int](), list[dict[str, Any]](), student.passes

    def passes(part: list[tuple[int, ...]]) -> torch.Tensor:
        if len(part) > room:
            raise torch.OutOfMemoryError
        sizes.append(len(part))
        return real(part)

    def watch(number: int) -> None:
        if number == stop:
            raise Stopped

    student.passes = passes  # type: ignore[method-assign]
    groups = [{"params": list(student.parameters()), "lr": 1e-3, "weight_decay": 0.0}]
    fit(
        groups, lambda done: range(done, 4), lambda batch: {"near": student.embed_ids(rows).square().mean()}, steps=4,
        name="toy", context=context(Resume(folder, JOB, 1e-9), log=records.append), watch=watch,
        memory=FewerTexts(student, lambda batch: 6, nullcontext, at_once),
    )  # fmt: skip
    return sizes, records


def test_fewer_texts_at_a_time_give_the_same_losses(student: Student) -> None:
    again = copy.deepcopy(student), copy.deepcopy(student), copy.deepcopy(student)
    sizes, whole = embed(student, 6)
    assert sizes == [6] * 4 and student.cache is None
    for (room, at_once), other in zip(((3, None), (1, None), (6, 2)), again, strict=True):
        sizes, records = embed(other, room, at_once)
        assert max(sizes) == (at_once or room) == other.cache.size
        assert records[0]["gradient_norm"] == pytest.approx(whole[0]["gradient_norm"], rel=1e-4)
        np.testing.assert_allclose([r["near"] for r in records], [r["near"] for r in whole], rtol=1e-2)
    with pytest.raises(TrainingError, match=r"out of memory with a single text at a time; lower training\.max_length"):
        embed(other, 0)


def test_texts_at_a_time_are_those_of_before_the_kill(student: Student, tmp_path: Path) -> None:
    again = copy.deepcopy(student)
    with pytest.raises(Stopped):
        embed(student, 3, None, tmp_path, 3)
    sizes, records = embed(again, 6, None, tmp_path)
    assert set(sizes) == {3} and [record["step"] for record in records] == [3, 4]


def test_of_several_processes_none_shrinks_alone(student: Student) -> None:
    student.shares = SimpleNamespace()
    with pytest.raises(TrainingError, match=r"^here: out of memory; lower training\.texts_at_once"):
        FewerTexts(student, lambda batch: 6, nullcontext).shrink([], "here", MemoryError())
