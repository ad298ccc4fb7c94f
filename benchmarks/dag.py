"""The workflow: a call that has nothing to do, what jobs need to start, how busy the cores of a finished run were.

Nothing is trained. `--results` is a finished run of `--config` (`make`). Starting is measured as the seconds a fresh
interpreter takes to import what the stage's job imports before its work begins; the rest of a job is in its record.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from common import arguments, publish

from d2llm.run.jobs import find_stage
from d2llm.run.stages import STAGES


def fresh(*command: str) -> float:
    """Seconds of a command, output thrown away; the median of three."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    options = arguments(
        __doc__ or "",
        results={"type": Path, "default": Path("results/mini"), "help": "a finished run"},
        cores={"type": int, "default": 2, "help": "it had"},
        config={
            "default": "",
            "help": "its tier's file, where not config/mini.yaml; for the call that has nothing to do",
        },
        idle={"action": "store_true", "help": "leave that call out"},
    )
    jobs: dict[str, list[float]] = defaultdict(list)
    spans: list[tuple[float, float]] = []
    for file in options.results.rglob("*provenance.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        if find_stage(record.get("stage", "")) in STAGES:
            begun = datetime.fromisoformat(record["started"]).timestamp()
            spans.append((begun, begun + record["seconds"]))
            jobs[find_stage(record["stage"])].append(record["seconds"])
    bare = fresh(sys.executable, "-c", "pass")
    rows = []
    for stage, seconds in sorted(jobs.items(), key=lambda entry: -sum(entry[1])):
        module = STAGES[stage].function.partition(":")[0]
        torch = "; import torch" if STAGES[stage].torch else ""
        start = fresh(sys.executable, "-c", f"import d2llm.cli.main, {module}{torch}") - bare
        rows.append(
            {"stage": stage, "jobs": len(seconds), "seconds, median": statistics.median(seconds), "in all": sum(seconds), "to start": start}
        )  # fmt: skip
    # Breaks between two calls of snakemake are no idling.
    wall, last = 0.0, 0.0
    for begun, ended in sorted(spans):
        gap = begun - last
        wall += ended - max(begun, last) if gap > 120 or last == 0 else max(0.0, ended - last)
        last = max(last, ended)
    busy = sum(sum(seconds) for seconds in jobs.values()) / (options.cores * wall)
    publish("dag", rows, {"cores": options.cores}, options.json)
    print(f"{wall / 60:.1f} minutes from first to last job; cores busy with jobs {busy:.0%} of it")
    if not options.idle:
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--cores",
            "all",
            *(["--configfile", options.config] if options.config else []),
        ]
        # Asked first: with another config than the run's, the call would start jobs.
        planned = subprocess.run([*command, "--dry-run"], check=True, capture_output=True, text=True)
        if "Nothing to be done" not in planned.stdout + planned.stderr:
            raise SystemExit(f"{options.results}: not a finished run of this config; name its file with --config")
        print(f"a call with nothing to do: {fresh(*command):.1f} s")


if __name__ == "__main__":
    main()
