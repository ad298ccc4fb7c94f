"""Kill campaign: a whole run in miniature, killed again and again at seeded moments of every stage, must end with the
scores of one left alone.

    python tools/campaigns/kill.py --folder FOLDER [--kills 36] [--seed 1] [--stages STAGE …] [--whole RESULTS]
    python tools/campaigns/kill.py --folder FOLDER --kills 0 --aim collect runtime table … [--seed 1] [--whole RESULTS]

Works on a copy of the repository below FOLDER whose own config is a miniature, so that what follows every kill is a
plain `snakemake --cores 2`. Prints a line a kill and a summary, writes both to FOLDER/report.md, and exits with 1 where
scores or models differ, a training that Snakemake saw finish was done again, or a restart did not go on. Takes about 20
minutes; pytest does not run it. What it found: docs/reliability.md.

With --aim, stages that are over in seconds are hit as well: whichever of the named ones starts a job is killed at once,
six times each (either signal to the main process, the job, the process group), however long the run takes to come to
it. Planned kills may outlast the run: aim in a call of its own (`--kills 0`).
"""

from __future__ import annotations

from clone import copy_repository  # isort: split

import argparse
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from tiny_run import BASE, tiny_settings

# Trainings long enough to be hit in their middle, with a checkpoint every few updates.
LONGER = {
    "training": {"steps": 60, "checkpoint_minutes": 0.002},
    "models": {model: BASE | {"steps": 120} for model in ("decoder", "encoder")},
    "teacher": {"steps": 80},
    "methods": {
        "bge": {"pretraining": {"steps": 30}, "unsupervised": {"steps": 30}},
        "retromae": {"pretraining": {"steps": 40}},
        "llara": {"adaptation": {"steps": 40}},
    },
    "teachers": {},
}
# In the order in which a run comes to them.
STAGES = (
    "texts", "data", "base", "teacher", "negatives", "teacher-scores", "pretext", "train", "evaluate", "collect",
    "comparison", "runtime", "table", "figure", "report", "notebook",
)  # fmt: skip
AIMS = (*STAGES, "ablations", "examples")
TRAINING = ("base", "teacher", "pretext", "train")
TARGETS = ("main", "job", "group")
# Seconds to wait for a job of the planned stage, which may have none left.
PATIENCE = 15.0
# Of an aimed kill, at most: seconds into the job. Half of them are start-up. Those of the last stages are over sooner.
SOON, SOONER = 2.0, 0.8
SHORT = ("table", "figure", "report", "notebook", "ablations", "examples")


@dataclass(eq=False)
class Kill:
    """One kill: when (seconds after the start of its Snakemake), in which stage, by what, of what, and what became of
    it."""

    after: float
    stage: str
    delay: float
    signal: str
    target: str
    outcome: str = ""


