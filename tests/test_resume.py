"""A training that is stopped anywhere goes on from its last checkpoint and ends with the bytes of one that never
stopped: every stage that trains, checkpoints that are damaged or another job's, signals, two processes.

The loop by itself is in test_loop.py.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from test_loop import JOB, Stopped
from test_training import prepared

from d2llm.config.load import dump
from d2llm.config.schema import Config
from d2llm.run import signals
from d2llm.run.checkpoint import Loop, Resume
from d2llm.run.errors import Interrupted
from d2llm.run.paths import Paths
from d2llm.run.signals import Signals
from d2llm.teacher import tune as teacher_tuning
from d2llm.training import loop as training_loop
from d2llm.training import optimization, pretext, pretraining
from d2llm.training import train as training

ROOT = Path(__file__).resolve().parent.parent
Work = tuple[Callable[[Config, str, Resume], None], Callable[[Paths, str], Path]]
# What is done with a model or method, and the folder it leaves.
WORK: dict[str, Work] = {
    "train": (
        lambda config, name, kept: training.run(config, name, "base", 1, kept),
        lambda p, name: p.run(name, "base", 1),
    ),
    "teacher": (lambda config, name, kept: teacher_tuning.run(config, name, kept), lambda p, name: p.teacher(name)),
    "base": (lambda config, name, kept: pretraining.run(config, name, kept), lambda p, name: p.base(name)),
    "pretext": (
        lambda config, name, kept: pretext.run(config, name, "base", kept),
        lambda p, name: p.pretext(name, "base"),
    ),
}


def digests(folder: Path) -> dict[str, str]:
    """Of all files of a result but the seconds it took and its provenance."""
    sums = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "provenance.json"):
        data = file.read_bytes()
        if file.name == "summary.json":
            summary = json.loads(data)
            data = json.dumps({key: value for key, value in summary.items() if "seconds" not in key}).encode()
        sums[str(file.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return sums


def stop_at(monkeypatch: pytest.MonkeyPatch, at: int = 0) -> list[int]:
    """The `at`-th update from now on, over all loops, changes the weights and is the last (0: none is). Grows by one
    every update."""
    real, calls = optimization.step, list[int]()

    def step(*arguments: Any, **options: Any) -> dict[str, float]:
        record = real(*arguments, **options)
        calls.append(1)
        if len(calls) == at:
            raise Stopped
        return record

    monkeypatch.setattr(training_loop, "step", step)
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


# Stage, name, and changes of the settings.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "d2llm": ("train", "d2llm", {"training": {"log_every": 1, "dev_every": 3}}),
    "d2llm by parts": ("train", "d2llm", {"training": {"log_every": 1, "texts_at_once": 4}}),
    "udever": ("train", "udever", {"training": {"log_every": 1, "steps": 30}}),
    "bge": ("train", "bge", {"training": {"log_every": 1, "dev_every": 3}}),
    "retromae": ("train", "retromae", {"training": {"log_every": 1}}),
    "teacher": ("teacher", "teacher-own", {"teachers": {"teacher-own": {"steps": 6}}}),
    "teacher by LoRA": (
        "teacher",
        "teacher-own",
        {"teachers": {"teacher-own": {"steps": 6, "tuning": {"kind": "lora", "r": 2, "dropout": 0.2}}}},
    ),
    "decoder": ("base", "decoder", {"models": {"decoder": {"steps": 30}}}),
    "encoder": ("base", "encoder", {"models": {"encoder": {"steps": 6}}}),
    "bge, own": (
        "pretext",
        "bge",
        {"methods": {"bge": {"pretraining": {"steps": 4}, "unsupervised": {"steps": 6, "pairs": "crop"}}}},
    ),
    "llara, own": ("pretext", "llara", {"methods": {"llara": {"adaptation": {"steps": 6}}}}),
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


# The quick ones have a case of each stage, of LoRA and of all weights; the loop itself is in test_loop.
MORE = {"d2llm by parts", "udever", "retromae", "encoder", "llara, own"}


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c in MORE)) for c in CASES])
def test_stopped_anywhere_the_same_bytes(
    case: str, tiny_scores: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, name, changes = CASES[case]
    work, result = WORK[stage]
    monkeypatch.setattr(pretext, "TrainingContext", partial(pretext.TrainingContext, log_every=1))
    whole, cut = (place(tiny_scores, tmp_path / side, **changes) for side in ("whole", "cut"))
    for config in (whole, cut):
        target = result(Paths.of(config), name)
        if target.is_symlink():
            target.unlink()
        if case in FULL:
            assert config.recipe(name).tuning.kind == "full"
            pretext.run(config, name, "base")
    with monkeypatch.context() as patched:
        done = stop_at(patched)
        work(whole, name, Resume())
    total = len(done)
    every_second(monkeypatch)
    states = Paths.of(cut).state("job")
    for stop in (STOPS.get(case) or random.Random(case).randrange(3, total), 1):
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_at(patched, stop)
            disturb()
            work(cut, name, Resume(states, JOB, 1e-9))
    disturb()
    last = Resume(states, JOB, 1e-9)
    with monkeypatch.context() as patched:
        calls = stop_at(patched)
        work(cut, name, last)
    assert sum(last.resumed.values()) >= 2
    assert len(calls) == total - sum(last.resumed.values())  # what was kept was not done again
    expected, files = (digests(result(Paths.of(config), name)) for config in (whole, cut))
    assert files == expected and any("safetensors" in file for file in files)
    last.remove()
    assert not states.exists()


# ------------------------------------------------------------------------------------------------------- one small loop
def toy(owner: Resume, log: Path, scaler: Any = None) -> tuple[Loop, torch.nn.Parameter]:
    """A loop over one parameter."""
    weight = torch.nn.Parameter(torch.ones(3))
    adam = optimization.optimizer([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}])
    plan = optimization.schedule(adam, "linear", 0.0, 10)
    return owner.loop("toy", 10, adam, plan, log, [np.random.default_rng(3)], scaler), weight


def advance(loop: Loop, weight: torch.nn.Parameter, updates: int, **notes: Any) -> None:
    for number in range(loop.done + 1, loop.done + 1 + updates):
        others = torch.rand(3) * random.random() * np.random.random()  # noqa: NPY002 - as libraries draw
        (weight * (torch.from_numpy(loop.generators[0].random(3)) + others).float()).sum().backward()
        loop.optimizer.step()
        loop.schedule.step()
        loop.optimizer.zero_grad()
        loop.after(number, **notes)


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
    folder = tmp_path / "a"
    for owner in (Resume(folder, JOB, 10.0), Resume(folder, JOB, 0), Resume(folder, JOB, None), Resume()):
        loop, weight = toy(owner, tmp_path / "log.jsonl")
        advance(loop, weight, 10)
    assert not list(tmp_path.iterdir())
    owner = Resume(folder, JOB, 10.0)
    loop, weight = toy(owner, tmp_path / "log.jsonl")
    advance(loop, weight, 4)
    owner.last -= 601.0
    advance(loop, weight, 1)
    assert [file.name for file in folder.iterdir()] == ["1-toy.safetensors"]
    assert toy(Resume(folder, JOB, 10.0), tmp_path / "log.jsonl")[0].done == 1  # the update it was called with
    loop.done = 1
    advance(loop, weight, 9)  # of the last update as well, as there was one before
    assert toy(Resume(folder, JOB, 10.0), tmp_path / "log.jsonl")[0].done == 10


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called: from now on the disk is full."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    return lambda: monkeypatch.setattr("safetensors.torch.save_file", fail)


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, full: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A signal that comes then tells what is lost."""
    owner = listening(tmp_path / "state", 1e-9)
    loop, weight = toy(owner, tmp_path / "log.jsonl")
    with owner.signals:
        advance(loop, weight, 1)
        kept, loop.done = loop.file.read_bytes(), 1
        full()
        advance(loop, weight, 1)
        assert "toy, update 2: no checkpoint could be kept (OSError: [Errno 28]" in caplog.text
        assert loop.file.read_bytes() == kept
        assert [file.name for file in loop.file.parent.iterdir()] == [loop.file.name]
        loop.done = 2
        lost = r"no checkpoint could be kept \(OSError: \[Errno 28\] .*\), so the next run goes on from the last one"
        with pytest.raises(Interrupted, match=f"after update 3 of 10; {lost}"):
            signal.raise_signal(signal.SIGTERM)
            advance(loop, weight, 1)


