"""Evaluation sets read from their folders and checked, before any model is loaded.

A task folder holds `task.json` and, per split, pairs (`<split>.parquet`) or a retrieval set (`<split>/corpus.parquet`,
`queries.parquet`, `qrels.parquet`). This module knows pandas only; making mteb's tasks of them is left to `mteb`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from d2llm.config.task_types import TASK_TYPES, TypeName
from d2llm.data.conditions import check_pairs, check_qrels
from d2llm.models.text import is_text
from d2llm.run.artifacts import read_frame, read_json
from d2llm.run.errors import ConfigError, DataError

if TYPE_CHECKING:
    from d2llm.config.recipes import Mode

Split = Literal["dev", "test"]


class Searched(NamedTuple):
    """The frames of a retrieval task; columns as in `Task`."""

    corpus: pd.DataFrame
    queries: pd.DataFrame
    qrels: pd.DataFrame


class MtebName(NamedTuple):
    """A set of mteb's: its task, its subset (None where there is only one), its split, whether all of it is here."""

    name: str
    subset: str | None
    split: str
    whole: bool


@dataclass(frozen=True)
class Task:
    """One split of one evaluation set.

    `pairs` (id, query, passage, label int | score float, phenomenon) belongs to pair classification and STS;
    `corpus` (id, text), `queries` (id, text, phenomenon) and `qrels` (query_id, doc_id, relevance) to retrieval.
    `revision` is a digest of the files, so that a result names the very data it was measured on. `mteb` names the set
    where it is one of mteb's own, whose class then measures it. `ignore_identical_ids`: a document whose id is the
    query's leaves its ranking.
    """

    name: str
    title: str
    type: TypeName
    group: str
    description: str
    split: str
    revision: str
    language: str = "cmn-Hans"
    min_score: float = 0.0
    max_score: float = 1.0
    pairs: pd.DataFrame | None = None
    corpus: pd.DataFrame | None = None
    queries: pd.DataFrame | None = None
    qrels: pd.DataFrame | None = None
    ignore_identical_ids: bool = False
    mteb: MtebName | None = None

    @property
    def mode(self) -> Mode:
        return TASK_TYPES[self.type].mode

    @property
    def target(self) -> str:
        """The column of `pairs` that holds what is to be predicted."""
        return TASK_TYPES[self.type].target

    def paired(self) -> pd.DataFrame:
        """`pairs`, of a task that has them. Raises TypeError for one of retrieval."""
        if self.pairs is None:
            raise TypeError(f"task {self.name} is of retrieval and has no pairs")
        return self.pairs

    def searched(self) -> Searched:
        """`corpus`, `queries` and `qrels`, of a task that has them. Raises TypeError for one of pairs."""
        if self.corpus is None or self.queries is None or self.qrels is None:
            raise TypeError(f"task {self.name} is of pairs and cannot be searched")
        return Searched(self.corpus, self.queries, self.qrels)


def names(folder: Path, wanted: Literal["all"] | Sequence[str] = "all") -> list[str]:
    """The tasks below `folder` that the configuration asks for, in the order of the configuration or of the alphabet.

    Raises:
        DataError: `folder` holds no task.
        ConfigError: a wanted task is not there.
    """
    present = sorted(path.parent.name for path in Path(folder).glob("*/task.json"))
    if not present:
        raise DataError(f"{folder}: no evaluation task found (expected <task>/task.json); run the data stage again")
    if wanted == "all":
        return present
    missing = [name for name in wanted if name not in present]
    if missing:
        raise ConfigError(f"evaluation.tasks: no task named {missing[0]!r} in {folder}; it holds {', '.join(present)}")
    return list(wanted)


def read(folder: Path, split: str) -> Task:
    """Reads and checks one split of the task in `folder`.

    Raises:
        DataError: what a file holds is not what an evaluation needs; names file, column, row, found and expected.
        ArtifactError: a file is missing or cannot be read.
    """
    folder = Path(folder)
    header = _read_header(folder / "task.json")
    if header["type"] == "retrieval":
        files = {part: folder / split / f"{part}.parquet" for part in ("corpus", "queries", "qrels")}
        frames = _read_retrieval(files)
    else:
        files = {"pairs": folder / f"{split}.parquet"}
        frames = {"pairs": _read_pairs(files["pairs"], header)}
    mteb_entry = header.pop("mteb", None)
    name = None
    if mteb_entry is not None:
        name = MtebName(
            mteb_entry["name"], mteb_entry["subset"], mteb_entry["split"][split], split in mteb_entry["whole"]
        )
    return Task(**header, split=split, revision=_digest_files(files.values()), mteb=name, **frames)


def has(folder: Path, split: str) -> bool:
    """Whether a task is to have this split: `splits` of its task.json, both where that says nothing. A file that is
    missing is not asked here.
    """
    return split in read_json(Path(folder) / "task.json").get("splits", ["dev", "test"])