class Campaign:
    """A copy of the repository, and every start of Snakemake in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repository = folder, folder / "repository"
        self.starts = 0
        shutil.rmtree(folder, ignore_errors=True)
        copy_repository(self.repository)
        settings = tiny_settings(Path("results"), **LONGER)
        (self.repository / "config" / "mini.yaml").write_text(
            yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8"
        )

    @property
    def results(self) -> Path:
        return self.repository / "results" / "tiny"

    def start(self) -> subprocess.Popen[bytes]:
        """A plain `snakemake --cores 2`, in a process group of its own."""
        self.starts += 1
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with (self.folder / f"start{self.starts}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "snakemake", "--cores", "2"],
                cwd=self.repository, stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip

    def log(self, number: int) -> str:
        return (self.folder / f"start{number}.log").read_text(encoding="utf-8", errors="replace")

    def jobs(self, main: subprocess.Popen[bytes] | None = None) -> dict[int, list[str]]:
        """Jobs that are running, of a Snakemake or, without one, of this folder, orphans included: their command lines
        by process.
        """
        commands = {}
        try:
            processes = psutil.process_iter() if main is None else psutil.Process(main.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return {}
        for process in processes:
            try:
                line = process.cmdline()
                if (
                    "d2llm.cli" in line
                    and Path(process.cwd()) == self.repository
                    and Path(line[0]).name.startswith("python")
                ):
                    commands[process.pid] = line[line.index("d2llm.cli") + 1 :]
            except (psutil.Error, OSError):
                continue
        return commands

    def wait_for(self, stages: set[str], main: subprocess.Popen[bytes], patience: float) -> tuple[int, str] | None:
        """A job of one of the stages and which, as soon as there is one; after so many seconds any job; None when
        Snakemake ends before.
        """
        seen = None
        while main.poll() is None:
            running = {pid: line[0] for pid, line in self.jobs(main).items()}
            wanted = {pid: stage for pid, stage in running.items() if stage in stages}
            seen = seen or (time.monotonic() if running else None)
            if not wanted and running and time.monotonic() - seen > patience:
                wanted = running
            if wanted:
                return next(iter(wanted.items()))
            time.sleep(0.02)
        return None

    def kill(self, plans: list[Kill], patience: float) -> Kill:
        """Start a run, carry out the first plan whose stage has a job running, and wait until Snakemake has ended.

        Returns that plan; where the run ended before, the first one, its `after` still 0. With endless patience, a job
        that ends before its kill was not hit, and the next is waited for.
        """
        main, started = self.start(), time.monotonic()
        while True:
            running_job = self.wait_for({plan.stage for plan in plans}, main, patience)
            if running_job is None:
                plans[0].outcome = f"the run ended before, exit code {main.wait()}"
                return plans[0]
            job, stage = running_job
            plan = next((plan for plan in plans if plan.stage == stage), plans[0])
            time.sleep(plan.delay)
            running = self.jobs(main)
            if job in running or patience < math.inf:
                break
            plan.delay /= 2
        if job not in running and plan.target == "job":  # it has ended
            while not running and main.poll() is None:
                running = self.jobs(main)
            if not running:
                plan.outcome = f"the run ended before, exit code {main.wait()}"
                return plan
            job = next(iter(running))
        plan.stage = (
            ", ".join(dict.fromkeys(line[0] for line in running.values())) if plan.target != "job" else running[job][0]
        )
        plan.after = time.monotonic() - started
        number = getattr(signal, plan.signal)
        if plan.target == "main":
            main.send_signal(number)
        elif plan.target == "group":
            os.killpg(main.pid, number)
        else:
            os.kill(job, number)
        try:
            main.wait(timeout=90)
        except subprocess.TimeoutExpired:  # the job had come to its end, and the run went on
            os.killpg(main.pid, signal.SIGKILL)
            main.wait()
            plan.outcome = "went on, killed as a group; "
        left = [line[0] for line in self.jobs().values()]
        plan.outcome += f"exit code {main.returncode}" + (f", left behind: {', '.join(left)}" if left else "")
        return plan

    def error(self) -> str:
        """The first error that the last start told, but for a training's word that it was told to end; empty where
        there is none.
        """
        lines = re.findall(r"error: .*", self.log(self.starts))
        return next((line for line in lines if "stopped by SIG" not in line), "")


def history(campaign: Campaign) -> tuple[Counter[str], Counter[str]]:
    """By training: how often it was started, and how often again after a Snakemake had seen it finish."""
    finished: set[str] = set()
    started, again = Counter[str](), Counter[str]()
    for number in range(1, campaign.starts + 1):
        names: dict[str, str] = {}
        for line in re.split(r"\n(?=(?:local)?rule |\[|Finished jobid)", campaign.log(number)):
            rule = re.match(r"(?:local)?rule (\w+):", line)
            if rule and rule[1].startswith(("base", "teacher", "pretext", "train")) and rule[1] != "teacher_scores":
                wildcards = re.search(r"wildcards: (.*)", line)
                name = f"{rule[1]}({wildcards[1] if wildcards else ''})"
                names[re.search(r"jobid: (\d+)", line)[1]] = name
                started[name] += 1
                again[name] += name in finished
            for jobid in re.findall(r"Finished jobid: (\d+)", line):
                finished |= {names[jobid]} if jobid in names else set()
    return started, again


def digests(results: Path) -> dict[str, str]:
    """Of the scores and of all weights."""
    files = [results / "scores.csv", results / "predictions.parquet", *results.rglob("*.safetensors")]
    return {
        str(file.relative_to(results)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if "state" not in file.relative_to(results).parts
    }


def plans(count: int, seed: int, among: list[str]) -> list[Kill]:
    """Kills in the order of the stages, those that train more often; every signal meets every target."""
    rng = random.Random(seed)
    kinds = [(name, target) for name in ("SIGKILL", "SIGTERM") for target in TARGETS]
    weights = {stage: 4 if stage in TRAINING else 1 for stage in STAGES if stage in among}
    share = count / sum(weights.values())
    each = {stage: max(1, round(weight * share)) for stage, weight in weights.items()}
    stages = [stage for stage in STAGES if stage in among for _ in range(each[stage])]
    most = max(weights, key=weights.get)
    while len(stages) < count:
        stages.insert(stages.index(most), most)
    kills, order = [], []
    for stage in stages:
        order = order or rng.sample(kinds, len(kinds))
        name, target = order.pop()
        # Start-up takes some seconds; a third of the kills falls into it.
        kills.append(
            Kill(
                0.0,
                stage,
                rng.choice((rng.uniform(0.0, 3.0), rng.uniform(2.5, 6.0), rng.uniform(3.5, 8.0))),
                name,
                target,
            )
        )
    return kills


def aims(stages: list[str], seed: int) -> dict[str, list[Kill]]:
    """By stage: every signal to every target once. Last what lets the job end: there may be no other of its stage."""
    rng = random.Random(seed)
    kinds = [(name, target) for target in ("job", "group", "main") for name in ("SIGKILL", "SIGTERM")]
    return {
        stage: [
            Kill(0.0, stage, rng.uniform(0.0, SOONER if stage in SHORT else SOON), name, target)
            for name, target in kinds
        ]
        for stage in stages
    }


def carried_out(cut: Campaign, planned: list[Kill], aimed: dict[str, list[Kill]]) -> Iterator[Kill]:
    """Every kill, once it is done: those that are planned, then those that are aimed, until the run has come to its
    end.
    """
    for plan in planned:
        yield cut.kill([plan], PATIENCE)
    while left := [kills[0] for kills in aimed.values() if kills]:
        done = cut.kill(left, math.inf)
        yield done
        if not done.after:
            return
        for kills in aimed.values():
            if done in kills:
                kills.remove(done)


def table(kills: list[Kill]) -> list[str]:
    lines = [
        "| | stage | seconds into its job | seconds into the run | signal | to | outcome |",
        "|---:|---|---:|---:|---|---|---|",
    ]
    for number, kill in enumerate(kills, 1):
        lines.append(
            f"| {number} | {kill.stage} | {kill.delay:.1f} | {kill.after:.1f} "
            f"| {kill.signal} | {kill.target} | {kill.outcome} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="is emptied")
    parser.add_argument(
        "--whole", type=Path, help="results of an undisturbed campaign run, <folder>/whole/repository/results/tiny"
    )
    parser.add_argument("--kills", type=int, default=36)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=STAGES, help="where to kill (default: everywhere)"
    )
    parser.add_argument(
        "--aim",
        nargs="+",
        choices=AIMS,
        default=[],
        help="besides: six kills of each of these, whenever it starts a job after the others (--kills 0: these alone)",
    )
    options = parser.parse_args()
    if options.whole is None:
        campaign = Campaign(options.folder.resolve() / "whole")
        if campaign.start().wait() != 0:
            print(campaign.log(1)[-3000:])
            return 1
        whole = campaign.results
    else:
        whole = options.whole
    cut = Campaign(options.folder.resolve() / "cut")
    planned = plans(options.kills, options.seed, options.stages) if options.kills else []
    aimed = aims(options.aim, options.seed)
    kills, problems = [], []
    for number, kill in enumerate(carried_out(cut, planned, aimed), 1):
        kills.append(kill)
        if not kill.after and "exit code 0" not in kill.outcome:
            problems.append(f"kill {number}: {kill.outcome}")
        if cut.error() and kill.target != "job":
            problems.append(f"kill {number}: {cut.error()}")
        print(table(kills)[-1], flush=True)
    end = cut.start().wait()
    if end != 0:
        problems.append(f"the last, undisturbed start ended with {end}")
    started, again = history(cut)
    files, expected = digests(cut.results), digests(whole)
    differing = [name for name in {**files, **expected} if files.get(name) != expected.get(name)]
    resumed = {
        str(file.parent.relative_to(cut.results)): told["resumed"]
        for file in sorted(cut.results.rglob("provenance.json"))
        if "resumed" in (told := json.loads(file.read_text(encoding="utf-8")))
    }
    hit = Counter((kill.signal, kill.target) for kill in kills if kill.after)
    problems += [f"{name} differs" for name in differing]
    problems += [f"{name}: done again {times} times after it had finished" for name, times in again.items() if times]
    hits = ", ".join(f"{name} {target} {times}" for (name, target), times in sorted(hit.items()))
    trainings = f"Starts of trainings: {sum(started.values())} for {len(started)} trainings"
    resumes = "; ".join(f"{name} {updates}" for name, updates in resumed.items())
    lines = [
        *table(kills),
        "",
        f"Kills: {sum(hit.values())} ({hits}), seed {options.seed}.",
        f"Stages hit: {', '.join(dict.fromkeys(kill.stage for kill in kills if kill.after))}.",
        *(f"Not hit, as the run had ended: {stage}, {len(left)} times." for stage, left in aimed.items() if left),
        f"{trainings}; of those that had finished, done again: {sum(again.values())}.",
        f"Went on from a checkpoint (last start of each): {len(resumed)}: {resumes}.",
        f"Files compared (scores.csv, predictions, all weights): {len(expected)}; different: {len(differing)}.",
        *(problems or ["No problem."]),
    ]
    (options.folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines[len(kills) + 2 :]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
