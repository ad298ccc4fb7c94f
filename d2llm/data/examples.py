"""From judged pairs of one's own files to what every source makes: training pairs, pool, teacher's groups, evaluation sets.

Files are read through `files`; nothing is written. A judged pair is a row `dataset, mode, a, b, label, target, contradicted`: whether b is right for a, the
probability of yes the teacher is taught, above one half exactly where the label is yes, and whether its set says yes and no of it (the first counts).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from d2llm.data.files import among, complete, ids, labels, lists, numbers, read_pairs, read_table, texts, unique_ids
from d2llm.data.leaks import Seen, Tasks, bag
from d2llm.errors import DataError
from d2llm.logs import get_logger

if TYPE_CHECKING:
    from d2llm.data.settings import Retrieval, Table, TaskSet, TrainingSet

# Candidates of one query that the teacher reads together, at most.
GROUP = 8
NEW, SEEN = "not in training", "in training"
ONE, BOTH = "one text in training", "both texts in training"


def judged(name: str, settings: TrainingSet, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.Series]:
    """(judged pairs of one training set, every text that is a passage in it). Raises DataError for a file that is wrong."""
    if settings.retrieval is not None:
        queries, corpus, qrels = retrieval(settings.retrieval, settings.incomplete == "drop")
        by_id = corpus.set_index("id")["text"]
        pairs = pd.DataFrame(
            {"a": qrels["query_id"].map(queries.set_index("id")["text"]), "b": qrels["doc_id"].map(by_id)}
        )
        pairs, passages = pairs.assign(label=True, target=1.0), corpus["text"]
    else:
        pairs = within(judged_rows(name, settings), settings.part, "a", "b")
        passages = pairs["b"]
    pairs = once(pairs[pairs["a"] != pairs["b"]])
    chosen = pairs["a"].drop_duplicates()
    if settings.sample is not None and settings.sample < len(chosen):
        kept = set(chosen.iloc[np.sort(rng.permutation(len(chosen))[: settings.sample])])
        pairs = pairs[pairs["a"].isin(kept)].reset_index(drop=True)
    if not pairs["label"].any():
        raise DataError(f"data.files.train.{name}: no pair of it is right; check label and yes, or score and yes_from")
    pairs.insert(0, "dataset", name)
    pairs.insert(1, "mode", settings.mode)
    passages = passages.drop_duplicates()
    if settings.pool is not None:
        own = passages.isin(set(pairs["b"]))
        passages = pd.concat([passages[own], sampled(passages[~own], settings.pool, rng)])
    return pairs, passages.reset_index(drop=True)


def once(pairs: pd.DataFrame) -> pd.DataFrame:
    """Every pair once, as it is judged first; `contradicted` where a later row judges it the other way."""
    again = pairs[pairs.duplicated(["a", "b"], keep=False)]
    kinds = again.groupby(["a", "b"])["label"].nunique()
    torn = set(kinds.index[kinds > 1])
    found = pairs.drop_duplicates(["a", "b"]).reset_index(drop=True)
    return found.assign(contradicted=[pair in torn for pair in zip(found["a"], found["b"], strict=True)])


def judged_rows(name: str, settings: TrainingSet) -> pd.DataFrame:
    """a, b, label and target of a file of pairs or triples, in its order."""
    path = _path(settings.file)
    frame = read_table(path)
    if settings.incomplete == "drop":
        whole = len(frame)
        frame = complete(frame, [settings.query, settings.passage, *filter(None, (settings.label, settings.score))])
        if settings.no and settings.yes and settings.label and settings.label in frame:
            frame = among(frame, settings.label, [*settings.yes, *settings.no])
        get_logger(__name__).info("%s: %d of %d rows are incomplete and left out", name, whole - len(frame), whole)
    query = texts(path, frame, settings.query)
    # Label and yes come together, and so do score, scores and yes_from.
    if settings.label is not None and settings.yes is not None:
        pairs = pd.DataFrame({"a": query, "b": texts(path, frame, settings.passage)})
        found = labels(path, frame, settings.label, settings.yes, settings.no)
        return pairs.assign(label=found, target=found.astype(float))
    if settings.score is not None and settings.scores is not None and settings.yes_from is not None:
        pairs = pd.DataFrame({"a": query, "b": texts(path, frame, settings.passage)})
        score = numbers(path, frame, settings.score, *settings.scores)
        return pairs.assign(label=score >= settings.yes_from, target=target(score, settings.scores, settings.yes_from))
    passages = lists(path, frame, settings.passage)
    right = pd.DataFrame({"a": query, "b": passages}).explode("b").dropna().assign(label=True, target=1.0)
    if settings.negatives is None:
        return right
    wrong = pd.DataFrame({"a": query, "b": lists(path, frame, settings.negatives)})
    return pd.concat([right, wrong.explode("b").dropna().assign(label=False, target=0.0)])


def _path(table: Table | None) -> str:
    """A table as a file, which all are in what `FilesSettings.local` gives."""
    if not isinstance(table, str):
        raise TypeError(f"{table} is no file; read the settings that FilesSettings.local gives")
    return table


def target(score: pd.Series, scores: tuple[float, float], yes_from: float) -> pd.Series:
    """A score as a probability of yes: linear from 0 at the least to ½ at `yes_from`, and on to 1 at the most."""
    least, most = scores
    below = 0.5 * (score - least) / max(yes_from - least, 1e-12)
    above = 0.5 + 0.5 * (score - yes_from) / max(most - yes_from, 1e-12)
    # What is yes must be above one half, or the bound itself would teach neither.
    return above.where(score >= yes_from, below).clip(0.0, 1.0).where(score != yes_from, 0.5 + 1e-6)


def retrieval(settings: Retrieval, drop: bool = False) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(queries, corpus) with id and text, and qrels (query_id, doc_id, relevance). Raises DataError for ids that do not fit.

    With `drop`, what lacks a text goes instead, and what the qrels say of it.
    """
    found = []
    paths = {name: _path(table) for name, table in settings.tables().items()}
    for path, key in ((paths["queries"], settings.id), (paths["corpus"], settings.corpus_id or settings.id)):
        frame = read_table(path)
        frame = complete(frame, [key, settings.text]) if drop else frame
        made = pd.DataFrame({"id": unique_ids(path, frame, key), "text": texts(path, frame, settings.text)})
        found.append(made.reset_index(drop=True))
    queries, corpus = found
    judged = paths["qrels"]
    frame = read_table(judged)
    made = {name: ids(judged, frame, getattr(settings, name)) for name in ("query_id", "doc_id")}
    relevance = 1.0 if settings.relevance is None else numbers(judged, frame, settings.relevance, -10.0, 1000.0)
    qrels = pd.DataFrame(made).assign(relevance=relevance)
    for column, known, path in (("query_id", queries, paths["queries"]), ("doc_id", corpus, paths["corpus"])):
        lost = ~qrels[column].isin(set(known["id"]))
        if drop:
            qrels = qrels[~lost]
        elif lost.any():
            line = qrels.index[lost][0]
            raise DataError(f"{judged}: line {line}: expected an id of {path}; found {qrels[column][line]!r}")
    qrels = qrels[qrels["relevance"] > 0].reset_index(drop=True)
    return queries, corpus, qrels.assign(relevance=qrels["relevance"].round().clip(lower=1).astype(int))


