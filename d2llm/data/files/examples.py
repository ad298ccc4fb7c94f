"""From judged pairs of one's own files to what every source makes: training pairs, pool, teacher's groups, evaluation
sets.

Files are read through `read`; writing is left to `build`. A judged pair is a row `dataset, mode, a, b, label, target,
contradicted, marked`: whether b is right for a, the probability of yes the teacher is taught, above one half exactly
where the label is yes, whether its set says yes and no of it (the first counts), and all that its set says is right for
a. Texts are compared by their normal form, and kept as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from d2llm.data.conditions import check_pairs, check_qrels
from d2llm.data.files import groups
from d2llm.data.files.read import (
    categories,
    complete,
    ids,
    labels,
    lists,
    numbers,
    other_labels,
    read_table,
    texts,
    unique_ids,
)
from d2llm.data.leaks import Frames, Held, Seen, Tasks, unordered
from d2llm.models.normal_form import distinct, normal_form
from d2llm.run.errors import DataError
from d2llm.run.schemas import GROUPED_BY

if TYPE_CHECKING:
    from d2llm.config.data import Retrieval, Table, TaskSet, TrainingSet

# Candidates of one query that the teacher reads together, at most.
GROUP = 8
NEW, SEEN = "not in training", "in training"
ONE, BOTH = "one text in training", "both texts in training"
# Labels that are counted by name where rows are left out.
LABELS_NAMED = 10
UNJUDGED = "queries without a judgement"
IN_TEST = "examples that test sets hold"
# What was left out of a set, and how often.
Dropped = dict[str, int]


class Judged(NamedTuple):
    """Judged pairs of a training set (see above), every text that is a passage in it, and what was left out."""

    pairs: pd.DataFrame
    passages: pd.Series
    dropped: Dropped


class EvaluationSet(NamedTuple):
    """One split of an evaluation set, {"pairs"} or {"queries", "corpus", "qrels"}, what was left out, and what the
    split holds, in a sample or not.
    """

    frames: Frames
    dropped: Dropped
    held: Held


def judged(name: str, settings: TrainingSet, rng: np.random.Generator) -> Judged:
    """One training set. Raises DataError for a file that is wrong."""
    if settings.retrieval is not None:
        (queries, corpus, qrels), dropped = retrieval(settings.retrieval, settings.incomplete == "drop")
        qrels, by_id = qrels[qrels["relevance"] > 0], corpus.set_index("id")["text"]
        rows = pd.DataFrame(
            {"query": qrels["query_id"].map(queries.set_index("id")["text"]), "passage": qrels["doc_id"].map(by_id)}
        )
        rows, passages = rows.assign(label=True, target=1.0), corpus["text"]
    else:
        rows, dropped = judged_rows(settings)
        passages = within(rows, settings.part, "query", "passage")["passage"]
    pairs = once(rows)
    # Of the whole file: what another part, or an evaluation set, takes is right for the query all the same.
    marked = by_query(pairs, True)
    pairs = pairs.assign(marked=[marked.get(form, []) for form in pairs["query"].map(normal_form)])
    pairs = within(pairs, settings.part, "query", "passage").reset_index(drop=True)
    query_forms = pairs["query"].map(normal_form)
    chosen = query_forms.drop_duplicates()
    if settings.sample is not None and settings.sample < len(chosen):
        chosen_queries = set(chosen.iloc[np.sort(rng.permutation(len(chosen))[: settings.sample])])
        pairs = pairs[query_forms.isin(chosen_queries)].reset_index(drop=True)
    if not pairs["label"].any():
        raise DataError(f"data.files.train.{name}: no pair of it is right; check label and yes, or score and yes_from")
    pairs.insert(0, "dataset", name)
    pairs.insert(1, "mode", settings.mode)
    passages = pd.Series(distinct(passages), dtype=object)
    if settings.pool is not None:
        is_judged = passages.map(normal_form).isin(set(pairs["passage"].map(normal_form)))
        passages = pd.concat([passages[is_judged], sampled(passages[~is_judged], settings.pool, rng)])
    return Judged(pairs, passages.reset_index(drop=True), dropped)


def once(pairs: pd.DataFrame) -> pd.DataFrame:
    """Every pair once, as it is judged first; `contradicted` where a later row judges it the other way. A text and
    itself are no pair.
    """
    pairs = pairs.reset_index(drop=True)
    forms = pd.DataFrame(
        {
            "query": pairs["query"].map(normal_form),
            "passage": pairs["passage"].map(normal_form),
            "label": pairs["label"],
        }
    )
    forms = forms[forms["query"] != forms["passage"]]
    torn = forms.groupby(["query", "passage"])["label"].transform("nunique") > 1
    first = forms.index[~forms.duplicated(["query", "passage"])]
    return pairs.loc[first].assign(contradicted=torn[first]).reset_index(drop=True)


def judged_rows(settings: TrainingSet) -> tuple[pd.DataFrame, Dropped]:
    """query, passage, label and target of a file of pairs or triples, in its order; and what was left out."""
    path = _require_path(settings.file)
    frame = read_table(path)
    dropped: Dropped = {}
    if settings.incomplete == "drop":
        columns = [settings.query, settings.passage, *filter(None, (settings.label, settings.score))]
        frame, dropped = complete_rows(frame, columns, settings.label, settings.yes or (), settings.no)
    query = texts(path, frame, settings.query)
    # Label and yes come together, and so do score, scores and yes_from.
    if settings.label is not None and settings.yes is not None:
        pairs = pd.DataFrame({"query": query, "passage": texts(path, frame, settings.passage)})
        label = labels(path, frame, settings.label, settings.yes, settings.no)
        return pairs.assign(label=label, target=label.astype(float)), dropped
    if settings.score is not None and settings.scores is not None and settings.yes_from is not None:
        pairs = pd.DataFrame({"query": query, "passage": texts(path, frame, settings.passage)})
        score = numbers(path, frame, settings.score, *settings.scores)
        wanted = target(score, settings.scores, settings.yes_from)
        return pairs.assign(label=score >= settings.yes_from, target=wanted), dropped
    passages = lists(path, frame, settings.passage)
    right_pairs = (
        pd.DataFrame({"query": query, "passage": passages}).explode("passage").dropna().assign(label=True, target=1.0)
    )
    if settings.negatives is None:
        return right_pairs, dropped
    wrong_pairs = pd.DataFrame({"query": query, "passage": lists(path, frame, settings.negatives)})
    return pd.concat([right_pairs, wrong_pairs.explode("passage").dropna().assign(label=False, target=0.0)]), dropped


def complete_rows(
    frame: pd.DataFrame, columns: Sequence[str], label: str | None, yes: Sequence[Any], no: Sequence[Any] | None
) -> tuple[pd.DataFrame, Dropped]:
    """The rows with a value in each of `columns` and, in column `label` (None: no labels), one that `yes` or `no`
    names; and what was left out.
    """
    whole = complete(frame, columns)
    dropped = {"rows without a text, label or score": len(frame) - len(whole)}
    if label is not None and label in whole:
        others = other_labels(whole, label, yes, no)
        counts = others.value_counts()
        dropped |= {f"rows labelled {name!r}": int(count) for name, count in counts.iloc[:LABELS_NAMED].items()}
        dropped |= {"rows with other labels": int(counts.iloc[LABELS_NAMED:].sum())}
        whole = whole.drop(index=others.index)
    return whole, {reason: count for reason, count in dropped.items() if count}


def _require_path(table: Table | None) -> str:
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


def retrieval(
    settings: Retrieval, drop: bool = False, phenomena: Sequence[str] = ()
) -> tuple[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame], Dropped]:
    """((queries, corpus with id and text, qrels with query_id, doc_id and relevance of at least 0), what was left out).

    With `drop`, what lacks a text goes, and what the qrels say of it. Queries keep their columns `phenomena`. Relevance
    is whole numbers where the file has nothing else. The index of the qrels holds their lines. Raises DataError for ids
    that do not fit.
    """
    tables, dropped = [], {}
    paths = {name: _require_path(table) for name, table in settings.tables().items()}
    for name, key in (("queries", settings.id), ("corpus", settings.corpus_id or settings.id)):
        path = paths[name]
        frame = read_table(path)
        whole = complete(frame, [key, settings.text]) if drop else frame
        dropped[f"{'queries' if name == 'queries' else 'passages'} without an id or a text"] = len(frame) - len(whole)
        table = pd.DataFrame({"id": unique_ids(path, whole, key), "text": texts(path, whole, settings.text)})
        if name == "queries":
            table = table.assign(**group_columns(path, whole, phenomena))
        tables.append(table.reset_index(drop=True))
    queries, corpus = tables
    path = paths["qrels"]
    frame = read_table(path)
    columns = {name: ids(path, frame, getattr(settings, name)) for name in ("query_id", "doc_id")}
    relevance = 1.0 if settings.relevance is None else numbers(path, frame, settings.relevance, -10.0, 1000.0)
    qrels = pd.DataFrame(columns).assign(relevance=relevance)
    for column, referenced, origin in (("query_id", queries, paths["queries"]), ("doc_id", corpus, paths["corpus"])):
        dangling = ~qrels[column].isin(set(referenced["id"]))
        if dangling.any() and not drop:
            line = qrels.index[dangling][0]
            raise DataError(
                f"{path}: line {line}: expected an id of {origin}; found {qrels[column][line]!r}; `incomplete: drop` "
                "leaves such judgements out"
            )
        qrels = qrels[~dangling]
    dropped["judgements of a query or passage that is not there"] = len(frame) - len(qrels)
    relevance = qrels["relevance"].clip(lower=0)  # trec_eval takes both for not relevant
    whole = (relevance == relevance.round()).all()
    qrels = qrels.assign(relevance=relevance.astype(int) if whole else relevance)
    return (queries, corpus, qrels), {reason: count for reason, count in dropped.items() if count}


def training_pairs(pairs: pd.DataFrame, passages: Mapping[str, pd.Series]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(training queries with one right passage each and what is judged `wrong` for them, the pool negatives are drawn
    from).
    """
    right = pairs[pairs["label"]]
    wrong = {name: by_query(part, False) for name, part in pairs.groupby("dataset")}
    query_forms = zip(right["dataset"], right["query"].map(normal_form), strict=True)
    train = pd.DataFrame(
        {
            "query": right["query"],
            "positive": right["passage"],
            "dataset": right["dataset"],
            "mode": right["mode"],
            "marked": right["marked"],
            "wrong": [wrong[dataset].get(form, []) for dataset, form in query_forms],
        }
    ).reset_index(drop=True)
    train.insert(0, "qid", [f"{dataset}-{i}" for i, dataset in enumerate(train["dataset"])])
    pool = [pd.DataFrame({"dataset": name, "text": texts}) for name, texts in passages.items()]
    return train, pd.concat(pool, ignore_index=True)


