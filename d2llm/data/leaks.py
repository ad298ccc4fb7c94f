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


def unordered(one: str, two: str) -> frozenset[str]:
    """A pair of texts in whatever order and spelling."""
    return frozenset((normal_form(one), normal_form(two)))


def bag(form: str) -> str:
    """The characters of a text in normal form in sorted order, without punctuation."""
    return "".join(sorted(character for character in form if character.isalnum()))


def seen_texts(train: pd.DataFrame, pool: pd.DataFrame, teacher: pd.DataFrame, unlabelled: pd.DataFrame) -> Seen:
    """What any stage of training shows: the pairs, the pool of negatives, the teacher's groups, the unlabelled text."""
    groups = zip(teacher["a"], teacher["b"], strict=True)
    pairs = [*zip(train["query"], train["positive"], strict=True), *((a, b) for a, found in groups for b in found)]
    columns = [column for column in ("text", "paraphrase", "distractor", "next_text") if column in unlabelled]
    return Seen.of(pd.concat([pool["text"], teacher["a"], *(unlabelled[column] for column in columns)]), pairs)


def remove(tasks: Tasks, seen: Seen) -> tuple[Report, Tasks]:
    """(report, tasks without leaked examples).

    Removed: a pair that is a training pair in some order or whose two texts both occur in training; a query whose text
    and one of whose relevant passages occur. Only counted: single texts seen, near-duplicate texts.
    """
    report: Report = {"removed": 0, "tasks": {}}
    kept: Tasks = {}
    for split, made in tasks.items():
        kept[split] = {}
        for name, frames in made.items():
            clean, row = _pairs(frames, seen) if "pairs" in frames else _retrieval(frames, seen)
            kept[split][name] = clean
            report["tasks"][f"{name}/{split}"] = row
            report["removed"] += row["removed"]
    return report, kept


def _in(column: pd.Series, known: frozenset[str]) -> pd.Series:
    """`column.isin(known)`, without turning a large set into an array at every call."""
    return pd.Series([value in known for value in column], index=column.index, dtype=bool)


def _pairs(frames: dict[str, pd.DataFrame], seen: Seen) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    frame = frames["pairs"]
    one, two = frame["sentence1"].map(normal_form), frame["sentence2"].map(normal_form)
    same = pd.Series([frozenset(pair) in seen.pairs for pair in zip(one, two, strict=True)], index=frame.index)
    both = _in(one, seen.texts) & _in(two, seen.texts)
    near = _in(one.map(bag), seen.bags) & _in(two.map(bag), seen.bags)
    gone = same | both
    row = {
        "examples": len(frame),
        "same_pair": int(same.sum()),
        "both_texts_seen": int(both.sum()),
        "one_text_seen": int((_in(one, seen.texts) ^ _in(two, seen.texts)).sum()),
        "near_duplicates": int(near.sum()),
        "removed": int(gone.sum()),
    }
    return {"pairs": frame[~gone].reset_index(drop=True)}, row


def _retrieval(frames: dict[str, pd.DataFrame], seen: Seen) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    queries, corpus, qrels = frames["queries"], frames["corpus"], frames["qrels"]
    passages = corpus["text"].map(normal_form)
    known = set(corpus.loc[_in(passages, seen.texts), "id"])
    with_known = set(qrels.loc[qrels["doc_id"].isin(known) & (qrels["relevance"] > 0), "query_id"])
    asked = _in(queries["text"].map(normal_form), seen.texts)
    gone = asked & queries["id"].isin(with_known)
    near = _in(passages.map(bag), seen.bags)
    row = {
        "examples": len(queries),
        "same_pair": int(gone.sum()),
        "query_seen": int(asked.sum()),
        "passages_seen": len(known),
        "near_duplicates": int(near.sum()),
        "removed": int(gone.sum()),
    }
    left = queries[~gone].reset_index(drop=True)
    return {
        "queries": left,
        "corpus": corpus,
        "qrels": qrels[qrels["query_id"].isin(left["id"])].reset_index(drop=True),
    }, row