def test_the_scale_of_half_precision_is_kept(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    loop, weight = toy(Resume(tmp_path, JOB, 1e-9), tmp_path / "log.jsonl", scaler)
    scaler.scale(torch.ones(()))  # which makes it
    scaler.update(2.0)
    advance(loop, weight, 2)
    fresh = torch.amp.GradScaler("cpu", init_scale=8.0)
    toy(Resume(tmp_path, JOB, 1e-9), tmp_path / "log.jsonl", fresh)
    assert fresh.get_scale() == scaler.get_scale() == 2.0


# -------------------------------------------------------------------------------------------------------------- signals
def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in signals.NOTED]


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    """SIGINT as in a terminal, also where a shell started the tests in the background, with that signal ignored."""
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
    before, ended = signal.getsignal(signal.SIGTERM), list[int]()
    signal.signal(signal.SIGTERM, end := lambda number, _: ended.append(number))
    try:
        owner = listening(tmp_path / "state")
        with owner.signals:
            toy(owner, tmp_path / "log.jsonl")
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            monkeypatch.setattr(signals, "SAME", 0.0)
            assert not ended
            signal.raise_signal(signal.SIGTERM)
            assert ended == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is end
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
    for updates, expected in ((9, [owner.signals._note] * 2), (1, before)):
        assert handlers() == [owner.signals._note] * 2
        advance(loop, weight, updates)
        loop.done += updates
        assert handlers() == expected
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


