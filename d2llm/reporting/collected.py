"""The collected files that tables and figures are made of, each read and checked when it is asked for.

Everything below `results/<tier>/` that is small and says something about results; no model, no task.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from d2llm.evaluation import runtime_table
from d2llm.evaluation.predictions import read_predictions
from d2llm.run.artifacts import read_csv, read_frame, read_json
from d2llm.run.errors import ConfigError
from d2llm.run.schemas import COMPARISONS, CURVES, PREDICTIONS, RUNS, SCORES, STANDINGS

if TYPE_CHECKING:
    import pandas as pd

    from d2llm.run.paths import Paths

T = TypeVar("T")


@dataclass(frozen=True)
class Collected:
    """The files a table or figure asked for; the others are None. Every field is the path of that name in `Paths`."""

    scores: pd.DataFrame | None = None
    # Of the methods and reference rows themselves, no variants; texts as categories.
    predictions: pd.DataFrame | None = None
    comparisons: pd.DataFrame | None = None
    standings: pd.DataFrame | None = None
    ablations: pd.DataFrame | None = None
    contrasts: pd.DataFrame | None = None
    runtime: pd.DataFrame | None = None
    card_json: dict[str, Any] | None = None
    trainings: pd.DataFrame | None = None
    curves: pd.DataFrame | None = None
    about: dict[str, Any] | None = None


_PREDICTIONS = {name: PREDICTIONS[name] for name in ("method", "seed", "task", "query_id", "doc_id", "score")}
_READ = {
    "scores": lambda path: read_frame(path, SCORES),
    "predictions": lambda path: read_predictions(path, _PREDICTIONS, {"variant": "base"}, coded=True),
    "comparisons": lambda path: read_csv(path, COMPARISONS),
    "standings": lambda path: read_csv(path, STANDINGS),
    "ablations": lambda path: read_csv(path, COMPARISONS),
    "contrasts": lambda path: read_csv(path, COMPARISONS),
    "runtime": runtime_table.read,
    "card_json": read_json,
    "trainings": lambda path: read_csv(path, RUNS),
    "curves": lambda path: read_frame(path, CURVES),
    "about": read_json,
}


def given(file: T | None, name: str) -> T:
    """A field of `Collected`. Raises ConfigError for a file that the head does not name for this table or figure."""
    if file is None:
        raise ConfigError(
            f"a table or figure uses the collected file {name!r} without asking for it; name it in READS at the head "
            "of its module"
        )
    return file


def collected(paths: Paths, names: Iterable[str]) -> Collected:
    """Read these files. Raises ArtifactError for one that is missing or damaged."""
    return Collected(**{name: _READ[name](getattr(paths, name)) for name in names})
