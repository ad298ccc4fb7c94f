"""Evaluates a run on the development splits, whatever the split of the final evaluation: what settings are chosen by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.evaluation.evaluate import measure
from d2llm.run.artifacts import write_frame
from d2llm.run.paths import Paths

if TYPE_CHECKING:
    from d2llm.config.schema import Config


def run(config: Config, method: str, variant: str, seed: int) -> None:
    """Write `scores.parquet`; predictions are not kept."""
    scores, _ = measure(config, method, variant, seed, "dev")
    write_frame(Paths.of(config).development(method, variant, seed) / "scores.parquet", scores)
