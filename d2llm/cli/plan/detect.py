"""`d2llm plan --detect 0.02`: how many trainings, or examples, it takes to see a difference of that size, by the
spreads of a run that is there. Reads `comparisons.csv`; runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from d2llm.analysis.comparison import whole_kind
from d2llm.analysis.inference import POWER, detectable
from d2llm.reporting.style import GROUP_TITLES, number
from d2llm.run.artifacts import read_csv
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths
from d2llm.run.schemas import COMPARISONS

if TYPE_CHECKING:
    import pandas as pd

    from d2llm.config.schema import Config

# More trainings, and examples times as many, are not looked at.
TRAININGS, TIMES = 50, 100


def run(config: Config, size: float) -> str:
    """The table for a terminal. Raises ArtifactError where no run tells how far trainings and examples spread."""
    path, known = Paths.of(config).comparisons, {"se_examples": "float", "sd_seeds": "float"}
    rows = read_csv(path, COMPARISONS | known) if path.exists() else None
    asked = rows[rows["strongest"] & whole_kind(rows) & (rows["seeds"] > 1)] if rows is not None else ()
    if rows is None or not len(asked):
        raise ArtifactError(
            f"{path}: no run of several seeds to take spreads from; run the main comparison with `seeds: [1, 2, 3]` first "
            "(`snakemake --cores all --config include=[]`), or one like it of a smaller tier"
        )
    return text(asked, size, config.statistics.level)


def text(rows: pd.DataFrame, size: float, level: float) -> str:
    """A line a kind of task; the level is corrected for their number."""
    alpha, lines = (1 - level) / len(rows), []
    for row in rows.itertuples():
        now = detectable(row.se_examples, row.sd_seeds, row.seeds, alpha)
        parts = [f"{number(now)} with {row.seeds} trainings and {row.n:,} examples, as they are"]
        if now > size:
            parts += [f"{size:g} with {needed}" for needed in ways(row, size, alpha)] or [f"{size:g} out of reach"]
        lines.append(f"{GROUP_TITLES.get(row.group, row.group)} ({row.baseline}): {'; '.join(parts)}")
    head = (
        f"A difference that is seen in {POWER:.0%} of all studies, against the strongest baseline, at {level:.0%} corrected "
        f"for {len(rows)} kinds of task:"
    )
    tail = "The base models, teacher and negatives are those of one draw; what another would change is not in it."
    return "\n".join([head, *lines, tail])


def ways(row: Any, size: float, alpha: float) -> list[str]:
    """More trainings alone, more examples alone, or both, as far as they are enough."""
    more = least(lambda count: detectable(row.se_examples, row.sd_seeds, count, alpha), row.seeds, TRAININGS, size)
    times = least(lambda n: detectable(row.se_examples / math.sqrt(n), row.sd_seeds, row.seeds, alpha), 1, TIMES, size)
    four = least(lambda count: detectable(row.se_examples / 2, row.sd_seeds, count, alpha), row.seeds, TRAININGS, size)
    out = [f"{more} trainings of each"] if more else []
    out += [f"{times * row.n:,} examples"] if times else []
    return out or ([f"{four} trainings of each and {4 * row.n:,} examples"] if four else [])


def least(reached: Callable[[int], float], start: int, end: int, size: float) -> int | None:
    """The first number at which what is detectable is no larger than `size`; None up to the end."""
    return next((count for count in range(start, end + 1) if reached(count) <= size), None)
