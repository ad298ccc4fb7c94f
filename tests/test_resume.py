"""A training that is stopped anywhere goes on from its last checkpoint and ends with the bytes of one that never stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import prepared, tuned

from d2llm.config.load import dump
from d2llm.config.schema import Config
from d2llm.models.student import Student
from d2llm.run import signals
from d2llm.run.checkpoint import Loop, Resume
from d2llm.run.errors import Interrupted
from d2llm.run.paths import Paths
from d2llm.run.signals import Signals
from d2llm.teacher import tune as teacher_tuning
from d2llm.training import optimization, pretext, pretraining
from d2llm.training import train as training

ROOT = Path(__file__).resolve().parent.parent
JOB = {"settings": {"a": 1}, "code": "c", "inputs": {}, "threads": 1, "versions": {}}


class Stopped(Exception):
    """What a kill is in these tests."""


def digests(folder: Path) -> dict[str, str]:
    """Of all files of a result but the seconds it took."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = file.read_bytes()
        if file.name == "summary.json":
            told = json.loads(data)
            data = json.dumps({key: value for key, value in told.items() if "seconds" not in key}).encode()
        found[str(file.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def stop_at(monkeypatch: pytest.MonkeyPatch, at: int = 0) -> list[int]:
    """The `at`-th update from now on, over all loops, changes the weights and is the last (0: none is). Grows by one every update."""
    real, calls = optimization.step, []

    def step(*arguments: Any, **options: Any) -> dict[str, float]:
        record = real(*arguments, **options)
        calls.append(1)
        if len(calls) == at:
            raise Stopped
        return record

    for module in (training, pretraining, optimization):
        monkeypatch.setattr(module, "step", step)
    return calls


def every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after every second update, so that a stop may lose one."""
    real = Loop.after
    monkeypatch.setattr(Loop, "after", lambda self, update, **notes: update % 2 or real(self, update, **notes))


def disturb() -> None:
    """Whatever a new process has done before must not matter."""
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)


Case = tuple[Callable[[Config, Resume], None], Callable[[Paths], Path], dict[str, Any]]
CASES: dict[str, Case] = {
    "d2llm": (
        lambda config, kept: training.run(config, "d2llm", "base", 1, kept),
        lambda paths: paths.run("d2llm", "base", 1),
        {"training": {"log_every": 1, "dev_every": 3}},
    ),
    "d2llm by parts": (
        lambda config, kept: training.run(config, "d2llm", "base", 1, kept),
        lambda paths: paths.run("d2llm", "base", 1),
        {"training": {"log_every": 1, "texts_at_once": 4}},
    ),
    "udever": (
        lambda config, kept: training.run(config, "udever", "base", 1, kept),
        lambda paths: paths.run("udever", "base", 1),
        {"training": {"steps": 30, "log_every": 1}},
    ),
    "bge": (
        lambda config, kept: training.run(config, "bge", "base", 1, kept),
        lambda paths: paths.run("bge", "base", 1),
        {"training": {"log_every": 1, "dev_every": 3}},
    ),
    "retromae": (
        lambda config, kept: training.run(config, "retromae", "base", 1, kept),
        lambda paths: paths.run("retromae", "base", 1),
        {"training": {"log_every": 1}},
    ),
    "teacher": (
        lambda config, kept: teacher_tuning.run(config, "teacher-own", kept),
        lambda paths: paths.teacher("teacher-own"),
        {"teachers": {"teacher-own": {"steps": 6}}},
    ),
    "teacher by LoRA": (
        lambda config, kept: teacher_tuning.run(config, "teacher-own", kept),
        lambda paths: paths.teacher("teacher-own"),
        {"teachers": {"teacher-own": {"steps": 6, "tuning": {"kind": "lora", "r": 2, "dropout": 0.2}}}},
    ),
    "decoder": (
        lambda config, kept: pretraining.run(config, "decoder", kept),
        lambda paths: paths.base("decoder"),
        {"models": {"decoder": {"steps": 30}}},
    ),
    "encoder": (
        lambda config, kept: pretraining.run(config, "encoder", kept),
        lambda paths: paths.base("encoder"),
        {"models": {"encoder": {"steps": 6}}},
    ),
    "bge, pre-training": (
        lambda config, kept: pretext.run(config, "bge", "base", kept),
        lambda paths: paths.pretext("bge", "base"),
        {"methods": {"bge": {"pretraining": {"steps": 4}, "unsupervised": {"steps": 6, "pairs": "crop"}}}},
    ),
    "llara, pre-training": (
        lambda config, kept: pretext.run(config, "llara", "base", kept),
        lambda paths: paths.pretext("llara", "base"),
        {"methods": {"llara": {"adaptation": {"steps": 6}}}},
    ),
}
# Fine-tuning of all weights, which starts from the method's own pre-training.
FULL = ("bge", "retromae")
# Within the last tenth, whose losses the summary tells.
STOPS = {"udever": 29, "decoder": 29}


def place(config: Config, folder: Path, **changes: Any) -> Config:
    """The tiny run's inputs in another results folder, where base models may be made anew."""
    copy = prepared(config, folder, **changes)
    models = Paths.of(copy).root / "models"
    if models.is_symlink():
        origin = models.resolve()
        models.unlink()
        models.mkdir()
        for model in origin.iterdir():
            (models / model.name).symlink_to(model)
    return copy


@pytest.mark.parametrize("name", CASES)
def test_stopped_anywhere_the_same_bytes(
    name: str, tiny_scores: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, result, changes = CASES[name]
    monkeypatch.setattr(pretext, "thinned", lambda write: write)
    whole, cut = (place(tiny_scores, tmp_path / side, **changes) for side in ("whole", "cut"))
    for config in (whole, cut):
        target = result(Paths.of(config))
        if target.is_symlink():
            target.unlink()
        if name in FULL:
            assert config.recipe(name).tuning.kind == "full"
            pretext.run(config, name, "base")
    with monkeypatch.context() as patched:
        done = stop_at(patched)
        work(whole, Resume())
    total = len(done)
    every_second(monkeypatch)
    states = Paths.of(cut).state("job")
    for stop in (STOPS.get(name) or random.Random(name).randrange(3, total), 1):
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_at(patched, stop)
            disturb()
            work(cut, Resume(states, JOB, 1e-9))
    disturb()
    last = Resume(states, JOB, 1e-9)
    with monkeypatch.context() as patched:
        calls = stop_at(patched)
        work(cut, last)
    assert sum(last.resumed.values()) >= 2
    assert len(calls) == total - sum(last.resumed.values())  # what was kept was not done again
    found = [digests(result(Paths.of(config))) for config in (whole, cut)]
    assert found[0] == found[1]
    assert any("safetensors" in file for file in found[0])
    last.remove()
    assert not states.exists()


# ------------------------------------------------------------------------------------------------------- one small loop
def toy(owner: Resume, log: Path, scaler: Any = None) -> tuple[Loop, torch.nn.Parameter]:
    """A loop over one parameter."""
    weight = torch.nn.Parameter(torch.ones(3))
    made = optimization.optimizer([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}])
    plan = optimization.schedule(made, "linear", 0.0, 10)
    return owner.loop("toy", 10, made, plan, log, [np.random.default_rng(3)], scaler), weight


def advance(loop: Loop, weight: torch.nn.Parameter, updates: int, **notes: Any) -> None:
    for number in range(loop.done + 1, loop.done + 1 + updates):
        drawn = torch.from_numpy(loop.generators[0].random(3)) + torch.rand(3) * random.random() * np.random.random()  # noqa: NPY002
        (weight * drawn.float()).sum().backward()
        loop.optimizer.step()
        loop.schedule.step()
        loop.optimizer.zero_grad()
        loop.after(number, **notes)


def test_every_generator_goes_on_where_it_stood(tmp_path: Path) -> None:
    disturb()
    loop, whole = toy(Resume(), tmp_path / "log.jsonl")
    advance(loop, whole, 9)
    disturb()
    advance(*toy(Resume(tmp_path / "state", JOB, 1e-9), tmp_path / "log.jsonl"), 3)
    for part in (random.random, np.random.random, lambda: torch.rand(1)):
        part()
    loop, cut = toy(Resume(tmp_path / "state", JOB, 1e-9), tmp_path / "log.jsonl")
    advance(loop, cut, 6)
    assert torch.equal(whole, cut)


def test_a_checkpoint_of_anything_else_is_ignored_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, log = tmp_path / "state", tmp_path / "log.jsonl"
    loop, weight = toy(Resume(folder, JOB, 1e-9), log)
    advance(loop, weight, 3, note=[1.5])
    file = loop.file
    kept = file.read_bytes()
    again, same = toy(Resume(folder, JOB, 1e-9), log)
    assert (again.done, again.notes) == (3, {"note": [1.5]})
    assert torch.equal(same, weight)

    def refused(owner: Resume) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="d2llm"):
            fresh, untouched = toy(owner, log)
        assert fresh.done == 0 and torch.equal(untouched, torch.ones(3))
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(str(file)) and line.endswith("; starting from the beginning")
        return line

    for key in JOB:
        assert f"a checkpoint of other {key};" in refused(Resume(folder, JOB | {key: "another"}, 1e-9))
    rng = random.Random(5)
    for _ in range(30):  # a byte of it anywhere, or its end
        broken = bytearray(kept)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        file.write_bytes(broken)
        assert "a damaged checkpoint" in refused(Resume(folder, JOB, 1e-9))
        file.write_bytes(kept[: rng.randrange(len(kept))])
        assert "a damaged checkpoint" in refused(Resume(folder, JOB, 1e-9))
    file.write_bytes(kept)
    assert toy(Resume(folder, JOB, 1e-9), log)[0].done == 3


def test_nothing_is_kept_before_its_time_or_without_a_folder(tmp_path: Path) -> None:
    for owner in (Resume(tmp_path / "a", JOB, 10.0), Resume(tmp_path / "b", JOB, 0), Resume(tmp_path / "c", JOB, None), Resume()):  # fmt: skip
        loop, weight = toy(owner, tmp_path / "log.jsonl")
        advance(loop, weight, 10)
    assert not list(tmp_path.iterdir())
    owner = Resume(tmp_path / "a", JOB, 10.0)
    loop, weight = toy(owner, tmp_path / "log.jsonl")
    advance(loop, weight, 4)
    owner.last -= 601.0
    advance(loop, weight, 1)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["1-toy.safetensors"]
    assert toy(Resume(tmp_path / "a", JOB, 10.0), tmp_path / "log.jsonl")[0].done == 1  # the update it was called with


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop, weight = toy(Resume(tmp_path / "state", JOB, 1e-9), tmp_path / "log.jsonl")
    advance(loop, weight, 1)
    kept = loop.file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", full)
        loop.done = 1
        advance(loop, weight, 1)
    assert "toy, update 2: no checkpoint could be kept (OSError: [Errno 28]" in caplog.text
    assert loop.file.read_bytes() == kept
    assert [file.name for file in loop.file.parent.iterdir()] == [loop.file.name]


def test_the_scale_of_half_precision_is_kept(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loop, weight = toy(Resume(tmp_path, JOB, 1e-9), tmp_path / "log.jsonl", scaler)
    scaler.scale(torch.ones(()))  # which makes it
    scaler.update(2.0)
    advance(loop, weight, 2)
    fresh = torch.amp.GradScaler("cpu", init_scale=8.0)
    toy(Resume(tmp_path, JOB, 1e-9), tmp_path / "log.jsonl", fresh)
    assert fresh.get_scale() == scaler.get_scale() == 2.0


def test_texts_at_a_time_stay_halved(tiny_scores: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that ran out before the kill is not tried again: 40 texts (8 queries with 5 passages) halve to 24."""
    config = prepared(tiny_scores, tmp_path)
    real, failed = Student.pool, []

    def pool(self: Student, rows: list[tuple[int, ...]]) -> torch.Tensor:
        if not failed and torch.is_grad_enabled():
            failed.append(1)
            raise torch.OutOfMemoryError
        return real(self, rows)

    sizes = []
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Student, "pool", pool)
        stop_at(patched, 3)
        training.run(config, "sgpt", "base", 1, Resume(tmp_path / "state", JOB, 1e-9))
    monkeypatch.setattr(Loop, "after", lambda self, update, **notes: sizes.append(notes["texts_at_once"]))
    training.run(config, "sgpt", "base", 1, Resume(tmp_path / "state", JOB, 1e-9))
    assert len(set(sizes)) == 1 and sizes[0] is not None
    assert len(sizes) == config.training.steps - 2


# -------------------------------------------------------------------------------------------------------------- signals
def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in signals.NOTED]


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    """SIGINT as it is in a terminal, also where a shell started the tests in the background, with that signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def listening(folder: Path, minutes: float | None = 10.0) -> Resume:
    """As the command line makes one."""
    owner = Resume(folder, JOB, minutes)
    owner.signals = Signals()
    return owner


@pytest.mark.parametrize("number", signals.NOTED)
def test_a_signal_ends_a_training_after_its_update_and_a_checkpoint(number: int, tmp_path: Path) -> None:
    """Long before a checkpoint would be due."""
    before = handlers()
    loop, whole = toy(Resume(), tmp_path / "log.jsonl")
    disturb()
    advance(loop, whole, 9)
    owner = listening(tmp_path / "state")
    loop, weight = toy(owner, tmp_path / "log.jsonl")
    disturb()
    with owner.signals:
        advance(loop, weight, 3)
        loop.done = 3
        signal.raise_signal(number)  # in the fourth update
        name = signal.Signals(number).name
        with pytest.raises(Interrupted, match=f"^toy: stopped by {name} after update 4 of 10; the next run goes on"):
            advance(loop, weight, 1, tail=[2.5])
    assert handlers() == before
    disturb()
    loop, cut = toy(Resume(tmp_path / "state", JOB, 10.0), tmp_path / "log.jsonl")
    assert (loop.done, loop.notes) == (4, {"tail": [2.5]})
    advance(loop, cut, 5)
    assert torch.equal(whole, cut)


def test_a_second_signal_ends_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is passed on by a parent at the same moment is not a second one."""

    def end(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, end)
    try:
        owner = listening(tmp_path / "state")
        with owner.signals:
            toy(owner, tmp_path / "log.jsonl")
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            monkeypatch.setattr(signals, "SAME", 0.0)
            with pytest.raises(Stopped):
                signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (tmp_path / "state").exists()


def test_signals_act_as_ever_where_no_checkpoint_is_kept_and_outside_of_loops(tmp_path: Path) -> None:
    before, log = handlers(), tmp_path / "log.jsonl"
    for owner in (Resume(), Resume(tmp_path / "state", JOB, 10.0), listening(tmp_path / "state", 0)):
        advance(*toy(owner, log), 3)
        assert handlers() == before
    owner = listening(tmp_path / "state")
    assert handlers() == before
    loop, weight = toy(owner, log)
    assert handlers() == [owner.signals._note] * 2
    advance(loop, weight, 9)
    loop.done = 9
    assert handlers() == [owner.signals._note] * 2
    advance(loop, weight, 1)
    assert handlers() == before

    owner = listening(tmp_path / "state")
    thread = threading.Thread(target=lambda: advance(*toy(owner, log), 3))
    thread.start()
    thread.join()
    assert handlers() == before and owner.signals.told == 0

    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts in the background
    try:
        with owner.signals:
            toy(owner, log)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, ignored)


def test_a_signal_while_the_disk_is_full_tells_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    owner = listening(tmp_path / "state")
    loop, weight = toy(owner, tmp_path / "log.jsonl")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    told = r"after update 1 of 10; no checkpoint could be kept \(OSError: \[Errno 28\] .*\), so the next run goes on from the last one"
    with owner.signals, pytest.raises(Interrupted, match=told):
        signal.raise_signal(signal.SIGTERM)
        advance(loop, weight, 1)


STARTS = """
import signal, subprocess, sys
from d2llm.signals import pass_on
signal.signal(signal.SIGTERM, lambda *_: sys.stdout.write("the starter: told\\n"))
pass_on()
jobs = [subprocess.Popen(["bash", "-c", '"$0" -c "$@"; true', sys.executable, sys.argv[1], *name.split()]) for name in sys.argv[2:]]
for job in jobs:
    job.wait()
"""
WAITS = """
import signal, sys, time
name = " ".join(sys.argv[1:])
def say(word):
    sys.stdout.write(name + ": " + word + "\\n")
    sys.stdout.flush()
def end(*_):
    say("told")
    sys.exit()
if "deaf" not in name:
    signal.signal(signal.SIGTERM, end)
say("up")
time.sleep(60 if name == "d2llm.cli train" else 2)
say("not told")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what listens")
def test_what_starts_a_job_passes_sigterm_on_to_a_training() -> None:
    """On a cluster a scheduler tells the Snakemake that runs a job, not the job. A job that does not listen may still end by itself."""
    names = ["d2llm.cli train", "d2llm.cli deaf", "another"]
    with subprocess.Popen(
        [sys.executable, "-c", STARTS, WAITS, *names], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as starter:  # fmt: skip
        up = {starter.stdout.readline() for _ in names}
        assert up == {f"{name}: up\n" for name in names}
        starter.send_signal(signal.SIGTERM)
        said = starter.stdout.read()
    assert sorted(said.splitlines()) == ["another: not told", "d2llm.cli deaf: not told", "d2llm.cli train: told", "the starter: told"]  # fmt: skip


def job(config: Config, method: str, launcher: str = "") -> subprocess.Popen[str]:
    """A training as Snakemake starts it: by a shell, in a group of its own."""
    file = Path(config.results) / "config.yaml"
    file.write_text(dump(config), encoding="utf-8")
    arguments = f"train --method {method} --seed 1 --config {shlex.quote(str(file))} --inputs {shlex.quote(str(Paths.of(config).pairs))}"
    command = f"set -euo pipefail;  {shlex.quote(sys.executable)} {launcher} -m d2llm.cli {arguments}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["bash", "-c", command], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def signalled(started: subprocess.Popen[str], log: Path, updates: int) -> str:
    """Its errors, after SIGTERM to its group once so many updates are logged."""
    deadline = time.monotonic() + 240
    while not log.exists() or log.read_bytes().count(b"\n") < updates:
        assert started.poll() is None and time.monotonic() < deadline, started.communicate()[1]
        time.sleep(0.005)
    os.killpg(started.pid, signal.SIGTERM)
    return started.communicate(timeout=120)[1]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "processes"), [("sgpt", 1), ("d2llm", 2)])
def test_a_job_told_to_end_goes_on_with_the_same_bytes(
    method: str, processes: int, tiny_scores: Config, tmp_path: Path
) -> None:
    """Of two processes, torchrun gets the signal and tells both."""
    steps = 120 // processes
    settings = {"steps": steps, "log_every": 1, "dev_every": 0, "processes": processes}
    whole, cut = (prepared(tiny_scores, tmp_path / side, training=settings) for side in ("whole", "cut"))
    launcher = f"-m torch.distributed.run --standalone --nproc_per_node {processes}" if processes > 1 else ""
    folders = [Paths.of(config).run(method, "base", 1) for config in (whole, cut)]
    assert job(whole, method, launcher).wait(240) == 0
    stopped = job(cut, method, launcher)
    said = signalled(stopped, folders[1] / "log.jsonl", 3)
    line = rf"error: fine-tuning: stopped by SIGTERM after update (\d+) of {steps}; the next run goes on from there"
    at = int(re.search(line, said)[1])
    assert stopped.returncode == (2 if processes == 1 else 1) and 3 <= at < steps
    assert not (folders[1] / "model").exists()
    again = job(cut, method, launcher)
    assert again.wait(240) == 0, again.communicate()[1]
    record = json.loads((folders[1] / "provenance.json").read_text(encoding="utf-8"))
    assert record["resumed"] == {"fine-tuning": at}
    found = []
    for folder in folders:
        found.append(digests(folder))
        del found[-1]["provenance.json"]
    assert found[0] == found[1] and any("safetensors" in file for file in found[0])


# ------------------------------------------------------------------------------------------------------------ processes
def process(rank: int, port: int, config: Config, states: Path, killed_at: int) -> None:
    """One of two processes that share a training of D2LLM; with `killed_at`, both are killed after that many updates."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), ACCELERATE_USE_CPU="1")
    real, calls = training.step, []

    def step(*arguments: Any, **options: Any) -> dict[str, float]:
        record = real(*arguments, **options)
        calls.append(1)
        if len(calls) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return record

    training.step = step
    disturb()
    kept = Resume(states, JOB if rank == 0 else None, 1e-9)
    training.run(config, "d2llm", "base", 1, kept)
    os._exit(10 + kept.resumed.get("fine-tuning", 0))


def two(config: Config, states: Path, killed_at: int = 0) -> list[int]:
    """Exit codes of two processes, started as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [torch.multiprocessing.get_context("fork").Process(target=process, args=(rank, port, config, states, killed_at)) for rank in (0, 1)]  # fmt: skip
    for one in pair:
        one.start()
    for one in pair:
        one.join(120)
    return [one.exitcode for one in pair]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU cannot be used after a fork")
def test_two_processes_killed_and_started_again(
    tiny_scores: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout draws in each process for its own texts, so each has its own random state to go on with."""
    settings = {"log_every": 1, "dev_every": 0, "processes": 2}
    whole, cut = (prepared(tiny_scores, tmp_path / side, training=settings) for side in ("whole", "cut"))
    assert whole.recipe("d2llm").tuning.dropout > 0
    states = tmp_path / "states"
    assert two(whole, tmp_path / "none") == [10, 10]
    every_second(monkeypatch)
    assert two(cut, states, killed_at=3) == [-signal.SIGKILL, -signal.SIGKILL]
    folders = [Paths.of(config).run("d2llm", "base", 1) for config in (whole, cut)]
    assert [line["step"] for line in tuned(folders[1] / "log.jsonl")] in ([1, 2], [1, 2, 3])
    assert not (folders[1] / "model").exists()
    assert [file.name for file in states.iterdir()] == ["1-fine-tuning.safetensors"]  # the first process's alone
    assert two(cut, states) == [12, 12]  # both went on after the second update
    assert digests(folders[1]) == digests(folders[0])
