"""The aim of `tools/campaigns/kill.py`: it waits for the stage it is to hit, and knows what it has not hit."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools" / "campaigns"))
import kill  # noqa: E402


class Run(kill.Campaign):
    """A campaign whose run is a process of 20 s; each look at its jobs finds the next step: the stage each process (by
    a letter) is of. `m` is the process that is killed here; at an empty step the run ends.
    """

    def __init__(self, *steps: dict[str, str]) -> None:
        self.starts, self.steps = 0, list(steps)

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


def plan(stage: str, name: str = "SIGKILL", delay: float = 0.0) -> Any:
    return kill.Kill(0.0, stage, delay, name, "job")


@pytest.mark.parametrize(
    ("steps", "plans", "patience", "stage", "name"),
    [  # whichever of the aimed stages comes first, and nothing else
        ("train train collect", [plan("runtime"), plan("collect", "SIGTERM")], math.inf, "collect", "SIGTERM"),
        ("collect train collect", [plan("collect", delay=0.2)], math.inf, "collect", "SIGKILL"),
        ("train", [plan("collect")], 0.2, "train", "SIGKILL"),
    ],
    ids=["waits for its stage", "a job that ended before was not hit", "without aim what runs after a while"],
)
def test_what_is_hit(steps: str, plans: list, patience: float, stage: str, name: str) -> None:
    stages = steps.split()
    run = Run(*({letter: stage} for letter, stage in zip("abcd", stages[:-1], strict=False)), {"m": stages[-1]})
    done = run.kill(plans, patience)
    assert done in plans and done.stage == stage and done.after > 0
    assert run.main.returncode == -signal.Signals[name]
    assert all(other.after == 0 for other in plans if other is not done)


def test_a_campaign_ends_with_the_run_and_tells_what_is_left() -> None:
    """Of each stage every signal goes to every target; one kill is done, then the run comes to its end."""
    aimed = kill.aims(["notebook", "table"], 1)
    for one in sum(aimed.values(), []):
        one.delay = 0.0
    assert all(len({(one.signal, one.target) for one in kills}) == len(kills) == 6 for kills in aimed.values())
    done = list(kill.carried_out(Run({"m": "table"}, {"m": "table"}, {}), [], aimed))
    assert [bool(one.after) for one in done] == [True, False]
    assert done[0].stage == "table" and done[1].outcome.startswith("the run ended before")
    assert {stage: len(kills) for stage, kills in aimed.items()} == {"notebook": 6, "table": 5}
