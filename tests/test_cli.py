"""The command line prepares a stage, records where its result comes from, and turns user errors into one line."""

import errno
import json
import logging
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest

from d2llm import cli, stages
from d2llm.artifacts import write_text
from d2llm.config import Config, dump
from d2llm.errors import ArtifactError
from d2llm.logs import progress
from d2llm.paths import Paths

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config file whose results go to a temporary folder."""
    path = tmp_path / "config.yaml"
    path.write_text(dump(Config(results=str(tmp_path / "results"), methods={"bge": {}})), encoding="utf-8")
    return path


def stand_in(monkeypatch: pytest.MonkeyPatch, stage: str, function: object) -> None:
    """Let a stage be done by a function of this test."""
    module = types.ModuleType("stand_in")
    module.run = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stand_in", module)
    monkeypatch.setitem(stages.STAGES, stage, replace(stages.STAGES[stage], function="stand_in:run", torch=False))


def test_provenance_is_written_last_and_tells_inputs_settings_and_machine(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provenance = tmp_path / "results/mini/runs/bge/base/seed1/provenance.json"

    def run(config: Config, method: str, variant: str, seed: int) -> None:
        assert not provenance.exists()
        write_text(Paths.of(config).run(method, variant, seed) / "summary.json", "{}")

    stand_in(monkeypatch, "train", run)
    given = tmp_path / "input"
    given.write_bytes(b"abc")
    log = tmp_path / "log"
    arguments = ["train", "--config", str(config), "--method", "bge", "--seed", "1", "--log", str(log), "--inputs"]
    assert cli.main([*arguments, str(given)]) == 0
    record = json.loads(provenance.read_text())
    assert record["inputs"] == {str(given): "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert (record["method"], record["variant"], record["seed"]) == ("bge", "base", 1)
    assert record["settings"]["recipe"]["temperature"] == Config(methods={"bge": {}}).recipe("bge").temperature
    assert record["peak_memory_mb"] > 10
    assert {"python", "platform", "device", "packages", "threads", "started", "seconds", "code"} <= set(record)
    assert "train method=bge variant=base seed=1" in log.read_text()


def test_a_user_error_is_one_line_and_exit_2(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: Config) -> None:
        raise ArtifactError("x.parquet: missing")

    stand_in(monkeypatch, "data", run)
    log = tmp_path / "log"
    assert cli.main(["data", "--config", str(config), "--log", str(log)]) == 2
    assert capsys.readouterr().err == "error: x.parquet: missing\n"
    assert log.read_text().endswith("\nerror: x.parquet: missing\n")
    assert not (tmp_path / "results/mini/data/provenance.json").exists()


def test_a_job_outside_the_config_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", str(config), "--method", "sgpt", "--seed", "1"]) == 2
    assert "not a run of this config" in capsys.readouterr().err
    assert cli.main(["base", "--config", str(config), "--model", "student"]) == 2
    assert "expected one of teacher, decoder, encoder" in capsys.readouterr().err


def test_a_job_waits_for_its_ghost(tmp_path: Path) -> None:
    lock = tmp_path / "job"
    ghost = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from d2llm.cli import alone; from pathlib import Path\n"
    )
    ghost += f"with alone(Path({str(lock)!r})):\n    print('held', flush=True)\n    time.sleep(0.7)"
    with subprocess.Popen([sys.executable, "-c", ghost], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        started = time.monotonic()
        with cli.alone(lock):
            assert time.monotonic() - started > 0.3


def test_progress_away_from_a_terminal_is_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="d2llm"):
        bar = progress(range(4), "counting")
        seen = []
        for item in bar:
            seen.append(item)
            bar.spoken -= 11.0  # as if eleven seconds had passed
    assert seen == [0, 1, 2, 3]
    assert [record.message.split(" in ")[0] for record in caplog.records] == [
        f"counting: {n} of 4" for n in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "results/x"), "error: the disk is full, or files may not grow further ("),
        (OSError(errno.EFBIG, "x"), "error: the disk is full, or files may not grow further ("),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "error: the disk is full, or files may not grow further ("),
        (OSError(errno.EROFS, "Read-only file system", "results/x"), "error: a file or folder may not be read or written ("),
        (MemoryError(), "error: memory is used up (MemoryError); run fewer jobs at a time"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried\nto"), "error: memory is used up ("),
    ],
)  # fmt: skip
def test_a_fault_of_the_machine_is_one_line(
    error: Exception,
    told: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(config: Config) -> None:
        raise error

    stand_in(monkeypatch, "data", run)
    log = tmp_path / "log"
    assert cli.main(["data", "--config", str(config), "--log", str(log)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(told)
    assert log.read_text().splitlines()[-1] == line


def test_a_bug_keeps_its_traceback(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: Config) -> None:
        raise RuntimeError("x") from ValueError("y")

    stand_in(monkeypatch, "data", run)
    with pytest.raises(RuntimeError, match="x"):
        cli.main(["data", "--config", str(config)])
