"""The leak check: how much of an evaluation set the training data already holds, and the removal of what it does.

Three measures, from strict to loose: the same pair (in either order), a pair both of whose texts were seen, and a
near-duplicate text (equal after sorting its characters, which catches reordered templates). The first two are removed.
Texts are compared by their normal form.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NotRequired, TypedDict

import numpy as np
import pandas as pd

from d2llm.models.normal_form import normal_form

Frames = dict[str, pd.DataFrame]  # {"pairs"} or {"queries", "corpus", "qrels"}
Tasks = dict[str, dict[str, Frames]]  # split -> task -> frames


class Report(TypedDict):
    """leaks.json: examples removed in all, the counts of every "task/split", and what they were removed from, if not
    the sets.
    """

    removed: int
    tasks: dict[str, dict[str, int]]
    removed_from: NotRequired[str]


@dataclass(frozen=True)
class Seen:
    """What training shows, in normal form: texts, and unordered pairs of texts."""

    texts: frozenset[str]
    pairs: frozenset[frozenset[str]]

    @classmethod
    def of(cls, texts: Iterable[str], pairs: Iterable[tuple[str, str]]) -> Seen:
        """The normal forms of texts and pairs; the texts of the pairs need not be among the texts."""
        both = frozenset(unordered(*pair) for pair in pairs)
        return cls(frozenset(map(normal_form, texts)).union(*both), both)

    @cached_property
    def bags(self) -> frozenset[str]:
        """The texts up to the order of their characters."""
        return frozenset(map(bag, self.texts))


def unordered(first: str, second: str) -> frozenset[str]:
    """A pair of texts in whatever order and spelling."""
    return frozenset((normal_form(first), normal_form(second)))


def bag(form: str) -> str:
    """The characters of a text in normal form in sorted order, without punctuation."""
    return "".join(sorted(character for character in form if character.isalnum()))


def near_form(text: str) -> str:
    """What near copies of a text share: its letters and digits in any order; of punctuation alone its normal form."""
    form = normal_form(text)
    return bag(form) or form


@dataclass(frozen=True)
class Held:
    """What evaluation sets hold, by `near_form`: unordered pairs of texts, and queries of retrieval."""

    pairs: frozenset[frozenset[str]] = frozenset()
    queries: frozenset[str] = frozenset()

    @classmethod
    def of(cls, frames: Frames) -> Held:
        """What one set holds."""
        if "pairs" in frames:
            return cls(pairs=frozenset(near_pairs(frames["pairs"])))
        return cls(queries=frozenset(frames["queries"]["text"].map(near_form)))

    def __or__(self, other: Held) -> Held:
        return Held(self.pairs | other.pairs, self.queries | other.queries)

    def holds(self, frames: Frames) -> np.ndarray:
        """(n,) whether it holds each pair, or query, of a set."""
        if "pairs" in frames:
            return np.array([pair in self.pairs for pair in near_pairs(frames["pairs"])], dtype=bool)
        return np.array([near_form(text) in self.queries for text in frames["queries"]["text"]], dtype=bool)


def near_pairs(frame: pd.DataFrame) -> list[frozenset[str]]:
    """The pairs of a frame up to order and near copies."""
    return [frozenset(map(near_form, pair)) for pair in zip(frame["query"], frame["passage"], strict=True)]


def seen_texts(train: pd.DataFrame, pool: pd.DataFrame, teacher: pd.DataFrame, unlabelled: pd.DataFrame) -> Seen:
    """What any stage of training shows: the pairs, the pool of negatives, the teacher's groups, the unlabelled text."""
    groups = zip(teacher["query"], teacher["passages"], strict=True)
    pairs = [
        *zip(train["query"], train["positive"], strict=True),
        *((a, b) for a, candidates in groups for b in candidates),
    ]
    columns = [column for column in ("text", "paraphrase", "distractor", "next_text") if column in unlabelled]
    return Seen.of(pd.concat([pool["text"], teacher["query"], *(unlabelled[column] for column in columns)]), pairs)


def remove(tasks: Tasks, seen: Seen) -> tuple[Report, Tasks]:
    """(report, tasks without leaked examples).

    Removed: a pair that is a training pair in some order or whose two texts both occur in training; a query whose text
    and one of whose relevant passages occur. Only counted: single texts seen, near-duplicate texts.
    """
    report: Report = {"removed": 0, "tasks": {}}
    cleaned: Tasks = {}
    for split, sets in tasks.items():
        cleaned[split] = {}
        for name, frames in sets.items():
            clean, row = _check_pairs(frames, seen) if "pairs" in frames else _check_retrieval(frames, seen)
            cleaned[split][name] = clean
            report["tasks"][f"{name}/{split}"] = row
            report["removed"] += row["removed"]
    return report, cleaned


def _is_among(column: pd.Series, known: frozenset[str]) -> pd.Series:
    """`column.isin(known)`, without turning a large set into an array at every call."""
    return pd.Series([value in known for value in column], index=column.index, dtype=bool)


def _check_pairs(frames: dict[str, pd.DataFrame], seen: Seen) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    frame = frames["pairs"]
    first, second = frame["query"].map(normal_form), frame["passage"].map(normal_form)
    same = pd.Series([frozenset(pair) in seen.pairs for pair in zip(first, second, strict=True)], index=frame.index)
    both = _is_among(first, seen.texts) & _is_among(second, seen.texts)
    near = _is_among(first.map(bag), seen.bags) & _is_among(second.map(bag), seen.bags)
    leaked = same | both
    row = {
        "examples": len(frame),
        "same_pair": int(same.sum()),
        "both_texts_seen": int(both.sum()),
        "one_text_seen": int((_is_among(first, seen.texts) ^ _is_among(second, seen.texts)).sum()),
        "near_duplicates": int(near.sum()),
        "removed": int(leaked.sum()),
    }
    return {"pairs": frame[~leaked].reset_index(drop=True)}, row


def _check_retrieval(frames: dict[str, pd.DataFrame], seen: Seen) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    queries, corpus, qrels = frames["queries"], frames["corpus"], frames["qrels"]
    passages = corpus["text"].map(normal_form)
    seen_ids = set(corpus.loc[_is_among(passages, seen.texts), "id"])
    answered_by_seen = set(qrels.loc[qrels["doc_id"].isin(seen_ids) & (qrels["relevance"] > 0), "query_id"])
    query_seen = _is_among(queries["text"].map(normal_form), seen.texts)
    leaked = query_seen & queries["id"].isin(answered_by_seen)
    near = _is_among(passages.map(bag), seen.bags)
    row = {
        "examples": len(queries),
        "same_pair": int(leaked.sum()),
        "query_seen": int(query_seen.sum()),
        "passages_seen": len(seen_ids),
        "near_duplicates": int(near.sum()),
        "removed": int(leaked.sum()),
    }
    remaining = queries[~leaked].reset_index(drop=True)
    return {
        "queries": remaining,
        "corpus": corpus,
        "qrels": qrels[qrels["query_id"].isin(remaining["id"])].reset_index(drop=True),
    }, row
