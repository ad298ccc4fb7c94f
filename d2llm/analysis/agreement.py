"""How far methods order examples as the teacher does, from the predictions of both on the same examples.

Pure functions over the predictions' table (docs/evaluation.md#scores-and-predictions); nothing here draws.
"""

from __future__ import annotations

import pandas as pd

KEY = ["task", "query_id", "doc_id"]
# Fewer passages than this have no order worth the name.
FEWEST = 3


def paired(predictions: pd.DataFrame, teacher: str = "teacher") -> pd.DataFrame:
    """Every method's prediction beside the teacher's (column `teacher`), where both have one.

    The teacher re-ranks candidates and a method keeps its best passages, so of retrieval these are the passages in
    both.
    """
    is_teacher = predictions["method"] == teacher
    teacher_scores = predictions.loc[is_teacher, [*KEY, "score"]].rename(columns={"score": "teacher"})
    # The teacher's own rows go last: of millions, most are of passages it has not seen.
    pairs = predictions[["method", "seed", *KEY, "score"]].merge(
        teacher_scores, on=KEY, how="inner", validate="many_to_one"
    )
    pairs = pairs[pairs["method"] != teacher].reset_index(drop=True)
    return pairs.astype(dict.fromkeys(("method", *KEY), "str"))  # which may be categories


def spearman(pairs: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation with the teacher: rows method, columns task, means over seeds.

    Pairs of texts correlate over the whole task. Of retrieval (a `doc_id`), where only passages of one query are ever
    set against each other, it is the mean over queries of the correlation within each that has `FEWEST` passages or
    more and on which neither is constant. A task without any such example is absent or NaN.
    """
    retrieval = pairs["doc_id"] != ""
    unit = pairs["query_id"].where(retrieval, "")
    keys = ["method", "seed", "task", "unit"]
    grouped = pairs.assign(unit=unit).groupby(keys)
    # Spearman's is Pearson's correlation of ranks, ties sharing their mean rank; in sums, as there are many queries.
    x, y = grouped["score"].rank(), grouped["teacher"].rank()
    ranks = pairs[["method", "seed", "task"]].assign(unit=unit, x=x, y=y, xx=x * x, yy=y * y, xy=x * y)
    mean = ranks.groupby(keys).mean()
    spread = ((mean["xx"] - mean["x"] ** 2) * (mean["yy"] - mean["y"] ** 2)) ** 0.5
    correlation = (mean["xy"] - mean["x"] * mean["y"]) / spread
    correlation = correlation[(grouped.size() >= FEWEST) & (spread > 1e-9)]
    per_seed = correlation.groupby(level=["method", "seed", "task"]).mean()
    return per_seed.groupby(level=["method", "task"]).mean().unstack("task")
