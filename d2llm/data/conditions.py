"""What an evaluation set must hold to be measured. Asked of the user's files by the data stage and `d2llm doctor`, and
of the written sets by evaluation.

Each function raises DataError in the name of the file it is given.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from d2llm.run.errors import DataError

# Steps from 0 to the largest relevance: trec_eval, which computes mteb's metrics, counts whole steps and walks through
# all of them.
MOST_STEPS = 10_000


def check_pairs(path: str | Path, pairs: pd.DataFrame, target: str, column: str | None = None) -> None:
    """At least two pairs, and two different values in column `target` ("label" or "score"), which the file calls
    `column`.
    """
    where = f"{path}: column {column or target!r}"
    if len(pairs) < 2:
        raise DataError(f"{where}: expected at least 2 pairs, found {len(pairs)}")
    values = pairs[target].unique()
    if len(values) < 2 and target == "label":
        raise DataError(f"{where}: every label means {'yes' if values[0] else 'no'}; expected pairs of both kinds")
    if len(values) < 2:
        raise DataError(f"{where}: every score is {values[0]:g}; a correlation needs two different scores")


def check_qrels(path: str | Path, qrels: pd.DataFrame, column: str | None = None) -> None:
    """Each (query_id, doc_id) once, relevance (which the file calls `column`) that can be computed with, and at least
    one relevant document.

    The index of `qrels` holds the lines that messages name.
    """
    columns = ["query_id", "doc_id"]
    again = qrels.duplicated(columns)
    if again.any():
        line = qrels.index[again][0]
        query, doc = qrels.loc[line, columns]
        first = qrels.index[(qrels["query_id"] == query) & (qrels["doc_id"] == doc)][0]
        raise DataError(
            f"{path}: line {line}: query {query!r} and document {doc!r} are judged again, as in line {first}; keep "
            "one of the two"
        )
    where = f"{path}: column {column or 'relevance'!r}"
    if not (qrels["relevance"] > 0).any():
        raise DataError(f"{where}: no document is relevant to any query (above 0); no ranking can be measured")
    try:
        whole_relevance(qrels["relevance"])
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None


def whole_relevance(relevance: pd.Series) -> pd.Series:
    """(n,) relevance as whole numbers, all multiplied by one factor; nothing is rounded, and what is not relevant is 0.

    nDCG's gain is linear in the relevance (trec_eval), so a common factor leaves it as it is; MRR and recall only ask
    what is above 0. Raises ValueError where it takes more than `MOST_STEPS` steps from 0 to the largest.
    """
    values = relevance.clip(lower=0).to_numpy(dtype=float)
    if (values == values.astype(np.int64)).all():
        return relevance.clip(lower=0).astype(np.int64)
    for digits in range(1, 7):
        scaled = values * 10**digits
        steps = np.round(scaled).astype(np.int64)
        if np.abs(scaled - steps).max() < 1e-6:
            steps //= np.gcd.reduce(steps)
            if steps.max() <= MOST_STEPS:
                return pd.Series(steps, index=relevance.index, name=relevance.name)
            break
    odd = relevance[values != values.astype(np.int64)]
    raise ValueError(
        f"line {odd.index[0]}: relevance {odd.iloc[0]} is too fine: from 0 to the largest, {values.max():g}, there "
        f"may be {MOST_STEPS} equal steps; round it, e.g. to two decimals"
    )
