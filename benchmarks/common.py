"""What all benchmarks share: machine facts, timing of alternatives in turn, a table of ratios.

Times of one run are compared with each other only: every alternative runs once a round, round after round, and a ratio
is the median of the rounds' ratios, so that a machine whose speed drifts cannot favour one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Timed:
    """Seconds of each round, by alternative."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Median seconds of one alternative."""
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> tuple[float, float, float]:
        """How many times longer `slow` takes than `fast`: (least, median, most) over the rounds."""
        ratios = sorted(a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True))
        return ratios[0], statistics.median(ratios), ratios[-1]


def rounds(alternatives: dict[str, Callable[[], Any]], count: int, warm: bool = True) -> Timed:
    """Run every alternative once a round; one round before the first is not counted."""
    timed = Timed({name: [] for name in alternatives})
    for number in range(-1 if warm else 0, count):
        for name, call in alternatives.items():
            started = time.perf_counter()
            call()
            if number >= 0:
                timed.seconds[name].append(time.perf_counter() - started)
    return timed


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    import torch

    cpu = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith("flags")), "")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": next((name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags), "-"),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def arguments(description: str, **options: dict[str, Any]) -> argparse.Namespace:
    """`--json FILE` and `--threads N`, and what a benchmark adds; sets the threads."""
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write what was measured there as well")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    for name, option in options.items():
        parser.add_argument(f"--{name}", **option)
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    import torch

    torch.set_num_threads(chosen.threads)
    return chosen


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table; the columns are the first row's."""
    columns = list(rows[0])
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *cells]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def publish(name: str, rows: list[dict[str, Any]], settings: dict[str, Any], path: Path | None) -> None:
    """Print the table with the machine's facts, and keep both as JSON where asked to."""
    facts = machine()
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in (settings | facts).items() if value is not None))
    print(table(rows))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"benchmark": name, "settings": settings, "machine": facts, "rows": rows}, indent=1) + "\n"
        )
