"""What a run prints: its jobs and time before it starts, how far it is, its headline scores at the end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from d2llm.cli import screen
from d2llm.config.load import load
from d2llm.run.paths import Paths

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference" / "mini"


@pytest.mark.parametrize(
    ("rules", "seconds", "slots", "lines"),
    [
        (
            {"train_bge": 1, "train": 2, "evaluate_teacher": 1, "teacher": 1, "all": 1},
            1500.0,
            2,
            ("6 jobs (3 trainings, 1 evaluations)", "25 minutes, at 2 jobs at a time", "No network"),
        ),
        ({"table": 3, "download": 1}, 10.0, 1, ("4 jobs.", "1 minute, one job at a time", "fetched first")),
    ],
)
def test_the_opening(rules: dict[str, int], seconds: float, slots: int, lines: tuple[str, ...]) -> None:
    config = load([REFERENCE / "config.yaml"])
    text = screen.opening(config, Paths.of(config), rules, seconds, slots)
    assert all(line in text for line in (*lines, "results/mini/report.html"))


def test_time_left_follows_the_clock() -> None:
    """Ten jobs of 100 s on two cores, which take twice as long: the estimate nears the truth as jobs end."""
    now, lines = [0.0], []
    watch = screen.Watch({n: screen.Job(f"job {n}", 100.0) for n in range(10)}, 2, lines.append, lambda: now[0])
    errors = [abs(watch.left() - 1000)]
    for pair in range(0, 10, 2):
        watch.start(pair), watch.start(pair + 1)
        now[0] += 30
        watch.beat()
        now[0] += 170
        watch.end(pair), watch.end(pair + 1), watch.end(pair + 1)
        errors.append(abs(watch.left() - (1000 - now[0])))
    assert errors[0] == 500 and errors == sorted(errors, reverse=True) and errors[-1] == 0
    assert lines[0] == "[1 of 10 jobs, about 10 minutes left] done: job 0 (200 s)" and len(lines) == 10
    assert lines[-1] == "[10 of 10 jobs] done: job 9 (200 s)"
    watch.jobs, watch.ended = {1: screen.Job("long", 500.0)}, set()
    watch.start(1)
    now[0] += screen.SILENCE
    watch.beat(), watch.beat()
    assert lines[10:] == [lines[10]] and lines[10].endswith("running: long")


def test_the_headline_is_that_of_the_tables() -> None:
    lines = screen.headline(load([REFERENCE / "config.yaml"]), Paths(REFERENCE))
    [row] = [line.split() for line in lines if line.startswith("D2LLM ")]
    for value, name, column in zip(row[1:], ("nli", "sts", "ir"), ("AP", "Spearman", "MRR@10"), strict=True):
        table = [
            line.split(" | ") for line in (REFERENCE / f"tables/{name}.md").read_text().splitlines() if " | " in line
        ]
        [place] = [i for i, head in enumerate(table[0]) if head.strip(" |") == f"Average<br>{column}"]
        [cell] = [cells[place] for cells in table if cells[0].strip("| ") == "D2LLM"]
        assert abs(float(value.rstrip("↑↓")) - float(re.search(r"\d\.\d+", cell)[0])) < 6e-4
        assert ("↑" in value) == ("↑" in cell)
    assert screen.headline(load([REFERENCE / "config.yaml"]), Paths(Path("nowhere"))) == []