def by_query(pairs: pd.DataFrame, label: bool) -> dict[str, list[str]]:
    """By the normal form of every query of a set: the passages judged right for it, or those judged wrong."""
    chosen = pairs[pairs["label"] == label]
    return chosen["passage"].groupby(chosen["query"].map(normal_form)).agg(list).to_dict()


def teacher_groups(
    pairs: pd.DataFrame, pool: pd.DataFrame, wrong: int, held: float, seed: int
) -> dict[str, pd.DataFrame]:
    """{"train", "dev"}: queries with judged candidates. A query whose digest lies below `held` is for "dev".

    A query without a wrong candidate gets `wrong` drawn at random from its set's pool, none of them marked as right for
    it.
    """
    texts = {name: distinct(part["text"]) for name, part in pool.groupby("dataset", sort=False)}
    # Near copies of a query go to one part.
    spelling: dict[str, str] = {}
    rows: dict[str, list[dict[str, object]]] = {"train": [], "dev": []}
    for (dataset, mode, query), part in pairs.groupby(["dataset", "mode", "query"], sort=False):
        passages, target, label = part["passage"].tolist(), part["target"].tolist(), part["label"].tolist()
        if all(label):
            rng = np.random.default_rng([seed, *f"{dataset} {query}".encode()])
            drawn = _draw_wrong(texts[str(dataset)], (query, *part["marked"].iloc[0]), wrong, rng)
            passages, target, label = passages + drawn, target + [0.0] * len(drawn), label + [False] * len(drawn)
        order = mixed(label) if len(passages) > GROUP else list(range(len(passages)))
        split = "dev" if share(f"{seed} {spelling.setdefault(normal_form(query), query)}") < held else "train"
        for start in range(0, len(passages), GROUP):
            chosen = order[start : start + GROUP]
            rows[split].append(
                {
                    "mode": mode,
                    "query": query,
                    "passages": [passages[i] for i in chosen],
                    "target": [target[i] for i in chosen],
                    "label": [bool(label[i]) for i in chosen],
                    # No source but the generated world knows how words relate.
                    "relations": ["0" * len(passages[i]) for i in chosen],
                    "phenomenon": [str(dataset)] * len(chosen),
                }
            )
    groups = {split: pd.DataFrame(records) for split, records in rows.items()}
    _check_groups(groups, pairs["mode"].unique())
    return groups


