"""The command line prepares a stage, records where its result comes from, and turns user errors into one line."""

import errno
import fcntl
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from d2llm.cli import main as cli
from d2llm.cli.upkeep import COMMANDS
from d2llm.config.load import dump, load
from d2llm.config.schema import Config, Run
from d2llm.run import home, jobs, logs
from d2llm.run.artifacts import write_text
from d2llm.run.checkpoint import Resume
from d2llm.run.errors import ArtifactError
from d2llm.run.logs import progress
from d2llm.run.paths import Paths
from d2llm.run.stages import STAGES

ROOT = Path(__file__).parent.parent
TRAIN = ["train", "--method", "bge", "--seed", "1", "--config"]


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A config file whose results go to a temporary folder."""
    path = tmp_path / "config.yaml"
    path.write_text(dump(Config(results=str(tmp_path / "results"), methods={"bge": {}})), encoding="utf-8")
    return str(path)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets a stage be done by a function of the test, and accepted by another."""

    def put(stage: str, function: object, accept: object = None) -> None:
        module = types.ModuleType("stand_in")
        vars(module).update(run=function, accept=accept)
        monkeypatch.setitem(sys.modules, "stand_in", module)
        accepted = "stand_in:accept" if accept else None
        entry = replace(STAGES[stage], function="stand_in:run", torch=False, accept=accepted)
        monkeypatch.setitem(STAGES, stage, entry)

    return put


