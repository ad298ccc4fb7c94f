"""A training that is stopped anywhere goes on from its last checkpoint and ends with the bytes of one that never stopped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_negatives import changed_results
from test_parallel import LAUNCH, ROOT
from test_training import prepared, tuned
from tiny_run import changed

from d2llm import optimization, pretext, pretraining, resume, teacher_tuning, training
from d2llm.artifacts import read_json
from d2llm.config import Config, dump
from d2llm.models.student import Student
from d2llm.paths import Paths
from d2llm.resume import Loop, Resume

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

    for module in (training, teacher_tuning, pretraining, optimization):
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
        {"models": {"decoder": {"steps": 6}}},
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
    with monkeypatch.context() as patched:
        done = stop_at(patched)
        work(whole, Resume())
    total = len(done)
    every_second(monkeypatch)
    states = Paths.of(cut).state("job")
    for stop in (random.Random(name).randrange(3, total), 1):
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