def _draw_wrong(candidates: Sequence[str], right: Iterable[str], count: int, rng: np.random.Generator) -> list[str]:
    """At most `count` of the candidates, none of them a near copy of a text in `right`."""
    forms = {normal_form(text) for text in right}
    places = rng.choice(len(candidates), min(len(candidates), count + len(forms)), replace=False)
    drawn = [candidates[i] for i in places]
    return [text for text in drawn if normal_form(text) not in forms][:count]


def _check_groups(groups: Mapping[str, pd.DataFrame], modes: Iterable[str]) -> None:
    """Raises DataError for a part that lacks right or wrong pairs of a mode."""
    for split, frame in groups.items():
        for mode in modes:
            of_mode = frame[frame["mode"] == mode] if len(frame) else frame
            kinds = {value for values in of_mode.get("label", []) for value in values}
            if kinds != {True, False}:
                raise DataError(
                    f"data.files: the {mode} training sets leave the teacher's {split} part without "
                    f"{'right' if True not in kinds else 'wrong'} pairs; give more rows, or change teacher_dev"
                )


def mixed(label: list[bool]) -> list[int]:
    """Places of a list's members, right and wrong ones spread evenly, so that a piece of it holds both where there are
    enough.
    """
    counts, total = {True: 0, False: 0}, {kind: max(1, label.count(kind)) for kind in (True, False)}
    place = []
    for kind in label:
        counts[kind] += 1
        place.append((counts[kind] - 0.5) / total[kind])
    return sorted(range(len(label)), key=lambda i: (place[i], i))