def test_provenance_is_written_last_and_tells_inputs_settings_and_machine(
    config: str, tmp_path: Path, stand_in
) -> None:
    provenance = tmp_path / "results/mini/runs/bge/base/seed1/provenance.json"

    def run(config: Config, method: str, variant: str, seed: int, resume: object) -> None:
        assert not provenance.exists()
        write_text(Paths.of(config).run(method, variant, seed) / "summary.json", "{}")

    stand_in("train", run)
    given = tmp_path / "input"
    given.write_bytes(b"abc")
    assert cli.main([*TRAIN, config, "--log", str(tmp_path / "log"), "--inputs", str(given)]) == 0
    record = json.loads(provenance.read_text())
    assert record["inputs"] == {str(given): "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert (record["method"], record["variant"], record["seed"]) == ("bge", "base", 1)
    assert record["settings"]["recipe"]["temperature"] == Config(methods={"bge": {}}).recipe("bge").temperature
    assert {"python", "platform", "device", "packages", "threads", "started", "seconds", "code"} <= set(record)
    assert record["peak_memory_mb"] > 10
    assert "train method=bge variant=base seed=1" in (tmp_path / "log").read_text()


def test_what_a_stage_made_is_accepted_before_it_is_recorded(config: str, stand_in) -> None:
    """By what the stage names for it, after its function; refused, it has no record."""
    calls: list[str] = []

    def refuse(config: Config) -> None:
        calls.append("accept")
        raise ArtifactError("too few")

    stand_in("data", lambda config: calls.append("run"), refuse)
    assert cli.main(["data", "--config", config]) == 2
    assert calls == ["run", "accept"] and not STAGES["data"].record(Paths.of(load([config]))).exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --method sgpt --seed 1",
         "--method sgpt --variant base --seed 1: not a run of this config; add it to methods, variants, sweeps, seeds "
         "or tuning.grids, or take the nearest: --method bge --variant base --seed 1"),
        ("base --model student", "--model: expected one of teacher, decoder, encoder; found 'student'"),
        ("pretext --method sgpt", "--method sgpt --variant base: no run of this config has a pre-training stage"),
    ],
)  # fmt: skip
def test_a_job_outside_the_config_is_refused(command: str, message: str, config: str, capsys) -> None:
    assert cli.main([*command.split(), "--config", config]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_the_nearest_run_is_like_it_in_method_then_variant_then_seed() -> None:
    runs = [Run("d2llm", "base", 1), Run("d2llm", "base", 5), Run("d2llm", "no_ci", 1), Run("bge", "base", 1)]
    for wanted, near in (
        (("dllm", "base", 1), 0), (("d2llm", "base", 9), 1), (("d2llm", "no_cl", 5), 2), (("bgee", "no_ci", 5), 3)
    ):  # fmt: skip
        assert jobs.nearest_run(Run(*wanted), runs) == runs[near]


def test_a_job_waits_for_its_ghost(tmp_path: Path) -> None:
    held: list[bool] = []

    def job() -> None:
        with cli.job_lock(tmp_path / "job"):
            held.append(True)

    with cli.job_lock(tmp_path / "job"):
        waiting = threading.Thread(target=job)
        waiting.start()
        waiting.join(0.2)
        assert not held
    waiting.join(5)
    assert held


@pytest.mark.parametrize(("then", "stays"), [("same", False), ("another", True), ("none", True), ("never", True)])
def test_the_last_checkpoint_goes_only_where_the_workflow_sees_the_job_end(
    then: str, stays: bool, config: str, tmp_path: Path, stand_in
) -> None:
    """The workflow that started a job is still there, was killed and another runs, was killed, or never was."""
    guard = tmp_path / "results/mini/.running"
    guard.parent.mkdir(parents=True)
    with guard.open("a") as main:

        def run(config: Config, method: str, variant: str, seed: int, resume: Resume) -> None:
            write_text(resume.folder / "1-fine-tuning.safetensors", "")
            if then == "another":
                guard.write_text("the next")
            elif then == "none":
                fcntl.flock(main, fcntl.LOCK_UN)

        stand_in("train", run)
        guard.write_text("the first")
        if then != "never":
            fcntl.flock(main, fcntl.LOCK_EX)
        assert cli.main([*TRAIN, config, "--inputs", config]) == 0
    assert (tmp_path / "results/mini/state/train.method=bge.variant=base.seed=1").exists() == stays


def test_inputs_have_a_checkpoint_kept_and_are_not_of_the_future(config: str, tmp_path: Path, stand_in) -> None:
    """An input written before the clock was set back would be newer than what is made of it."""
    used: list[Resume] = []
    stand_in("train", lambda config, resume, **_: used.append(resume))
    given = tmp_path / "results/mini/pairs/pairs.parquet"
    given.parent.mkdir(parents=True)
    given.touch()
    os.utime(given, (time.time() + 7200,) * 2)
    for inputs in ([], ["--inputs", str(given)]):
        assert cli.main([*TRAIN, config, *inputs]) == 0
    assert [resume.folder is None for resume in used] == [True, False]
    assert set(used[1].job) == {"settings", "code", "inputs", "threads", "versions"}
    assert given.stat().st_mtime <= time.time()


# ------------------------------------------------------------------------------------------------------------- progress
@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which progress is told, to be set."""
    now = [1000.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job's log file; handlers are as they were, afterwards."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    level = logging.getLogger("d2llm").level
    yield tmp_path / "log"
    logging.getLogger("d2llm").setLevel(level)


def test_progress_away_from_a_terminal_is_log_lines(caplog, clock: list[float]) -> None:
    """That tell how far, how fast, how long and how much."""
    with caplog.at_level(logging.INFO, logger="d2llm"):
        for _ in progress(range(600), "counting"):
            clock[0] += 1.0
        numbers = [int(record.message.split(": ")[1].split(" of ")[0]) for record in caplog.records]
        assert numbers == [10, 20, 30, 40, 50, 60, *range(120, 601, 60)]
        caplog.clear()
        bar = progress(range(60, 300), "training", 60)  # goes on after 60 updates that another process did
        for number in bar:
            if number == 80:
                break
            clock[0] += 0.5
            bar.show(loss=number / 100)
    [line] = [record.message for record in caplog.records]
    match = re.fullmatch(r"training: 80 of 300 in 10 s, 2/s, about 110 s left, (\d+) MB, loss 0.79", line)
    assert match, line
    assert float(match[1]) == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.1)


def test_of_processes_that_share_a_training_the_first_one_tells(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        logs.configure(log)
        logs.get_logger("x").info("told by %s", rank)
        logs.get_logger("x").warning("wrong in %s", rank)
    told = [line.split(": ", 1)[1] for line in log.read_text().splitlines()]
    assert told == ["told by 0", "wrong in 0", "wrong in 1"]


# ----------------------------------------------------------------------------------------------------- help and errors
def test_every_command_shows_an_example_that_parses(capsys: pytest.CaptureFixture[str]) -> None:
    """A stage's ends in a job of that stage, and its help tells where the record will be."""
    names = {name for action in cli.parser()._actions for name in getattr(action, "choices", None) or ()}
    spelt = {stage.replace("_", "-"): stage for stage in STAGES}
    assert {*spelt, *COMMANDS, "search"} <= names
    for name in names:
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0 and "example:" in text, name
        example = shlex.split(text.rsplit("example:", 1)[1])
        assert example[:2] == ["d2llm", name]
        options = vars(cli.parser().parse_args(example[1:]))
        if name in spelt:
            assert options["stage"] == spelt[name] and set(STAGES[spelt[name]].arguments) <= set(options)
            assert "Its record, written last: results/TIER/" in text


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x", "results/x"), "error: the disk is full, or files may not grow further ("),
        (OSError(errno.EFBIG, "x"), "error: the disk is full, or files may not grow further ("),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "error: the disk is full"),
        (OSError(errno.EROFS, "x", "results/x"), "error: a file or folder may not be read or written ("),
        (ArtifactError("x.parquet: missing"), "error: x.parquet: missing"),
        (MemoryError(), "error: memory is used up (MemoryError); run fewer jobs at a time"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: x\ny"), "error: memory is used up ("),
        (RuntimeError("x"), None),
    ],
)  # fmt: skip
def test_a_users_error_or_a_fault_of_the_machine_is_one_line_and_exit_2(
    error: Exception, message: str | None, config: str, tmp_path: Path, stand_in, capsys
) -> None:
    """And a bug keeps its traceback."""

    def run(config: Config) -> None:
        raise error

    stand_in("data", run)
    command = ["data", "--config", config, "--log", str(tmp_path / "log")]
    if message is None:
        with pytest.raises(RuntimeError, match="^x$"):
            cli.main(command)
        return
    assert cli.main(command) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert (tmp_path / "log").read_text().splitlines()[-1] == line
    assert not (tmp_path / "results/mini/data/provenance.json").exists()


def test_values_of_the_command_line_are_laid_over_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    values = ["data={files: {folder: ../elsewhere}}", "seeds=[7]"]
    assert cli.main(["check-config", "--config", str(ROOT / "config/mini.yaml"), "-C", *values]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "    folder: ../elsewhere" in lines and lines[lines.index("seeds:") + 1] == "- 7"
    with pytest.raises(SystemExit):
        cli.main(["doctor", "-C", "seeds"])
    assert "argument -C: expected KEY=VALUE; found 'seeds'" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "gb18030"])