def training_pairs(pairs: pd.DataFrame, passages: Mapping[str, pd.Series]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(training queries with one right passage each and what is judged `wrong` for them, the pool negatives are drawn from)."""
    right = pairs[pairs["label"]]
    marked = right.groupby(["dataset", "a"])["b"].agg(list)
    wrong = pairs[~pairs["label"]].groupby(["dataset", "a"])["b"].agg(list).to_dict()
    train = pd.DataFrame(
        {"query": right["a"], "positive": right["b"], "dataset": right["dataset"], "mode": right["mode"],
         "marked": [marked[dataset, a] for dataset, a in zip(right["dataset"], right["a"], strict=True)],
         "wrong": [wrong.get((dataset, a), []) for dataset, a in zip(right["dataset"], right["a"], strict=True)]}
    ).reset_index(drop=True)  # fmt: skip
    train.insert(0, "qid", [f"{dataset}-{i}" for i, dataset in enumerate(train["dataset"])])
    pool = [pd.DataFrame({"dataset": name, "text": found}) for name, found in passages.items()]
    return train, pd.concat(pool, ignore_index=True)


def teacher_groups(
    pairs: pd.DataFrame, pool: pd.DataFrame, wrong: int, held: float, seed: int
) -> dict[str, pd.DataFrame]:
    """{"train", "dev"}: queries with judged candidates; whose query's digest lies below `held` is kept from training.

    A query without a wrong candidate gets `wrong` drawn at random from its set's pool.
    """
    texts = {name: part["text"].tolist() for name, part in pool.groupby("dataset", sort=False)}
    rows: dict[str, list[dict[str, object]]] = {"train": [], "dev": []}
    for (dataset, mode, a), part in pairs.groupby(["dataset", "mode", "a"], sort=False):
        b, target, label = part["b"].tolist(), part["target"].tolist(), part["label"].tolist()
        if all(label):
            rng = np.random.default_rng([seed, *f"{dataset} {a}".encode()])
            known, candidates = {a, *b}, texts[str(dataset)]
            count = min(len(candidates), wrong + len(known))
            drawn = [candidates[i] for i in rng.choice(len(candidates), count, replace=False)]
            drawn = [text for text in drawn if text not in known][:wrong]
            b, target, label = b + drawn, target + [0.0] * len(drawn), label + [False] * len(drawn)
        order = mixed(label) if len(b) > GROUP else list(range(len(b)))
        split = "dev" if share(f"{seed} {a}") < held else "train"
        for start in range(0, len(b), GROUP):
            chosen = order[start : start + GROUP]
            rows[split].append(
                {"mode": mode, "a": a, "b": [b[i] for i in chosen], "target": [target[i] for i in chosen],
                 "label": [bool(label[i]) for i in chosen],
                 # No source but the generated world knows how words relate.
                 "relations": ["0" * len(b[i]) for i in chosen], "phenomenon": [str(dataset)] * len(chosen)}
            )  # fmt: skip
    groups = {split: pd.DataFrame(found) for split, found in rows.items()}
    for split, frame in groups.items():
        for mode in pairs["mode"].unique():
            of = frame[frame["mode"] == mode] if len(frame) else frame
            kinds = {value for values in of.get("label", []) for value in values}
            if kinds != {True, False}:
                raise DataError(
                    f"data.files: the {mode} training sets leave the teacher's {split} part without "
                    f"{'right' if True not in kinds else 'wrong'} pairs; give more rows, or change teacher_dev"
                )
    return groups


def mixed(label: list[bool]) -> list[int]:
    """Places of a list's members, right and wrong ones spread evenly, so that a piece of it holds both where there are enough."""
    seen, total = {True: 0, False: 0}, {kind: max(1, label.count(kind)) for kind in (True, False)}
    place = []
    for kind in label:
        seen[kind] += 1
        place.append((seen[kind] - 0.5) / total[kind])
    return sorted(range(len(label)), key=lambda i: (place[i], i))


def share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def evaluation_set(
    name: str, settings: TaskSet, split: str, rng: np.random.Generator
) -> dict[str, pd.DataFrame] | None:
    """One split's frames, {"pairs"} or {"queries", "corpus", "qrels"}; None where there is no file for it.

    Their phenomenon is the named column, or empty. Raises DataError for a file that is wrong.
    """
    source = getattr(settings, split)
    if source is None:
        return None
    if settings.type == "retrieval":
        queries, corpus, qrels = retrieval(source)
        queries = queries[queries["id"].isin(set(qrels["query_id"]))]
        queries = sampled(queries, settings.sample, rng).assign(phenomenon="")
        return {
            "queries": queries,
            "corpus": corpus,
            "qrels": qrels[qrels["query_id"].isin(set(queries["id"]))].reset_index(drop=True),
        }
    frame, pairs = read_pairs(source, {"sentence1": settings.sentence1, "sentence2": settings.sentence2})
    pairs.insert(0, "id", [f"{name}-{split}-{line}" for line in pairs.index])
    pairs["phenomenon"] = texts(source, frame, settings.phenomenon) if settings.phenomenon else ""
    if settings.type == "sts":
        pairs["score"] = numbers(source, frame, settings.score, *settings.scores)
    else:
        pairs["label"] = labels(source, frame, settings.label, list(settings.yes)).astype(int)
    pairs = within(pairs, getattr(settings, f"{split}_part"), "sentence1", "sentence2")
    return {"pairs": sampled(pairs, settings.sample, rng)}


def within(pairs: pd.DataFrame, part: tuple[float, float] | None, one: str, two: str) -> pd.DataFrame:
    """The rows whose pair of texts, in any order, has its digest in a range of shares; all of them without one."""
    if part is None:
        return pairs
    place = [share("\n".join(sorted(pair))) for pair in zip(pairs[one], pairs[two], strict=True)]
    return pairs[[part[0] <= value < part[1] for value in place]]


def sampled(frame: pd.DataFrame, size: int | None, rng: np.random.Generator) -> pd.DataFrame:
    """That many rows drawn at random, in their order; all of them without a size, or where there are no more."""
    if size is not None and size < len(frame):
        frame = frame.iloc[np.sort(rng.permutation(len(frame))[:size])]
    return frame.reset_index(drop=True)


def without(pairs: pd.DataFrame, tasks: Tasks) -> pd.DataFrame:
    """Judged pairs that no evaluation set holds: neither the pair, in any order, nor the query of a retrieval set."""
    held: set[frozenset[str]] = set()
    asked: set[str] = set()
    for made in tasks.values():
        for frames in made.values():
            if "pairs" in frames:
                both = zip(frames["pairs"]["sentence1"], frames["pairs"]["sentence2"], strict=True)
                held.update(frozenset(pair) for pair in both)
            else:
                asked.update(frames["queries"]["text"])
    gone = [
        frozenset((a, b)) in held or (mode == "asymmetric" and a in asked)
        for a, b, mode in zip(pairs["a"], pairs["b"], pairs["mode"], strict=True)
    ]
    return pairs[~np.array(gone, dtype=bool)].reset_index(drop=True)


def seen(pairs: pd.DataFrame, passages: Mapping[str, pd.Series]) -> Seen:
    """What training shows: the judged pairs and the passages negatives are drawn from."""
    shown = (
        frozenset(pairs["a"]) | frozenset(pairs["b"]) | frozenset(text for part in passages.values() for text in part)
    )
    both = frozenset(frozenset(pair) for pair in zip(pairs["a"], pairs["b"], strict=True))
    return Seen(shown, both, frozenset(map(bag, shown)))


def with_familiarity(tasks: Tasks, training: Seen) -> Tasks:
    """The sets with an empty phenomenon filled: of a pair, how many of its texts training has; of a query, whether it has it."""
    out: Tasks = {}
    for split, made in tasks.items():
        out[split] = {}
        for name, frames in made.items():
            key = "pairs" if "pairs" in frames else "queries"
            columns = ("sentence1", "sentence2") if key == "pairs" else ("text",)
            frame = frames[key]
            known = sum(frame[column].map(lambda text: text in training.texts).astype(int) for column in columns)
            words = (NEW, ONE, BOTH) if key == "pairs" else (NEW, SEEN)
            named = frame["phenomenon"].where(frame["phenomenon"] != "", known.map(dict(enumerate(words))))
            out[split][name] = {**frames, key: frame.assign(phenomenon=named)}
    return out