def share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def evaluation_set(
    name: str, settings: TaskSet, split: str, rng: np.random.Generator, tested: Held | None = None
) -> EvaluationSet | None:
    """One split, without what is `tested`; None where there is no file for it. Its phenomenon is the named column, or
    empty.

    Raises DataError for a file that is wrong, or from which nothing can be measured.
    """
    source = getattr(settings, split)
    if source is None:
        return None
    if settings.type == "retrieval":
        return _read_retrieval_set(settings, source, rng, tested)
    pairs, dropped = _read_pairs(name, settings, split, source)
    held = Held.of({"pairs": pairs})
    pairs, dropped = _apart("pairs", pairs, dropped, tested, source)
    pairs = sampled(pairs, settings.sample, rng)
    target = "score" if settings.type == "sts" else "label"
    check_pairs(source, pairs, target, getattr(settings, target))
    return EvaluationSet({"pairs": pairs}, dropped, held)


def _apart(
    kind: str, frame: pd.DataFrame, dropped: Dropped, tested: Held | None, source: str
) -> tuple[pd.DataFrame, Dropped]:
    """(the pairs, or queries, that are not tested, what was left out). Raises DataError where all of them are."""
    is_tested = tested.holds({kind: frame}) if tested is not None else np.zeros(len(frame), dtype=bool)
    if len(frame) and is_tested.all():
        raise DataError(
            f"{source}: all {len(frame)} {kind} of this dev set are in a test set; give it other rows (dev_part and "
            "test_part share one file of pairs), or leave dev out"
        )
    return frame[~is_tested], dropped | ({IN_TEST: int(is_tested.sum())} if is_tested.any() else {})


def _read_pairs(name: str, settings: TaskSet, split: str, source: str) -> tuple[pd.DataFrame, Dropped]:
    """(all pairs of a split, what was left out)."""
    frame = read_table(source)
    target = "score" if settings.type == "sts" else "label"
    label = settings.label if target == "label" else None
    dropped: Dropped = {}
    if settings.incomplete == "drop":
        columns = [settings.query, settings.passage, getattr(settings, target)]
        frame, dropped = complete_rows(frame, columns, label, settings.yes, settings.no)
    pairs = pd.DataFrame({side: texts(source, frame, getattr(settings, side)) for side in ("query", "passage")})
    pairs.insert(0, "id", [f"{name}-{split}-{line}" for line in pairs.index])
    pairs["phenomenon"] = texts(source, frame, settings.phenomenon) if settings.phenomenon else ""
    pairs = pairs.assign(**group_columns(source, frame, settings.phenomena))
    if label is None:
        pairs["score"] = numbers(source, frame, settings.score, *settings.scores)
    else:
        pairs["label"] = labels(source, frame, label, settings.yes, settings.no).astype(int)
    return within(pairs, getattr(settings, f"{split}_part"), "query", "passage"), dropped