def test_what_a_terminal_lacks_is_escaped_and_what_programs_read_is_utf_8(encoding: str, monkeypatch) -> None:
    """Python would end with UnicodeEncodeError."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit):
        cli.main(["search", "--help"])
    stream.flush()
    assert ("谁" if encoding == "gb18030" else "\\u8c01") in stream.buffer.getvalue().decode(encoding)
    assert cli.main(["check-config", "--config", str(ROOT / "config/mini.yaml")]) == 0
    assert stream.encoding == "utf-8"


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_done_without(config: str, tmp_path: Path) -> None:
    """Nobody can make a folder there, root neither. matplotlib, which is first to complain, gets one."""
    line = [sys.executable, "-m", "d2llm.cli", "figure", "--config", config, "--name", "architecture"]
    away = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME")
    usual = {name: value for name, value in os.environ.items() if name not in away}
    done = subprocess.run([*line, "--log", str(tmp_path / "log")], env=usual | {"HOME": "/proc/none"}, check=False)
    assert done.returncode == 0
    assert "WARNING" not in (tmp_path / "log").read_text() and (tmp_path / "results/mini/cache/matplotlib").is_dir()


def test_caches_stay_where_they_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "left", [])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", "mine")
    home.settle(tmp_path / "other")
    assert "XDG_CACHE_HOME" not in os.environ and not home.left
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    home.settle(tmp_path / "other")
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / "other") and home.left == ["/proc/none"]
    assert os.environ["MPLCONFIGDIR"] == "mine"  # what the user says stays
