"""Evaluates a run on the development splits, by which settings are chosen, whatever the split of the final evaluation.

Measures as `evaluate` does; choosing is left to `analysis.hyperparameters`.
"""

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