def _read_retrieval_set(
    settings: TaskSet, source: Retrieval, rng: np.random.Generator, tested: Held | None
) -> EvaluationSet:
    """A retrieval set. As in mteb, every query that is judged counts, also one without a relevant passage; others do
    not.
    """
    (queries, corpus, qrels), dropped = retrieval(source, settings.incomplete == "drop", settings.phenomena)
    check_qrels(_require_path(source.qrels), qrels, source.relevance)
    judged_ids = set(qrels["query_id"])
    judged_queries = queries[queries["id"].isin(judged_ids)]
    if len(judged_queries) < len(queries):
        dropped |= {UNJUDGED: len(queries) - len(judged_queries)}
    held = Held.of({"queries": judged_queries})
    judged_queries, dropped = _apart("queries", judged_queries, dropped, tested, _require_path(source.queries))
    judged_queries = sampled(judged_queries, settings.sample, rng).assign(phenomenon="")
    qrels = qrels[qrels["query_id"].isin(set(judged_queries["id"]))]
    if settings.sample is not None:
        check_qrels(f"{_require_path(source.qrels)}: sample of {settings.sample} queries", qrels, source.relevance)
    frames = {"queries": judged_queries, "corpus": corpus, "qrels": qrels.reset_index(drop=True)}
    return EvaluationSet(frames, dropped, held)


def group_columns(path: str, frame: pd.DataFrame, names: Sequence[str]) -> dict[str, pd.Series]:
    """The values of these columns as texts, by the name of a column of groups; "" where a row has none.

    Raises DataError for a column that is not there or has too many values to group by.
    """
    return {GROUPED_BY + name: categories(path, frame, name, groups.MOST) for name in names}


def with_groups(
    tasks: Tasks, settings: Mapping[str, TaskSet], names: Sequence[str], negation: Sequence[str] | None
) -> tuple[Tasks, dict[str, groups.Bounds]]:
    """(the sets with the groups `names`, by "<set>/<split>" the bounds of thirds)."""
    out: Tasks = {}
    bounds: dict[str, groups.Bounds] = {}
    for split, sets in tasks.items():
        out[split] = {}
        for name, frames in sets.items():
            computed = groups.grouped(frames, names, settings[name].language, negation)
            out[split][name], bounds[f"{name}/{split}"] = computed
    return out, bounds


def within(pairs: pd.DataFrame, part: tuple[float, float] | None, one: str, two: str) -> pd.DataFrame:
    """The rows whose pair of texts, in any order, has its digest in a range of shares; all of them without one.

    The digest is of the first spelling in the rows, so that near copies of a pair lie in one part with it.
    """
    if part is None:
        return pairs
    spelling: dict[frozenset[str], list[str]] = {}
    first = [spelling.setdefault(unordered(*pair), sorted(pair)) for pair in zip(pairs[one], pairs[two], strict=True)]
    return pairs[[part[0] <= share("\n".join(pair)) < part[1] for pair in first]]


def sampled(frame: pd.DataFrame, size: int | None, rng: np.random.Generator) -> pd.DataFrame:
    """That many rows drawn at random, in their order; all of them without a size, or where there are no more."""
    if size is not None and size < len(frame):
        frame = frame.iloc[np.sort(rng.permutation(len(frame))[:size])]
    return frame.reset_index(drop=True)


def without(pairs: pd.DataFrame, held: Held) -> pd.DataFrame:
    """Judged pairs that no evaluation set holds: neither the pair, in any order, nor the query of a retrieval set, nor
    near copies.
    """
    searched = (pairs["mode"] == "asymmetric") & held.holds({"queries": pairs[["query"]].set_axis(["text"], axis=1)})
    return pairs[~(held.holds({"pairs": pairs}) | searched.to_numpy())].reset_index(drop=True)


def seen(pairs: pd.DataFrame, passages: Mapping[str, pd.Series]) -> Seen:
    """What training shows: the judged pairs and the passages negatives are drawn from."""
    return Seen.of(
        (text for part in passages.values() for text in part), zip(pairs["query"], pairs["passage"], strict=True)
    )


def with_familiarity(tasks: Tasks, training: Seen) -> Tasks:
    """The sets with an empty phenomenon filled: of a pair, how many of its texts training has; of a query, whether it
    has it.
    """
    out: Tasks = {}
    for split, sets in tasks.items():
        out[split] = {}
        for name, frames in sets.items():
            key = "pairs" if "pairs" in frames else "queries"
            columns = ("query", "passage") if key == "pairs" else ("text",)
            frame = frames[key]
            familiar = sum(
                frame[column].map(lambda text: normal_form(text) in training.texts).astype(int) for column in columns
            )
            words = (NEW, ONE, BOTH) if key == "pairs" else (NEW, SEEN)
            named = frame["phenomenon"].where(frame["phenomenon"] != "", familiar.map(dict(enumerate(words))))
            out[split][name] = {**frames, key: frame.assign(phenomenon=named)}
    return out
