"""What a run of the workflow prints for the person before it: what it will do and for how long, how far it is, and the
headline scores at its end.

Jobs are stages with arguments; `workflow/rules/screen.smk` passes on what Snakemake starts and ends. Pure but for the
tables read at the end; loads nothing that computes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from d2llm.cli.plan.jobs import JOBS, Given, cost
from d2llm.run.stages import STAGES

if TYPE_CHECKING:
    from d2llm.config.schema import Config
    from d2llm.run.paths import Paths

# Seconds that a job takes beside what the plan reckons: to load torch, or only Python and the tables.
LOADS, STARTS = 6.0, 2.0
# Seconds by which the plan is trusted before the clock is.
TRUST = 120.0
# Seconds without a line after which one is printed all the same.
SILENCE = 60.0


@dataclass(frozen=True)
class Job:
    """A job of the run. `seconds` are what it is expected to take."""

    title: str
    seconds: float


def stage_of(rule: str) -> str | None:
    """The stage whose job a rule is, itself or by inheritance; None for a rule that only names targets.

    >>> [stage_of(rule) for rule in ("train_bge", "teacher_scores", "base_other", "all")]
    ['train', 'teacher_scores', 'base', None]
    """
    stages = [stage for stage in STAGES if rule == stage or rule.startswith(f"{stage}_")]
    return max(stages, key=len, default=None)


def job(given: Given, rule: str, arguments: Mapping[str, str]) -> Job:
    """A job by its rule and what tells it from others of its kind."""
    stage = stage_of(rule)
    if stage is None:
        return Job(rule, 0.0)
    values = [f"seed {value}" if name == "seed" else value for name, value in arguments.items() if value != "base"]
    seconds = 3600 * cost(given, stage, **arguments).hours if stage in JOBS else 0.0
    title = " ".join([stage.replace("_", " "), *(value for value in values if value != stage)])
    return Job(title, seconds + (LOADS if STAGES[stage].torch else STARTS))


def minutes(seconds: float) -> str:
    """A time to wait, no more exact than it is known.

    >>> [minutes(seconds) for seconds in (20, 100, 1500, 9000)]
    ['1 minute', '2 minutes', '25 minutes', '2.5 hours']
    """
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    count = max(1, round(seconds / 60))
    return f"{count} minute{'s' * (count != 1)}"


def opening(config: Config, paths: Paths, rules: Mapping[str, int], seconds: float, slots: int) -> str:
    """What the run will do. `rules` counts its jobs by rule."""
    stages: Counter[str] = Counter()
    for rule, count in rules.items():
        stages[stage_of(rule) or "none"] += count
    downloads = stages["download"] + stages["published"]
    parts = [f"{stages['train']} trainings"] if stages["train"] else []
    parts += [f"{stages['evaluate']} evaluations"] if stages["evaluate"] else []
    place = f"at {slots} jobs at a time" if slots > 1 else "one job at a time"
    network = "Models and data of the hub are fetched first." if downloads else "No network is used."
    return "\n".join(
        [
            f"Tier {config.tier}: {sum(rules.values())} jobs{' (' if parts else ''}{', '.join(parts)}{')' * bool(parts)}.",
            f"Time: about {minutes(seconds)}, {place} (an estimate; it is corrected as jobs end).",
            f"Network: {network}",
            f"Result: {paths.report}, with tables, figures and scores beside it; logs of jobs: {paths.root}/logs/.",
            "You may stop with Ctrl-C: the same command goes on where it was.",
        ]
    )


class Watch:
    """Counts jobs that start and end, and prints a line for each end. `print` takes a line."""

    def __init__(
        self,
        jobs: Mapping[int, Job],
        slots: int,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.jobs, self.slots, self.write, self.clock = jobs, slots, write, clock
        self.running: dict[int, float] = {}
        self.ended: set[int] = set()
        self.began = self.spoken = clock()
        self.lock = threading.Lock()

    def start(self, number: int) -> None:
        """A job begins."""
        with self.lock:
            self.running.setdefault(number, self.clock())

    def end(self, number: int) -> None:
        """A job is done."""
        with self.lock:
            began = self.running.pop(number, None)
            if number not in self.jobs or number in self.ended:
                return
            self.ended.add(number)
            took = "" if began is None else f" ({self.clock() - began:.0f} s)"
            self.say(f"done: {self.jobs[number].title}{took}")

    def beat(self) -> None:
        """Print a line where none was printed for long."""
        with self.lock:
            if self.running and self.clock() - self.spoken >= SILENCE:
                self.say("running: " + ", ".join(self.jobs[n].title for n in self.running if n in self.jobs))

    def say(self, text: str) -> None:
        """Print a line of how far the run is."""
        self.spoken = self.clock()
        left = f", about {minutes(self.left())} left" if len(self.ended) < len(self.jobs) else ""
        self.write(f"[{len(self.ended)} of {len(self.jobs)} jobs{left}] {text}")

    def left(self) -> float:
        """Seconds to the end: what the plan says of the jobs to come, at the speed of those that ended."""
        now = self.clock()
        whole = sum(each.seconds for each in self.jobs.values())
        done = sum(self.jobs[number].seconds for number in self.ended)
        for number, began in self.running.items():
            done += min(now - began, 0.9 * self.jobs[number].seconds) if number in self.jobs else 0.0
        speed = (now - self.began + TRUST) / (done / self.slots + TRUST)
        return speed * (whole - done) / self.slots


def beating(watch: Watch) -> None:
    """Have a thread look every few seconds whether a line is due; it ends with the process."""

    def look() -> None:
        while len(watch.ended) < len(watch.jobs):
            time.sleep(5)
            watch.beat()

    threading.Thread(target=look, daemon=True).start()


# -------------------------------------------------------------------------------------------------------------- the end
def closing(config: Config, paths: Paths) -> str:
    """The headline scores of a finished run, and where all of it is."""
    lines = [*headline(config, paths), ""]
    lines += [
        f"Page:    {paths.report}  (open it in a browser)",
        f"Scores:  {paths.scores_csv}",
        f"Tables:  {paths.root}/tables/    Figures: {paths.root}/figures/",
    ]
    return "\n".join(lines)


def headline(config: Config, paths: Paths) -> list[str]:
    """A row a method: mean of the headline metric over the tasks of each kind and the seeds, out of Tables 1 to 3."""
    import pandas as pd

    from d2llm.config.task_types import METRIC_TITLES, TASK_TYPES
    from d2llm.reporting.context import context
    from d2llm.reporting.style import CONTROLLED_TEXT, GROUP_TITLES
    from d2llm.run.schemas import AVERAGE

    about = context(config)
    rows: dict[str, list[str]] = {name: [] for name in [*about.references, *about.methods]}
    titles = []
    for kind in TASK_TYPES.values():
        file = paths.table(kind.group, "csv")
        table = pd.read_csv(file, keep_default_na=False) if file.exists() and file.stat().st_size else pd.DataFrame()
        if table.empty:
            continue
        table = table[table["metric"] == kind.headline]
        task = AVERAGE if AVERAGE in set(table["task"]) else table["task"].iloc[0]
        chosen = table[table["task"] == task].set_index("method")
        titles.append((GROUP_TITLES[kind.group], METRIC_TITLES[kind.headline]))
        for name, cells in rows.items():
            lead = {"up": "↑", "down": "↓"}.get(chosen["lead"].get(name, ""), " ")
            cells.append(f"{float(chosen['mean'][name]):.3f}{lead}" if name in chosen.index else "–")
    if not titles:
        return []
    width = max(len(about.label(name)) for name in rows)
    lines = [" " * width + "".join(f"{title[place]:>11} " for title in titles) for place in (0, 1)]
    lines += [f"{about.label(name):{width}}" + "".join(f"{cell:>12}" for cell in cells) for name, cells in rows.items()]
    notes = [f"↑ ↓: {about.subject} is significantly above or below the strongest baseline.", about.note]
    notes += [CONTROLLED_TEXT] * about.generated
    return [
        f"Scores of tier {config.tier}, mean of each kind's tasks and of seeds:",
        "",
        *lines,
        "",
        *filter(None, notes),
    ]
