"""Trackers get the numbers of log.jsonl, in one run however often the training was stopped, and change none of them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_loop import JOB, Stopped
from test_resume import digests, every_second, place, stop_at

from d2llm.cli import preflight
from d2llm.config.schema import Config
from d2llm.run import jobs
from d2llm.run.artifacts import read_jsonl
from d2llm.run.checkpoint import Resume
from d2llm.run.errors import ConfigError
from d2llm.run.paths import Paths
from d2llm.training import train as training
from d2llm.training.trackers import Log, check


def expected(records: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """What a log says, by stage and name."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "step":
                curves.setdefault(f"{record['stage']}/{name}", []).append((record["step"], value))
    return curves


@pytest.mark.slow
def test_tensorboard_reads_what_the_log_holds_also_of_a_training_that_went_on(
    tiny_scores: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = {"log_every": 1, "dev_every": 2}
    plain, told = (
        place(tiny_scores, tmp_path / side, training=settings | {"trackers": trackers})
        for side, trackers in (("plain", []), ("told", ["tensorboard"]))
    )
    run = ("d2llm", "base", 1)
    training.run(plain, *run)
    every_second(monkeypatch)
    states = Paths.of(told).state("job")
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        stop_at(patched, 4)  # told of three updates, kept two
        training.run(told, *run, Resume(states, JOB, 1e-9))
    training.run(told, *run, Resume(states, JOB, 1e-9))
    ours, folder = (Paths.of(config).run(*run) for config in (plain, told))
    assert digests(ours) == digests(folder)  # weights, log, losses: to the bit
    events = accumulator.EventAccumulator(str(Paths.of(told).tracked(folder) / "fine-tuning")).Reload()
    log = expected(read_jsonl(folder / "log.jsonl"))
    assert set(events.Tags()["scalars"]) == set(log) and any(name.startswith("dev/") for name in log)
    for name, values in log.items():
        read = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in read] == [step for step, _ in values], name
        assert [value for _, value in read] == pytest.approx([value for _, value in values], rel=1e-6), name


def test_a_run_of_a_service_goes_on_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the service: how a run is begun, what it is told, and that its failure ends no training."""
    begun: list[dict[str, Any]] = []
    lines: list[tuple[int, dict[str, float]]] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            if step == 9:
                raise OSError("the service is away")
            lines.append((step, values))

        def finish(self) -> None:
            lines.append((-1, {}))

    def init(**options: Any) -> Run:
        begun.append(options)
        return Run()

    spec = SimpleNamespace(init=init, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "wandb", spec)
    for resumed in ({}, {"a": 1}, {}):
        resume = Resume()
        resume.resumed = resumed
        log = Log(tmp_path / "log.jsonl", resume, ["wandb"], tmp_path / "runs")
        for step in (2, 9, 10):
            log({"stage": "a", "step": step, "loss": 0.5, "dataset": "x"})
        log({"stage": "b", "step": 1, "loss": 0.25})
        log.close()
        assert len(read_jsonl(tmp_path / "log.jsonl")) == 4
    assert lines[:3] == [(2, {"a/loss": 0.5}), (1, {"b/loss": 0.25}), (-1, {})]
    of_a = [options["id"] for options in begun[::2]]
    assert of_a[0] == of_a[1] != of_a[2] and {options["resume"] for options in begun} == {"allow"}
    assert begun[0]["name"] == begun[2]["name"] != begun[1]["name"] and begun[0]["project"] == "d2llm"


@pytest.mark.parametrize("fails", ["init", "finish"])
def test_a_service_that_is_away_ends_no_training(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when a run begins, nor at its end, before the model is saved."""

    def away(**_: Any) -> None:
        raise OSError("the service is away")

    run = SimpleNamespace(log=lambda values, step: None, finish=away)
    spec = SimpleNamespace(init=away if fails == "init" else lambda **_: run, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "wandb", spec)
    log = Log(tmp_path / "log.jsonl", Resume(), ["wandb"], tmp_path / "runs")
    log({"stage": "a", "step": 1, "loss": 0.5})
    log.close()
    assert not log.open and len(read_jsonl(tmp_path / "log.jsonl")) == 1


def test_a_package_that_is_missing_is_told_before_the_first_job(tiny_scores: Config, tmp_path: Path) -> None:
    config = place(tiny_scores, tmp_path, training={"trackers": ["trackio"]})
    message = "training.trackers: trackio is not installed; `python -m pip install trackio`, or leave it out"
    assert [text for _, text in preflight.package_problems(config)] == [message]
    with pytest.raises(ConfigError, match=message):
        check(["trackio"])
    for stage, arguments in (("train", {"method": "d2llm", "variant": "base", "seed": 1}), ("report", {})):
        lines = {jobs.settings_line(one, stage, **arguments) for one in (config, place(tiny_scores, tmp_path / stage))}
        assert len(lines) == 1, "where a training is watched makes nothing stale"
