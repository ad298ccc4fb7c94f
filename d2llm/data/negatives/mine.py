"""Stage `negatives`: hard negatives for every training query, from BM25 and from a dense encoder, and the packs queries
travel in.

As in the release: candidates are the first ranks of BM25 and a range of ranks of a bi-encoder, without the query itself
and every text the labels mark as right for the same query text, near copies included (`normal_form`). Unmarked
positives stay in, as they do in real data; the teacher's scores are what tells them. Texts that one's own files judge
wrong for the very query come before all that is mined.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from d2llm.data import enough
from d2llm.data.negatives import dense as vectors
from d2llm.data.negatives.bm25 import Bm25
from d2llm.data.negatives.encoder import dense_ranks
from d2llm.models.normal_form import distinct, normal_form, right_forms
from d2llm.run.artifacts import read_frame, write_frame, write_json
from d2llm.run.logs import get_logger, progress
from d2llm.run.paths import Paths
from d2llm.run.schemas import POOL, TRAIN_PAIRS

if TYPE_CHECKING:
    from d2llm.config.schema import Config
    from d2llm.config.sections import NegativeSettings

# Negatives of a query: normal form → (text, source).
Taken = dict[str, tuple[str, str]]


def run(config: Config) -> None:
    """Mine, draw, pack, write; the report counts sources, distinct texts and the training pairs that fill no pack."""
    paths, settings = Paths.of(config), config.negatives
    train, pool = read_frame(paths.train_pairs, TRAIN_PAIRS), read_frame(paths.pool, POOL)
    enough.check(train, pool, config.training.pack, settings.per_query)
    parts, report = [], {}
    encode = vectors.reader(config) if settings.shards > 1 else None
    for dataset, rows in train.groupby("dataset", sort=False):
        texts = distinct(pool.loc[pool["dataset"] == dataset, "text"])
        queries = rows["query"].drop_duplicates().tolist()
        low, high = settings.dense_ranks
        ranks = {
            "bm25": bm25_ranks(queries, texts, settings.bm25_ranks, settings.bm25_tokens),
            "dense": [order[low - 1 : high] for order in dense_ranks(config, queries, texts, high, encode)],
        }
        rng = np.random.default_rng([settings.seed, *str(dataset).encode()])
        mined = draw(rows, queries, texts, ranks, settings, rng)
        mined["pack"] = pack(len(mined), config.training.pack, rng)
        mined = mined[mined["pack"] >= 0]
        report[str(dataset)] = _summarise(mined, len(rows) - len(mined))
        get_logger(__name__).info(
            "%s: %d queries, sources %s, %d left out as they fill no pack",
            dataset,
            len(mined),
            report[str(dataset)]["sources"],
            len(rows) - len(mined),
        )
        parts.append(mined)
    pairs = pd.concat(parts, ignore_index=True)
    # Numbers of packs are unique over all data sets; rows of a pack stand together.
    pairs["pack"] = pairs.groupby(["dataset", "pack"], sort=False).ngroup()
    pairs = pairs.sort_values("pack", kind="stable").reset_index(drop=True)
    write_frame(paths.pairs, pairs)
    write_json(paths.negatives_report, report)


def bm25_ranks(
    queries: Sequence[str], texts: Sequence[str], ranks: Sequence[int], tokens: Literal["words", "characters"]
) -> list[np.ndarray]:
    """Indices into `texts` of BM25 ranks `ranks[0]`..`ranks[1]` (from 1) of every query."""
    index = Bm25(texts, tokens)
    low, high = ranks
    return [index.top(query, high)[0][low - 1 :] for query in progress(queries, "BM25 negatives")]


def draw(
    rows: pd.DataFrame,
    queries: list[str],
    texts: list[str],
    ranks: dict[str, list[np.ndarray]],
    settings: NegativeSettings,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """`settings.per_query` negatives a row with their sources: those judged wrong for the query (column `wrong`, where
    there is one), then half of the rest from each source where both have enough, topped up at random. No two of a row
    are near copies of each other, and none is one of a right text.

    `texts` are `distinct`. Raises DataError where they are too few.
    """
    right = right_forms(zip(rows["query"], rows["positive"], rows["marked"], strict=True))
    forms = [normal_form(text) for text in texts]
    judged = rows["wrong"] if "wrong" in rows else [()] * len(rows)
    place = {query: i for i, query in enumerate(queries)}
    negatives, sources = [], []
    for query, wrong in zip(rows["query"], judged, strict=True):
        excluded = right[normal_form(query)]
        taken = _take_judged(wrong, excluded, settings.per_query, rng)
        mined = {source: ranks[source][place[query]] for source in ("bm25", "dense")}
        _take_mined(taken, mined, texts, forms, excluded, settings.per_query, rng)
        _take_random(taken, texts, forms, excluded, settings.per_query, rng)
        if len(taken) < settings.per_query:
            raise enough.too_few(rows["dataset"].iloc[0], query, len(texts), settings.per_query)
        chosen = list(taken.values())
        order = rng.permutation(settings.per_query)
        negatives.append([chosen[i][0] for i in order])
        sources.append([chosen[i][1] for i in order])
    return rows.assign(negatives=negatives, sources=sources)


def _take_judged(wrong: Iterable[str], excluded: Set[str], count: int, rng: np.random.Generator) -> Taken:
    """At most `count` of the texts that are judged wrong, chosen at random where there are more."""
    judged = [text for text in distinct(wrong) if normal_form(text) not in excluded]
    if len(judged) > count:
        judged = [judged[i] for i in rng.permutation(len(judged))[:count]]
    return {normal_form(text): (text, "judged") for text in judged}


def _take_mined(
    taken: Taken,
    mined: dict[str, np.ndarray],
    texts: list[str],
    forms: list[str],
    excluded: Set[str],
    count: int,
    rng: np.random.Generator,
) -> None:
    """Add half of what is missing from BM25's ranks, and the rest from the dense encoder's."""
    missing = count - len(taken)
    for source, quota in (("bm25", missing // 2), ("dense", count)):
        candidates = [i for i in mined[source] if forms[i] not in excluded and forms[i] not in taken]
        room = quota - len(taken) if source == "dense" else quota
        for i in rng.permutation(len(candidates))[: max(0, room)]:
            taken[forms[candidates[i]]] = (texts[candidates[i]], source)


def _take_random(
    taken: Taken, texts: list[str], forms: list[str], excluded: Set[str], count: int, rng: np.random.Generator
) -> None:
    """Add texts at random until there are `count`, or none is left."""
    tries = 0
    while len(taken) < count and tries < 100 * count:
        i = int(rng.integers(len(texts)))
        tries += 1
        if forms[i] not in excluded and forms[i] not in taken:
            taken[forms[i]] = (texts[i], "random")
    if len(taken) < count:  # hardly any are left: one after another
        left = [i for i, form in enumerate(forms) if form not in excluded and form not in taken]
        for i in rng.permutation(len(left))[: count - len(taken)]:
            taken[forms[left[i]]] = (texts[left[i]], "random")


def pack(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) pack numbers: rows are shuffled and cut into packs of `size`; -1 for the rows of a short last pack."""
    order = rng.permutation(n)
    out = np.full(n, -1)
    whole = n // size * size
    out[order[:whole]] = np.arange(whole) // size
    return out


def _summarise(rows: pd.DataFrame, left_out: int) -> dict[str, object]:
    sources = pd.Series([source for members in rows["sources"] for source in members]).value_counts()
    return {
        "queries": len(rows),
        "left_out": left_out,
        "sources": {str(key): int(value) for key, value in sources.items()},
        "distinct_negatives": len({text for members in rows["negatives"] for text in members}),
    }
