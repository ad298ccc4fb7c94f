"""The command line prepares a stage, records where its result comes from, and turns user errors into one line."""

import errno
import fcntl
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import time
import types
from collections.abc import Iterator
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
    entry = replace(STAGES[stage], function="stand_in:run", torch=False, accept=None)
    monkeypatch.setitem(STAGES, stage, entry)


def test_provenance_is_written_last_and_tells_inputs_settings_and_machine(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provenance = tmp_path / "results/mini/runs/bge/base/seed1/provenance.json"

    def run(config: Config, method: str, variant: str, seed: int, resume: object) -> None:
        assert not provenance.exists()
        write_text(Paths.of(config).run(method, variant, seed) / "summary.json", "{}")

    stand_in(monkeypatch, "train", run)
    given = tmp_path / "input"
    given.write_bytes(b"abc")
    log = tmp_path / "log"
    assert cli.main([*TRAIN, str(config), "--log", str(log), "--inputs", str(given)]) == 0
    record = json.loads(provenance.read_text())
    assert record["inputs"] == {str(given): "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert (record["method"], record["variant"], record["seed"]) == ("bge", "base", 1)
    assert record["settings"]["recipe"]["temperature"] == Config(methods={"bge": {}}).recipe("bge").temperature
    assert record["peak_memory_mb"] > 10
    assert {"python", "platform", "device", "packages", "threads", "started", "seconds", "code"} <= set(record)
    assert "train method=bge variant=base seed=1" in log.read_text()


def test_what_a_stage_made_is_accepted_before_it_is_recorded(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the stage names for it, after its function; refused, it has no record."""
    calls: list[str] = []

    def refuse(config: Config) -> None:
        calls.append("accept")
        raise ArtifactError("too few")

    stand_in(monkeypatch, "data", lambda config: calls.append("run"))
    sys.modules["stand_in"].refuse = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(STAGES, "data", replace(STAGES["data"], accept="stand_in:refuse"))
    assert cli.main(["data", "--config", str(config)]) == 2
    assert calls == ["run", "accept"] and not STAGES["data"].record(Paths.of(load([config]))).exists()


def test_a_job_outside_the_config_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", str(config), "--method", "sgpt", "--seed", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: --method sgpt --variant base --seed 1: not a run of this config; "
        "add it to methods, variants, sweeps, seeds or tuning.grids, "
        "or take the nearest: --method bge --variant base --seed 1\n"
    )
    for command, message in (
        (["base", "--model", "student"], "--model: expected one of teacher, decoder, encoder; found 'student'"),
        (
            ["pretext", "--method", "sgpt"],
            "--method sgpt --variant base: no run of this config has a pre-training stage",
        ),
    ):
        assert cli.main([*command, "--config", str(config)]) == 2
        assert message in capsys.readouterr().err


def test_the_nearest_run_is_like_it_in_method_then_variant_then_seed() -> None:
    runs = [Run("d2llm", "base", 1), Run("d2llm", "base", 5), Run("d2llm", "no_ci", 1), Run("bge", "base", 1)]
    for wanted, near in (
        (("dllm", "base", 1), 0), (("d2llm", "base", 9), 1), (("d2llm", "no_cl", 5), 2), (("bgee", "no_ci", 5), 3)
    ):  # fmt: skip
        assert jobs.nearest_run(Run(*wanted), runs) == runs[near]


def test_a_job_waits_for_its_ghost(tmp_path: Path) -> None:
    ghost = (
        "import sys, time; from pathlib import Path; from d2llm.cli.main import job_lock\n"
        "with job_lock(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(0.7)"
    )
    lock = tmp_path / "job"
    with subprocess.Popen([sys.executable, "-c", ghost, lock], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        started = time.monotonic()
        with cli.job_lock(lock):
            assert time.monotonic() - started > 0.3


@pytest.mark.parametrize(("then", "stays"), [("same", False), ("another", True), ("none", True), ("never", True)])
def test_the_last_checkpoint_goes_only_where_the_workflow_sees_the_job_end(
    then: str, stays: bool, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workflow that started a job is still there, was killed and another runs, was killed, or never was."""
    guard = tmp_path / "results/mini/.running"
    guard.parent.mkdir(parents=True)
    state = tmp_path / "results/mini/state/train.method=bge.variant=base.seed=1"
    with guard.open("a") as main:

        def run(config: Config, method: str, variant: str, seed: int, resume: Resume) -> None:
            write_text(resume.folder / "1-fine-tuning.safetensors", "")
            if then == "another":
                guard.write_text("the next")
            elif then == "none":
                fcntl.flock(main, fcntl.LOCK_UN)

        stand_in(monkeypatch, "train", run)
        guard.write_text("the first")
        if then != "never":
            fcntl.flock(main, fcntl.LOCK_EX)
        assert cli.main([*TRAIN, str(config), "--inputs", str(config)]) == 0
    assert state.exists() == stays


def test_a_clock_set_back_fails_no_job(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input written before the clock was set back would be newer than what is made of it."""
    given = tmp_path / "results/mini/pairs/pairs.parquet"
    given.parent.mkdir(parents=True)
    given.touch()
    later = time.time() + 7200
    os.utime(given, (later, later))
    stand_in(monkeypatch, "train", lambda config, method, variant, seed, resume: None)
    assert cli.main([*TRAIN, str(config), "--inputs", str(given)]) == 0
    assert given.stat().st_mtime <= time.time()


def test_without_named_inputs_no_checkpoint_is_kept(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Resume] = []
    stand_in(monkeypatch, "train", lambda config, method, variant, seed, resume: given.append(resume))
    for inputs in ([], ["--inputs", str(config)]):
        assert cli.main([*TRAIN, str(config), *inputs]) == 0
    assert [resume.folder is None for resume in given] == [True, False]
    assert set(given[1].job) == {"settings", "code", "inputs", "threads", "versions"}
    assert "torch" in given[1].job["versions"]


def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which progress is told, to be set."""
    now = [1000.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    return now


def test_progress_away_from_a_terminal_is_log_lines(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock(monkeypatch)
    with caplog.at_level(logging.INFO, logger="d2llm"):
        for _ in progress(range(600), "counting"):
            now[0] += 1.0
    numbers = [int(record.message.split(": ")[1].split(" of ")[0]) for record in caplog.records]
    assert numbers == [10, 20, 30, 40, 50, 60, *range(120, 601, 60)]


def test_a_heartbeat_tells_how_far_how_fast_how_long_and_how_much(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock(monkeypatch)
    with caplog.at_level(logging.INFO, logger="d2llm"):
        bar = progress(range(60, 300), "training", 60)  # goes on after 60 updates that another process did
        for number in bar:
            if number == 80:
                break
            now[0] += 0.5
            bar.show(loss=number / 100)
    (line,) = [record.message for record in caplog.records]
    match = re.fullmatch(r"training: 80 of 300 in 10 s, 2/s, about 110 s left, (\d+) MB, loss 0.79", line)
    assert match, line
    assert float(match[1]) == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.1)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Log handlers as they were, afterwards."""
    before, level = logging.getLogger().handlers[:], logging.getLogger("d2llm").level
    yield
    for handler in logging.getLogger().handlers[:]:
        logging.getLogger().removeHandler(handler)
        if handler not in before:
            handler.close()
    logging.getLogger().handlers[:] = before
    logging.getLogger("d2llm").setLevel(level)


@pytest.mark.parametrize("filed", [True, False])
def test_on_a_terminal_the_job_s_file_gets_the_lines_too(
    filed: bool, handlers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a file there is the bar alone: lines would run through it."""
    monkeypatch.setattr(logs, "terminal", lambda: True)
    logging.getLogger().handlers[:] = []
    logs.configure(tmp_path / "log" if filed else None)
    now = clock(monkeypatch)
    for _ in progress(range(30), "counting"):
        now[0] += 1.0
    lines = (tmp_path / "log").read_text().splitlines() if filed else []
    assert [line.split("counting: ")[1].split(" of ")[0] for line in lines] == (["10", "20", "30"] if filed else [])
    # The clock that stands still keeps the bar from being drawn again.
    bar = capsys.readouterr().err
    assert "| 0/30 [" in bar and "20 of 30" not in bar


def test_of_processes_that_share_a_training_the_first_one_tells(
    handlers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        logs.configure(log)
        logs.get_logger("x").info("told by %s", rank)
        logs.get_logger("x").warning("wrong in %s", rank)
    assert [line.split(": ", 1)[1] for line in log.read_text().splitlines()] == [
        "told by 0",
        "wrong in 0",
        "wrong in 1",
    ]


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
            stage = STAGES[spelt[name]]
            assert options["stage"] == spelt[name] and set(stage.arguments) <= set(options)
            assert (
                f"stage: {stage.help}" in " ".join(text.split()) and "Its record, written last: results/TIER/" in text
            )


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
    ],
)  # fmt: skip
def test_a_users_error_or_a_fault_of_the_machine_is_one_line_and_exit_2(
    error: Exception,
    message: str,
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
    assert line.startswith(message)
    assert log.read_text().splitlines()[-1] == line
    assert not (tmp_path / "results/mini/data/provenance.json").exists()


# ------------------------------------------------------------------------------------- terminals and homes of all kinds
def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`d2llm COMMAND` in a process of its own, whose output has to come from this environment."""
    away = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "HF_HOME")
    usual = {name: value for name, value in os.environ.items() if name not in away}
    line = [sys.executable, "-m", "d2llm.cli", *command]
    return subprocess.run(line, env=usual | environment, capture_output=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "gb18030"])
def test_what_a_terminal_lacks_is_escaped(encoding: str) -> None:
    """Python would end with UnicodeEncodeError."""
    done = run(["search", "--help"], PYTHONIOENCODING=encoding)
    assert done.returncode == 0
    assert ("谁" if encoding == "gb18030" else "\\u8c01") in done.stdout.decode(encoding)


def test_what_programs_read_is_utf_8(tmp_path: Path) -> None:
    resolved = run(["check-config", "--config", "config/mini.yaml"], PYTHONIOENCODING="gb18030")
    (tmp_path / "again.yaml").write_bytes(resolved.stdout)
    assert load([tmp_path / "again.yaml"]) == load([ROOT / "config/mini.yaml"])
    wrong = run(["check-config", "--config", "没有.yaml"], PYTHONIOENCODING="ascii")
    assert wrong.returncode == 2 and wrong.stderr.startswith(b"error: ") and wrong.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_done_without(config: Path, tmp_path: Path) -> None:
    """Nobody can make a folder there, root neither. matplotlib, which is first to complain, gets one."""
    figure = ["figure", "--config", str(config), "--name", "architecture", "--log", str(tmp_path / "log")]
    done = run(figure, HOME="/proc/none")
    assert done.returncode == 0, done.stderr.decode()
    assert "WARNING" not in (tmp_path / "log").read_text() and (tmp_path / "results/mini/cache/matplotlib").is_dir()
    done = run(["doctor"], HOME="/dev/null")
    assert done.returncode == 0 and not done.stderr
    assert "caches cannot be written (/dev/null/.cache)" in done.stdout.decode()


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


def test_a_bug_keeps_its_traceback(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: Config) -> None:
        raise RuntimeError("x") from ValueError("y")

    stand_in(monkeypatch, "data", run)
    with pytest.raises(RuntimeError, match="x"):
        cli.main(["data", "--config", str(config)])
