"""The aim of `campaigns/kill.py`: it waits for the stage it is to hit, however long, and knows what it has not hit."""

from __future__ import annotations

import importlib.util
import math
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent / "campaigns" / "kill.py"


@pytest.fixture(scope="module")
def kill() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("kill", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill"] = module  # where its dataclass looks
    spec.loader.exec_module(module)
    return module


def campaign(kill: types.ModuleType, *steps: dict[str, str]) -> object:
    """A campaign whose run is a process of 20 s; each look at its jobs finds the next step: the stage each process (by a letter) is of."""

    class Stub(kill.Campaign):
        def __init__(self) -> None:
            self.starts, self.steps = 0, list(steps)
            self.pids: dict[str, int] = {}

        def start(self) -> subprocess.Popen[bytes]:
            self.starts += 1
            self.main = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"], start_new_session=True)
            return self.main

        def jobs(self, main: subprocess.Popen[bytes] | None = None) -> dict[int, list[str]]:
            if main is None:
                return {}
            step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
            if not step:
                main.kill()
                main.wait()
            return {(main.pid if letter == "m" else ord(letter)): [stage] for letter, stage in step.items()}

    return Stub()


def test_an_aim_is_every_signal_to_every_target_and_lets_the_job_end_last(kill: types.ModuleType) -> None:
    aimed = kill.aims(["collect", "runtime"], 3)
    assert list(aimed) == ["collect", "runtime"]
    for stage, kills in aimed.items():
        assert {(one.signal, one.target) for one in kills} == {(name, target) for name in ("SIGKILL", "SIGTERM") for target in kill.TARGETS}  # fmt: skip
        assert len(kills) == 6 and (kills[-1].signal, kills[-1].target) == ("SIGTERM", "main")
        assert all(one.stage == stage and 0 <= one.delay <= kill.SOON for one in kills)


def test_it_waits_for_the_stage_and_hits_nothing_else(kill: types.ModuleType) -> None:
    """Whichever of the aimed stages comes first; `m` is the process that is killed here."""
    run = campaign(kill, {"a": "train"}, {"a": "train", "b": "evaluate"}, {"b": "evaluate", "m": "collect"})
    plans = [kill.Kill(0.0, "runtime", 0.0, "SIGKILL", "job"), kill.Kill(0.0, "collect", 0.0, "SIGTERM", "job")]
    done = run.kill(plans, math.inf)
    assert done is plans[1] and done.stage == "collect" and done.after > 0
    assert run.main.returncode == -signal.SIGTERM and done.outcome == "exit code -15"
    assert plans[0].after == 0


def test_a_job_that_ends_before_its_kill_was_not_hit(kill: types.ModuleType) -> None:
    run = campaign(kill, {"a": "collect"}, {"b": "train"}, {"m": "collect"})
    done = run.kill([kill.Kill(0.0, "collect", 0.2, "SIGKILL", "job")], math.inf)
    assert done.delay == 0.1 and run.main.returncode == -signal.SIGKILL


def test_without_aim_it_takes_what_runs_after_a_while(kill: types.ModuleType) -> None:
    run = campaign(kill, {"m": "train"})
    started = time.monotonic()
    done = run.kill([kill.Kill(0.0, "collect", 0.0, "SIGKILL", "job")], 0.2)
    assert done.stage == "train" and 0.2 < time.monotonic() - started < 10


def test_a_campaign_ends_with_the_run_and_tells_what_is_left(kill: types.ModuleType) -> None:
    """One kill is done at the first start; at the second the run comes to its end."""
    run = campaign(kill, {"m": "table"}, {"m": "table"}, {})
    aimed = kill.aims(["notebook", "table"], 1)
    for kills in aimed.values():
        for one in kills:
            one.delay = 0.0
    done = list(kill.carried_out(run, [], aimed))
    assert [bool(one.after) for one in done] == [True, False]
    assert done[0].stage == "table" and done[1].outcome.startswith("the run ended before")
    assert {stage: len(kills) for stage, kills in aimed.items()} == {"notebook": 6, "table": 5}