def _read_header(path: Path) -> dict[str, Any]:
    raw = read_json(path)
    expected = {"name": str, "title": str, "type": str, "group": str, "description": str}
    for key, kind in expected.items():
        if not isinstance(raw.get(key), kind):
            raise DataError(f"{path}: key {key!r} must be text, found {raw.get(key)!r}")
    for key, allowed in (("type", TASK_TYPES), ("group", {kind.group for kind in TASK_TYPES.values()})):
        if raw[key] not in allowed:
            raise DataError(f"{path}: key {key!r} must be one of {', '.join(sorted(allowed))}, found {raw[key]!r}")
    if raw["name"] != path.parent.name:
        raise DataError(f"{path}: key 'name' is {raw['name']!r}, but the folder is {path.parent.name!r}")
    header = {key: raw[key] for key in expected}
    header["language"] = raw.get("language", "cmn-Hans")
    header |= {key: raw[key] for key in ("mteb", "ignore_identical_ids") if key in raw}
    if raw["type"] == "sts":
        low, high = raw.get("min_score"), raw.get("max_score")
        if not all(isinstance(x, int | float) and np.isfinite(x) for x in (low, high)) or low >= high:
            raise DataError(f"{path}: expected numbers min_score < max_score, found {low!r} and {high!r}")
        header |= {"min_score": float(low), "max_score": float(high)}
    return header


def _read_pairs(path: Path, header: dict[str, Any]) -> pd.DataFrame:
    frame = _read_texts(path, ["id", "query", "passage", "phenomenon"], unique="id")
    if header["type"] == "pair_classification":
        _require_column(path, frame, "label")
        _check_rows(path, frame, "label", ~frame["label"].isin([0, 1]), "0 or 1")
        frame["label"] = frame["label"].astype(int)
        check_pairs(path, frame, "label")
        return frame
    _require_column(path, frame, "score")
    _check_numbers(path, frame, "score")
    low, high = header["min_score"], header["max_score"]
    _check_rows(path, frame, "score", ~frame["score"].between(low, high), f"a number from {low:g} to {high:g}")
    frame["score"] = frame["score"].astype(float)
    check_pairs(path, frame, "score")
    return frame


def _read_retrieval(files: dict[str, Path]) -> dict[str, pd.DataFrame]:
    corpus = _read_texts(files["corpus"], ["id", "text"], unique="id")
    queries = _read_texts(files["queries"], ["id", "text", "phenomenon"], unique="id")
    path = files["qrels"]
    qrels = _read_texts(path, ["query_id", "doc_id"])
    _require_column(path, qrels, "relevance")
    _check_numbers(path, qrels, "relevance")
    _check_rows(path, qrels, "relevance", qrels["relevance"] < 0, "0 or more")
    _check_rows(path, qrels, "query_id", ~qrels["query_id"].isin(set(queries["id"])), "an id of queries.parquet")
    _check_rows(path, qrels, "doc_id", ~qrels["doc_id"].isin(set(corpus["id"])), "an id of corpus.parquet")
    check_qrels(path, qrels)
    # mteb would drop such a query silently and average over fewer than the task says.
    judged = set(qrels["query_id"])
    _check_rows(files["queries"], queries, "id", ~queries["id"].isin(judged), "a query that qrels judge")
    return {"corpus": corpus, "queries": queries, "qrels": qrels}


def _read_texts(path: Path, texts: list[str], unique: str | None = None) -> pd.DataFrame:
    """The frame at `path`, whose columns `texts` hold non-empty strings; rows are numbered from 0 in messages."""
    frame = read_frame(path).reset_index(drop=True)
    for name in texts:
        _require_column(path, frame, name)
        _check_rows(path, frame, name, ~frame[name].map(is_text).astype(bool), "non-empty text")
    if len(frame) == 0:
        raise DataError(f"{path}: expected rows, found none")
    if unique is not None:
        _check_rows(path, frame, unique, frame[unique].duplicated(), "each id once")
    return frame


def _require_column(path: Path, frame: pd.DataFrame, name: str) -> None:
    if name not in frame.columns:
        raise DataError(f"{path}: column {name!r} not found; expected it beside {', '.join(map(str, frame.columns))}")


def _check_numbers(path: Path, frame: pd.DataFrame, name: str) -> None:
    if not pd.api.types.is_numeric_dtype(frame[name]):
        raise DataError(f"{path}: column {name!r} must hold numbers, found {frame[name].dtype}")
    _check_rows(path, frame, name, ~np.isfinite(frame[name].astype(float)), "a finite number")


def _check_rows(path: Path, frame: pd.DataFrame, name: str, wrong: pd.Series, expected: str) -> None:
    """Raises for the first row that `wrong` marks."""
    wrong = wrong.astype(bool)
    if wrong.any():
        row = int(np.flatnonzero(wrong.to_numpy())[0])
        others = f" (and {int(wrong.sum()) - 1} more rows)" if wrong.sum() > 1 else ""
        value = frame[name].iloc[row]
        value = value.item() if isinstance(value, np.generic) else value
        raise DataError(f"{path}: column {name!r}, row {row}: expected {expected}, found {value!r}{others}")


def _digest_files(files: Any) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:40]