STARTS = """
import signal, subprocess, sys
from d2llm.run.signals import pass_on
signal.signal(signal.SIGTERM, lambda *_: sys.stdout.write("the starter: told\\n"))
pass_on()
start = ["bash", "-c", '"$0" -c "$@"; true', sys.executable, sys.argv[1]]
jobs = [subprocess.Popen([*start, *name.split()]) for name in sys.argv[2:]]
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
    """On a cluster a scheduler tells the Snakemake that runs a job, not the job. A job that does not listen may still
    end by itself.
    """
    names = ["d2llm.cli train", "d2llm.cli deaf", "another"]
    command, environment = [sys.executable, "-c", STARTS, WAITS, *names], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as starter:
        assert {starter.stdout.readline() for _ in names} == {f"{name}: up\n" for name in names}
        starter.send_signal(signal.SIGTERM)
        output = starter.stdout.read()
    told = ["d2llm.cli train: told", "the starter: told"]
    assert sorted(output.splitlines()) == ["another: not told", "d2llm.cli deaf: not told", *told]


def job(config: Config, method: str, launcher: list[str]) -> subprocess.Popen[str]:
    """A training as Snakemake starts it: by a shell, in a group of its own."""
    file = Path(config.results) / "config.yaml"
    file.write_text(dump(config), encoding="utf-8")
    arguments = ["train", "--method", method, "--seed", "1", "--config", file, "--inputs", Paths.of(config).pairs]
    command = [sys.executable, *launcher, "-m", "d2llm.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        ["bash", "-c", f"set -euo pipefail;  {shlex.join(command)}"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def signalled(started: subprocess.Popen[str], number: int, log: Path, updates: int) -> str:
    """Its errors, after a signal to its group once so many updates are logged; a kill reaches torchrun's processes,
    which have groups of their own, as well."""
    deadline = time.monotonic() + 240
    while not log.exists() or log.read_bytes().count(b"\n") < updates:
        assert started.poll() is None and time.monotonic() < deadline, started.communicate()[1]
        time.sleep(0.005)
    below = psutil.Process(started.pid).children(recursive=True) if number == signal.SIGKILL else []
    os.killpg(started.pid, number)
    for one in below:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    return started.communicate(timeout=120)[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "processes", "number"),
    [("sgpt", 1, signal.SIGTERM), ("d2llm", 2, signal.SIGTERM), ("d2llm", 2, signal.SIGKILL)],
)
def test_a_job_told_to_end_or_killed_goes_on_with_the_same_bytes(
    method: str, processes: int, number: int, tiny_scores: Config, tmp_path: Path
) -> None:
    """Of two processes, torchrun gets the signal and tells both. Dropout draws in each for its own texts, so each has
    its own random state to go on with."""
    steps, killed = 120 // processes, number == signal.SIGKILL
    settings = {"steps": steps, "log_every": 1, "dev_every": 0, "processes": processes}
    settings["checkpoint_minutes"] = 1e-9 if killed else 10
    whole, cut = (prepared(tiny_scores, tmp_path / side, training=settings) for side in ("whole", "cut"))
    assert processes == 1 or whole.recipe(method).tuning.dropout > 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launcher = torchrun if processes > 1 else []
    folders = [Paths.of(config).run(method, "base", 1) for config in (whole, cut)]
    assert job(whole, method, launcher).wait(240) == 0
    stopped = job(cut, method, launcher)
    errors = signalled(stopped, number, folders[1] / "log.jsonl", 3)
    line = rf"error: fine-tuning: stopped by SIGTERM after update (\d+) of {steps}; the next run goes on from there"
    assert stopped.returncode == (-number if killed else 2 if processes == 1 else 1)
    assert not (folders[1] / "model").exists()
    again = job(cut, method, launcher)
    assert again.wait(240) == 0, again.communicate()[1]
    at = json.loads((folders[1] / "provenance.json").read_text(encoding="utf-8"))["resumed"]["fine-tuning"]
    assert 2 <= at < steps and (killed or at == int(re.search(line, errors)[1]))
    assert digests(folders[0]) == digests(folders[1]) and any("safetensors" in file for file in digests(folders[0]))
