"""How much a training is told of its pairs (`LabelSettings`): which queries have a label, whose positive is wrong, and
where a right passage stands among the negatives.

Works on mined pairs and the teacher's scores of them, of any source, after both are made: a variant with fewer or worse
labels needs no data, negatives or scores of its own. A score that nobody asked the teacher for is NaN. Torch-free.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from d2llm.models.normal_form import normal_form

if TYPE_CHECKING:
    from d2llm.config.recipes import LabelSettings

# Lists with a place for each candidate, in the teacher's scores.
LOGITS = ("yes", "no")
EASY = ("easy_yes", "easy_no")


class Told(NamedTuple):
    """Pairs and scores as a training is told of them, which pairs (rows) are labelled (None: all), and counts."""

    pairs: pd.DataFrame
    scores: pd.DataFrame | None
    labelled: np.ndarray | None
    counts: dict[str, int]


def tell(pairs: pd.DataFrame, scores: pd.DataFrame | None, labels: LabelSettings, seed: int) -> Told:
    """The pairs of `negatives` and the scores of `teacher_scores`, row by row, under these settings."""
    chosen = labelled_packs(pairs, labels, seed)
    known = pairs["pack"].isin(chosen).to_numpy()
    counts = {"queries": len(pairs), "labelled": int(known.sum())}
    if labels.rest == "none":
        pairs = pairs[known].reset_index(drop=True)
        scores = None if scores is None else scores[known].reset_index(drop=True)
        known = np.ones(len(pairs), dtype=bool)
    wrong = known & (drawn(pairs["qid"], "noise", seed) < labels.noise)
    planted = siblings(pairs, known & ~wrong) if labels.false_negatives else {}
    lots = drawn(pairs["qid"], "false negatives", seed) if planted else np.zeros(0)
    planted = {row: other for row, other in planted.items() if lots[row] < labels.false_negatives}
    pairs, scores = plant(pairs, scores, planted) if planted else (pairs, scores)
    pairs, scores = exchange(pairs, scores, np.flatnonzero(wrong)) if wrong.any() else (pairs, scores)
    counts |= {"wrong_positives": int(wrong.sum()), "false_negatives": len(planted)}
    return Told(pairs, scores, None if known.all() else known, counts)


def labelled_packs(pairs: pd.DataFrame, labels: LabelSettings, seed: int) -> list[int]:
    """Numbers of the packs whose queries are labelled: of every data set that share of the packs, rounded up."""
    packs: list[int] = []
    for name, rows in pairs.groupby("dataset", sort=False):
        numbers = rows["pack"].unique()
        order = np.random.default_rng([seed, *f"labels {name}".encode()]).permutation(numbers)
        packs += order[: labels.labelled(len(numbers))].tolist()
    return packs


def drawn(qids: pd.Series, purpose: str, seed: int) -> np.ndarray:
    """(n,) numbers in [0, 1), one a training pair, whatever other pairs there are."""
    lots = [np.random.default_rng([seed, *f"{purpose} {qid}".encode()]).random() for qid in qids]
    return np.array(lots)


def siblings(pairs: pd.DataFrame, rows: np.ndarray) -> dict[int, int]:
    """Another labelled row of the same query by row, where there is one whose positive is another."""
    by_query: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in np.flatnonzero(rows).tolist():
        by_query[pairs["dataset"][row], normal_form(pairs["query"][row])].append(row)
    out: dict[int, int] = {}
    for members in by_query.values():
        for one, other in zip(members, [*members[1:], members[0]], strict=True):
            if normal_form(pairs["positive"][other]) != normal_form(pairs["positive"][one]):
                out[one] = other
    return out


def plant(
    pairs: pd.DataFrame, scores: pd.DataFrame | None, planted: dict[int, int]
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """With the positive of another row in place of the first negative. Its features beside these candidates are
    unknown.
    """
    negatives = pairs["negatives"].tolist()
    for row, other in planted.items():
        negatives[row] = [pairs["positive"][other], *negatives[row][1:]]
    if scores is not None:
        columns = {name: [np.array(values) for values in scores[name]] for name in LOGITS}
        features = [np.array(values) for values in scores["features"]]
        for row, other in planted.items():
            for name in LOGITS:
                columns[name][row][1] = scores[name][other][0]
            square = features[row].reshape(len(columns["yes"][row]), -1)
            square[1, :] = square[:, 1] = np.nan
        scores = scores.assign(**columns, features=features)
    return pairs.assign(negatives=negatives), scores


def exchange(
    pairs: pd.DataFrame, scores: pd.DataFrame | None, rows: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """With the positives of these rows and their first negatives in each other's place, in the marks of their query
    too.
    """
    positives, negatives = pairs["positive"].tolist(), pairs["negatives"].tolist()
    unmarked: dict[tuple[str, str], set[str]] = defaultdict(set)
    keys = list(zip(pairs["dataset"], map(normal_form, pairs["query"]), strict=True))
    for row in rows:
        unmarked[keys[row]].add(normal_form(positives[row]))
        positives[row], negatives[row] = negatives[row][0], [positives[row], *negatives[row][1:]]
    marked = [
        [text for text in texts if normal_form(text) not in unmarked[key]] if key in unmarked else texts
        for key, texts in zip(keys, pairs["marked"], strict=True)
    ]
    told = pairs.assign(positive=positives, negatives=negatives, marked=marked)
    return told, None if scores is None else _exchange_scores(pairs["pack"].to_numpy(), scores, rows)


def _exchange_scores(packs: np.ndarray, scores: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """A row's scores follow its passages. Of its new positive and the other queries of its pack there are none."""
    columns = {name: [np.array(values) for values in scores[name]] for name in (*LOGITS, *EASY, "features")}
    members = {pack: np.flatnonzero(packs == pack) for pack in np.unique(packs[rows])}
    for row in rows:
        count = len(columns["yes"][row])
        order = [1, 0, *range(2, count)]
        for name in LOGITS:
            columns[name][row] = columns[name][row][order]
        square = columns["features"][row].reshape(count, count)
        columns["features"][row] = square[np.ix_(order, order)].ravel()
        own = members[packs[row]]
        for other in own[own != row]:  # whose easy negatives are the pack's others, in order
            place = int(np.searchsorted(own[own != other], row))
            for name in EASY:
                columns[name][other][place] = np.nan
    return scores.assign(**columns)
