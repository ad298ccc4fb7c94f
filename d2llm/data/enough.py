"""Whether a training set has enough to be trained on: a whole pack of training pairs, and texts to draw every query's
negatives from.

Asked by the data stage, so that nobody waits for base models first, and by the stage `negatives`, whose settings may
have changed since.
"""

from __future__ import annotations

import pandas as pd

from d2llm.models.normal_form import normal_form, right_forms
from d2llm.run.errors import DataError


def check(train: pd.DataFrame, pool: pd.DataFrame, pack: int, negatives: int) -> None:
    """Raises DataError for a set of training pairs that fills no pack, or whose pool is too small for so many negatives
    of each query.
    """
    for name, rows in train.groupby("dataset", sort=False):
        check_pack(f"training set {name!r}", len(rows), pack)
        texts = {normal_form(text) for text in pool.loc[pool["dataset"] == name, "text"]}
        for query, right_texts in right_forms(
            zip(rows["query"], rows["positive"], rows["marked"], strict=True)
        ).items():
            if len(texts) - len(right_texts & texts) < negatives:
                asked = next(text for text in rows["query"] if normal_form(text) == query)
                raise too_few(str(name), asked, len(texts), negatives)


def check_pack(name: str, pairs: int, pack: int, removed: int = 0) -> None:
    """Raises DataError for fewer training pairs than a pack; `removed`: how many more there were before evaluation sets
    took theirs.
    """
    if pairs >= pack:
        return
    if removed and not pairs:
        raise DataError(
            f"{name}: evaluation sets hold all {removed} of its right pairs, so that none is left to train on; give "
            "it other rows (one file serves as several sets by part, dev_part and test_part)"
        )
    more = f" (evaluation sets hold {removed} more)" if removed else ""
    raise DataError(
        f"{name}: {pairs} right pairs{more} do not fill a pack; expected at least training.pack ({pack}); add rows, "
        "or lower training.pack"
    )


def too_few(name: str, query: str, texts: int, negatives: int) -> DataError:
    """The error for a pool that is too small for a query."""
    return DataError(
        f"pool of {name!r}: {texts} texts are too few for {negatives} negatives of {query!r}; add texts or lower "
        "negatives.per_query"
    )
