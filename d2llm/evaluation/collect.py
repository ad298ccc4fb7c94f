"""Gathers the evaluations of all configured runs and reference rows, and the trainings behind them, in tidy tables.

Computes no score; what is behind the scores is put together by `about` and `curves`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from d2llm.evaluation.about import behind
from d2llm.evaluation.curves import curves, trainings
from d2llm.run.artifacts import MEND, atomic, read_frame, write_frame, write_frames, write_json
from d2llm.run.errors import ArtifactError
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths
from d2llm.run.schemas import PREDICTION_KEY, PREDICTIONS, SCORE_KEY, SCORES

if TYPE_CHECKING:
    from d2llm.config.schema import Config

logger = get_logger("collect")


def run(config: Config) -> None:
    """Writes `predictions.parquet`, `runs.csv`, `curves.parquet`, `about.json`, `scores.csv` and `scores.parquet`.

    Raises:
        ArtifactError: an evaluation is missing, damaged, of another run, doubled or measured on other examples; or a
            training's summary, provenance or log is missing, damaged or of another run.
    """
    paths = Paths.of(config)
    folders = {
        (r.method, r.variant, r.seed): paths.evaluation(r.method, r.variant, r.seed) for r in config.evaluations()
    }
    scores = pd.concat(collected(config.tier, folders, "scores", SCORES, SCORE_KEY), ignore_index=True)
    _check_same_measure({key: folder / "scores.parquet" for key, folder in folders.items()}, scores)
    # Run by run, and task by task, as they are read: of a large tier they are hundreds of millions.
    predictions = collected(config.tier, folders, "predictions", PREDICTIONS, PREDICTION_KEY)
    write_frames(paths.predictions, (part for run in predictions for _, part in run.groupby("task", sort=False)))
    runs = {r: paths.run(*r) for r in config.runs()}
    trained = trainings(runs)
    logs = {r: [folder / "log.jsonl"] for r, folder in runs.items()}
    write_frame(paths.curves, curves(logs, dict(zip(runs, trained["updates"], strict=True))))
    _write_csv(paths.trainings, trained)
    write_json(paths.about, behind(config))
    _write_csv(paths.scores_csv, scores)
    write_frame(paths.scores, scores)
    logger.info("collected %d scores of %d evaluations", len(scores), len(folders))


def _write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Floats in their shortest form that reads back exactly: equal values, equal bytes."""
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")


def collected(
    tier: str, folders: dict[tuple[str, str, int], Path], name: str, columns: dict[str, str], key: list[str]
) -> Iterator[pd.DataFrame]:
    """The tables `<name>.parquet` of all folders one after the other, each checked to hold its own run, in the order of
    `key`.
    """
    # Each is sorted by itself: of millions of rows together that would take minutes.
    for run_key, folder in sorted(folders.items()):
        path = folder / f"{name}.parquet"
        frame = read_frame(path, columns)
        extra = [column for column in frame.columns if column not in columns]
        if extra:
            raise ArtifactError(f"{path}: unexpected column {extra[0]!r}; expected {', '.join(columns)}; {MEND}")
        for column, expected in zip(("tier", "method", "variant", "seed"), (tier, *run_key), strict=True):
            wrong = frame[column] != expected
            if wrong.any():
                actual = frame.loc[wrong, column].iloc[0]
                raise ArtifactError(f"{path}: column {column!r}: expected {expected}, found {actual}; {MEND}")
        double = frame.duplicated(key)
        if double.any():
            row = frame.loc[double, key].iloc[0].to_dict()
            raise ArtifactError(f"{path}: the same row twice: {row}; {MEND}")
        yield frame[list(columns)].sort_values(key, kind="stable")


def _check_same_measure(files: dict[tuple[str, str, int], Path], scores: pd.DataFrame) -> None:
    """Refuses evaluations of other tasks, metrics or numbers of examples than the first: not comparable."""
    measured = {
        key: frame.set_index(["task", "phenomenon", "metric"])["n"].to_dict()
        for key, frame in scores.groupby(["method", "variant", "seed"], sort=False)
    }
    first, *others = files
    overall = {place: n for place, n in measured[first].items() if place[1] == "all"}
    for key in others:
        counts = {place: n for place, n in measured[key].items() if place[1] == "all"}
        for place in sorted(overall.keys() ^ counts.keys()):
            have, lack = (first, key) if place in overall else (key, first)
            raise ArtifactError(f"{files[lack]}: no {place[2]} of task {place[0]}, which {files[have]} has; {MEND}")
        for place, n in overall.items():
            if counts[place] != n:
                raise ArtifactError(
                    f"{files[key]}: {place[2]} of task {place[0]} is over {counts[place]} examples, expected {n}; "
                    f"{MEND}"
                )
