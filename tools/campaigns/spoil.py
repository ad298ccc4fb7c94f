"""Thousands of spoiled configs and data files, by hand: `python tools/campaigns/spoil.py 2000 2000 [SEED] [--dry-run]`
(configs, data files). Prints what became of them.

Anything but a plan or one clear line is printed with its cause, and the exit code is 1. What is tried is in
`spoiled_configs` and `spoiled_data`. With --dry-run every config that was not refused goes through Snakemake's own dry
run besides, which takes some seconds each.
"""

from __future__ import annotations

from clone import ROOT  # isort: split

import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from spoiled_configs import outcome as config_outcome
from spoiled_configs import spoiled as spoiled_config
from spoiled_data import outcome as data_outcome
from spoiled_data import spoiled as spoiled_data


def campaign(name: str, strategy: Any, judge: Callable[[Any, Path], str], count: int, start: int) -> int:
    """Try `count` examples; prints kinds of outcome by number, and returns how many were neither taken nor refused
    well.
    """
    kinds: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    folder = Path(tempfile.mkdtemp(prefix="spoil-"))

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def each(case: Any) -> None:
        try:
            told = judge(case, folder)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "/d2llm/" in frame.filename or "spoiled" in frame.filename]
            last = (own or frames)[-1]
            where = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
            kinds[f"WRONG: {where}"] += 1
            wrong.setdefault(where, f"{error}\n{case}"[:1500])
            return
        kinds[kind(told)] += 1

    began = time.perf_counter()
    each()
    print(f"\n{name}: {sum(kinds.values())} tried in {time.perf_counter() - began:.0f} s")
    for what, number in kinds.most_common():
        print(f"{number:6d}  {what}")
    for where, example in wrong.items():
        print(f"\n{where}: {example}")
    return len(wrong)


def dry_run(below: list[Path], text: str, folder: Path) -> str:
    """As `config_outcome`; what that lets pass has to pass Snakemake's dry run of the whole workflow, or to be refused
    there in one line that names a key.
    """
    told = config_outcome(below, text, folder)
    if told != "planned":
        return told
    # In a folder of its own: where Snakemake runs it keeps its records and the run's config.
    work = folder / "dry"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    files = [str(path) for path in (*below, folder / "mine.yaml")]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(work)]
    done = subprocess.run(
        [*command, "--cores", "1", "--dry-run", "--quiet", "--configfile", *files],
        cwd=ROOT, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    output = done.stdout + done.stderr
    if done.returncode == 0:
        return "planned by Snakemake"
    lines = re.findall(r"error: (.*)", output)
    assert len(set(lines)) == 1 and "Traceback" not in output, output[-1500:]
    return f"Snakemake: {lines[0]}"


def kind(told: str) -> str:
    """What a line is about, without names and values."""
    for word in (
        "Snakemake: ",
        "planned by Snakemake",
        "planned",
        "read",
        "unknown key",
        "not valid YAML",
        "missing",
        "no column",
        "not JSON",
        "cannot be read as",
        "expected",
    ):
        if told.startswith(word) or f" {word}" in told:
            return word
    return re.sub(r"['(].*", "…", told.partition(": ")[2] or told)[:60]


if __name__ == "__main__":
    numbers = [value for value in sys.argv[1:] if value != "--dry-run"]
    configs, data, start = (int(value) for value in [*numbers, *("2000", "2000", "1")[len(numbers) :]])
    judge = dry_run if "--dry-run" in sys.argv else config_outcome
    bad = campaign("configs", spoiled_config(), lambda case, folder: judge(*case, folder), configs, start)
    bad += campaign("data files", spoiled_data(), data_outcome, data, start)
    sys.exit(1 if bad else 0)
