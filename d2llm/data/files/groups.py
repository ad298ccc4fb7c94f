"""Groups of examples of one's own evaluation sets, by columns of the file and by what can be computed from any text:
word overlap, length, negation. Each group is scored by itself (`evaluation.metrics.grouped_breakdown`).

A way of grouping is a column `by_<name>` of a set's pairs or queries; an example without a value is in no group. Pure;
which columns a set names is read in `examples`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from d2llm.data.leaks import Frames
from d2llm.models.normal_form import normal_form
from d2llm.run.schemas import GROUPED_BY

# Values a column may have to group by; one with more is an id or a text.
MOST = 30
# By the language of a set (mteb's code without the script): words of denial, and words that hold one and deny nothing.
NEGATION: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cmn": (
        ("不", "没", "无", "未", "非", "别", "勿", "莫"),
        (
            *("非常", "除非", "无论", "不管", "不过", "不仅", "不但", "不断", "不久", "未来"),
            *("别人", "别的", "特别", "分别", "区别", "级别", "性别", "类别", "差别", "告别", "识别", "个别", "莫名"),
        ),
    ),
    "eng": (("not", "no", "never", "nobody", "nothing", "none", "without", "n't", "cannot"), ()),
}
OVERLAP, LENGTH = ("low", "middle", "high"), ("short", "middle", "long")
ONE_TEXT, OTHERS = "in one text", "in both or neither"
# Where the lower two thirds of a set end, by name of the grouping.
Bounds = dict[str, list[float]]


def grouped(
    frames: Frames, names: Sequence[str], language: str, negation: Sequence[str] | None = None
) -> tuple[Frames, Bounds]:
    """(frames with a column for each of `names` that can be computed, the bounds of those that cut a set in thirds).

    Overlap is of the character bigrams of two texts: of pairs those in both among those in either, of a query the share
    of its own that its best passage has. Length is in characters, of a pair's two texts together. Negation is of pairs,
    and only where words are given or known of the language.
    """
    pairs = "pairs" in frames
    frame = frames["pairs" if pairs else "queries"]
    sides = (frame["query"], frame["passage"]) if pairs else (frame["text"], best_passages(frames))
    columns: dict[str, pd.Series] = {}
    bounds: Bounds = {}
    if "overlap" in names:
        columns["overlap"], bounds["overlap"] = thirds(overlap(*sides, both=pairs), OVERLAP)
    if "length" in names:
        length = sides[0].str.len() + (sides[1].str.len() if pairs else 0)
        columns["length"], bounds["length"] = thirds(length, LENGTH)
    denies = denial(language, negation)
    if "negation" in names and pairs and denies is not None:
        one = sides[0].map(denies) != sides[1].map(denies)
        columns["negation"] = one.map({True: ONE_TEXT, False: OTHERS})
    named = {GROUPED_BY + name: values for name, values in columns.items()}
    return {**frames, ("pairs" if pairs else "queries"): frame.assign(**named)}, bounds


def best_passages(frames: Frames) -> pd.Series:
    """Of every query the passage that is most relevant to it, the first of several; "" without one."""
    qrels = frames["qrels"][frames["qrels"]["relevance"] > 0].sort_values("relevance", ascending=False, kind="stable")
    best = qrels.drop_duplicates("query_id").set_index("query_id")["doc_id"]
    texts = frames["corpus"].set_index("id")["text"]
    return frames["queries"]["id"].map(best).map(texts).fillna("")


def bigrams(text: str) -> frozenset[str]:
    """Pairs of neighbouring characters of a text's normal form."""
    form = normal_form(text)
    return frozenset(form[place : place + 2] for place in range(len(form) - 1))


def overlap(first: pd.Series, second: pd.Series, both: bool) -> pd.Series:
    """Shared bigrams among those of either text (`both`), or among those of the first; 0 where there are none."""
    shares = []
    for one, two in zip(first.map(bigrams), second.map(bigrams), strict=True):
        counted = one | two if both else one
        shares.append(len(one & two) / len(counted) if counted else 0.0)
    return pd.Series(shares, index=first.index)


def thirds(values: pd.Series, words: Sequence[str]) -> tuple[pd.Series, list[float]]:
    """(a word for the third each value lies in, the upper ends of the lower two); a bound belongs to the lower third."""
    low, high = (float(bound) for bound in np.quantile(values, [1 / 3, 2 / 3]))
    third = (values > low).astype(int) + (values > high)
    return third.map(dict(enumerate(words))), [round(low, 4), round(high, 4)]


def denial(language: str, words: Sequence[str] | None) -> Callable[[str], bool] | None:
    """Whether a text holds a word of denial; None for a language whose words nobody gave.

    A word in letters of the alphabet counts between spaces or marks (n't at a word's end), any other one anywhere.
    """
    own, others = NEGATION.get(language.split("-")[0], ((), ()))
    wanted, innocent = (own, others) if words is None else (tuple(words), ())
    if not wanted:
        return None
    parts = [rf"\b{re.escape(word)}\b" if word.isascii() and word.isalpha() else re.escape(word) for word in wanted]
    spared = re.compile("|".join(map(re.escape, innocent)) or r"(?!)")
    pattern = re.compile("|".join(parts), re.IGNORECASE)
    return lambda text: pattern.search(spared.sub(" ", text)) is not None
