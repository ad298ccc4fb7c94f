"""Evaluation sets from a user's files to scores: judgements, relevance, labels and incomplete rows count as the files
say, or are refused by file and line."""

from __future__ import annotations

from contextlib import nullcontext
from math import log2
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from own_files import jsonl, rows, search_files
from plain_mteb import PlainScorer

from d2llm.config.data import MtebSet, TaskSet
from d2llm.config.evaluation import EvaluationSettings
from d2llm.data import build
from d2llm.data.conditions import whole_relevance
from d2llm.data.files import examples
from d2llm.data.hub import download
from d2llm.data.leaks import Seen
from d2llm.evaluation import tasks
from d2llm.evaluation.evaluate import _ranked, evaluate
from d2llm.run.artifacts import write_json
from d2llm.run.errors import ConfigError, DataError

PAIRS = {"type": "pair_classification", "group": "nli"}
STS = {"type": "sts", "group": "sts", "scores": (0.0, 5.0)}


class Fixed(PlainScorer):
    """Scores by hand: {(first text, second text): score}, 0 for any other pair."""

    def __init__(self, scores: dict[tuple[str, str], float]) -> None:
        self.scores = scores

    def score_pairs(self, pairs: list[tuple[str, str]], mode: str) -> np.ndarray:
        return np.array([self.scores.get(pair, 0.0) for pair in pairs])

    def search(
        self, queries: list[str], passages: list[str], depth: int, ties: object = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        scores = [self.score_pairs([(query, passage) for passage in passages], "") for query in queries]
        return [(order, row[order]) for row in scores for order in [np.argsort(-row, kind="stable")[:depth]]]


def measured(
    folder: Path, settings: dict[str, Any], scores: dict[tuple[str, str], float], keep: int = 100
) -> tuple[dict[str, float], pd.DataFrame, examples.EvaluationSet]:
    """Metrics of a whole set, its predictions, and the set, by the way from files to mteb that every set takes."""
    task = TaskSet.model_validate({"group": "ir"} | settings)
    one = examples.evaluation_set("t", task, "test", np.random.default_rng(0))
    filled = examples.with_familiarity({"test": {"t": one.frames}}, Seen.of((), ()))
    write_json(folder / "t/task.json", build.header("t", task))
    build.write_task(folder / "t", "test", filled["test"]["t"])
    read = [tasks.read(folder / "t", "test")]
    values, predictions = evaluate(Fixed(scores), read, "hand", EvaluationSettings(keep=keep))
    whole = values[values["phenomenon"] == "all"].set_index("metric")
    assert (whole["n"] == len(one.frames.get("queries", one.frames.get("pairs")))).all()
    return whole["value"].to_dict(), predictions, one


# ----------------------------------------------------------------------------------------------------------- retrieval
def test_a_query_judged_without_a_relevant_passage_counts_and_one_nobody_judged_does_not(tmp_path: Path) -> None:
    queries = {"q1": "one", "q2": "two", "q3": "three", "q4": "four"}
    qrels = [("q1", "d1", 1), ("q2", "d1", 0), ("q3", "d2", -1)]
    three = search_files(tmp_path, queries, {"d1": "a", "d2": "b"}, qrels)
    values, predictions, read = measured(tmp_path, {"type": "retrieval", "test": three}, {("one", "a"): 1.0})
    assert values == {name: pytest.approx(1 / 3, abs=1e-5) for name in ("mrr_at_10", "recall_at_10", "ndcg_at_10")}
    assert read.dropped == {"queries without a judgement": 1}
    assert dict(zip(predictions["query_id"], predictions["relevant"], strict=True)) == {"q1": 1, "q2": 0, "q3": 0}


@pytest.mark.parametrize("relevance", [(1.0, 0.5, 0.25), (0.001, 0.5, 0.123)])
def test_relevance_is_a_gain_whatever_its_steps(relevance: tuple[float, ...], tmp_path: Path) -> None:
    corpus = {"d1": "a", "d2": "b", "d3": "c"}
    three = search_files(tmp_path, {"q": "ask"}, corpus, [("q", f"d{i}", r) for i, r in enumerate(relevance, 1)])
    worst_first = {("ask", text): -r for text, r in zip(corpus.values(), relevance, strict=True)}
    values, predictions, _ = measured(tmp_path, {"type": "retrieval", "test": three}, worst_first)
    gain = sum(r / log2(rank + 1) for rank, r in enumerate(sorted(relevance), 1))
    ideal = sum(r / log2(rank + 1) for rank, r in enumerate(sorted(relevance, reverse=True), 1))
    assert values["ndcg_at_10"] == pytest.approx(gain / ideal, abs=1e-5)
    assert sorted(predictions["label"]) == sorted(relevance)  # as the file has it


def test_relevance_in_whole_steps_is_exact_or_refused() -> None:
    assert whole_relevance(pd.Series([1.0, 0.5, 0.25, 0.0, -1.0])).tolist() == [4, 2, 1, 0, 0]
    assert whole_relevance(pd.Series([3, 0, -2])).tolist() == [3, 0, 0]
    for fine in ([1 / 3, 1.0], [0.000001, 1.0], [999.99, 0.01]):
        with pytest.raises(ValueError, match="line 0: relevance .* is too fine"):
            whole_relevance(pd.Series(fine))


@pytest.mark.parametrize(("ignored", "expected"), [(False, 0.63093), (True, 1.0)])
def test_a_passage_with_its_querys_id_can_be_left_out(ignored: bool, expected: float, tmp_path: Path) -> None:
    texts = {str(i): f"text {i}" for i in range(12)}
    three = search_files(tmp_path, texts, texts, [(str(i), str((i + 1) % 12), 1) for i in range(12)])
    # A text is most like itself, and next like the right one.
    scores = {(texts[str(i)], texts[str((i + step) % 12)]): 2.0 - step for i in range(12) for step in (0, 1)}
    settings = {"type": "retrieval", "test": three, "ignore_identical_ids": ignored}
    values, predictions, _ = measured(tmp_path, settings, scores)
    assert values["ndcg_at_10"] == pytest.approx(expected, abs=1e-5)
    assert (predictions["query_id"] == predictions["doc_id"]).any() != ignored


def test_of_equal_scores_the_documents_that_are_measured_are_kept(tmp_path: Path) -> None:
    """MRR from the predictions, of which comparisons and disagreements are made, is the MRR that is stored."""
    from d2llm.analysis.comparison import examples as of_queries

    corpus = {f"d{i:02}": f"text {i}" for i in range(30)}
    three = search_files(tmp_path, {"q": "ask"}, corpus, [("q", "d27", 1)])
    values, predictions, _ = measured(tmp_path, {"type": "retrieval", "test": three}, {}, keep=10)
    assert predictions["doc_id"].tolist() == [f"d{i}" for i in range(29, 19, -1)]
    assert of_queries(predictions, "retrieval")["value"].tolist() == [pytest.approx(values["mrr_at_10"], abs=1e-5)]
    assert values["mrr_at_10"] == pytest.approx(1 / 3, abs=1e-5)


@pytest.mark.parametrize(
    ("identical", "first", "expected"),
    [(False, False, ["q", "a", "b"]), (True, False, ["a", "b"]), (False, True, ["a", "b"]), (True, True, ["b"])],
)
def test_rankings_are_measured_by_the_rules_of_the_class(identical: bool, first: bool, expected: list[str]) -> None:
    """Tested by itself: mteb also takes identical ids out of the very rankings it was given."""
    rules = SimpleNamespace(ignore_identical_ids=identical, skip_first_result=first)
    rankings = {"q": {"q": 3.0, "a": 2.0, "b": 1.0}}
    assert list(_ranked(rankings, rules)["q"]) == expected
    assert list(rankings["q"]) == ["q", "a", "b"]


def test_an_empty_query_or_passage_is_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    qrels = [("q1", "d1", 1), ("q2", "d3", 1), ("q3", "d2", 1)]
    three = search_files(tmp_path, {"q1": "one", "q2": "", "q3": "three"}, {"d1": "a", "d2": " ", "d3": "c"}, qrels)
    settings = {"type": "retrieval", "test": three}
    with pytest.raises(DataError, match=r"queries\.jsonl: line 2, column 'text': expected a text; found ''"):
        measured(tmp_path, settings, {})
    values, _, read = measured(tmp_path, settings | {"incomplete": "drop"}, {("one", "a"): 1.0})
    assert values["mrr_at_10"] == 1.0 and read.frames["queries"]["id"].tolist() == ["q1"]
    assert read.dropped == {
        "queries without an id or a text": 1,
        "passages without an id or a text": 1,
        "judgements of a query or passage that is not there": 2,
        "queries without a judgement": 1,
    }


# --------------------------------------------------------------------------------------------------------------- pairs
@pytest.mark.parametrize(
    ("kind", "group", "expected"),
    [("pair_classification", "sts", "nli"), ("sts", "ir", "sts"), ("retrieval", "sts", "ir")],
)
def test_a_set_stands_in_the_table_of_its_metrics(kind: str, group: str, expected: str) -> None:
    """In another it had no cell, and counted in the average of that table's comparisons."""
    test = "t.csv" if kind != "retrieval" else {"queries": "q.csv", "corpus": "c.csv", "qrels": "r.csv"}
    for settings, source in ((MtebSet, {"mteb": "ATEC"}), (TaskSet, {"test": test})):
        with pytest.raises(ValueError, match=f"group {expected}, not {group}, for type {kind}"):
            settings.model_validate({"type": kind, "group": group} | source)


ALIKE = r"t\.jsonl: column 'score': every score is 2; a correlation needs two different scores"
KIND = {"qrels": {"type": "retrieval"}, "label": PAIRS, "score": STS}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", [1, 1, 1], r"t\.jsonl: column 'label': every label means yes; expected pairs of both kinds"),
        ("label", [1], r"t\.jsonl: column 'label': expected at least 2 pairs, found 1"),
        ("score", [2.0, 2.0], ALIKE),
        ("score", [2.0] * 30 + [1.0], ALIKE),
        ("qrels", [("q", "d", 1), ("q", "e", 0), ("q", "d", 1)],
         r"qrels\.jsonl: line 3: query 'q' and document 'd' are judged again, as in line 1"),
        ("qrels", [("q", "d", 0), ("q", "e", -1)], r"qrels\.jsonl: column 'relevance': no document is relevant to any"),
        ("qrels", [("q", "d", 1), ("q", "e", 1 / 3)], r"qrels\.jsonl: column 'relevance': line 2: relevance 0\.33+ is"),
    ],
)  # fmt: skip
def test_what_measures_nothing_is_refused_by_the_users_file(
    column: str, values: list, message: str, tmp_path: Path
) -> None:
    if column == "qrels":
        test = search_files(tmp_path, {"q": "ask"}, {"d": "a", "e": "b"}, values)
    else:
        pairs = rows(f"sentence1 sentence2 {column}", *((f"a{i}", f"b{i}", value) for i, value in enumerate(values)))
        test = jsonl(tmp_path / "t.jsonl", pairs)
    with pytest.raises(DataError, match=message):
        measured(tmp_path, KIND[column] | {"test": test, "sample": 2}, {})


# --------------------------------------------------------------------------------------------------------- sets of mteb
@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("CQADupstackRetrieval", "test", "CQADupstackRetrieval is a mean over sets; name each .*: CQADup"),
        ("StakeholderGrounding", "test", "StakeholderGrounding is measured in a way of its own"),
        ("T2Retrieval", "validation", "mteb evaluates T2Retrieval on dev; found 'validation'"),
        ("MSVDT2VRetrieval", "test", "MSVDT2VRetrieval is of text, video; expected a set of texts alone"),
    ],
)  # fmt: skip
def test_a_set_of_mtebs_that_is_not_of_texts_alone_and_measured_as_its_type_is_refused(
    name: str, split: str, message: str
) -> None:
    import mteb

    with pytest.raises(ConfigError, match=f"key.*: {message}"):
        download.check_own_rules(mteb.get_task(name), [split], "key")
    download.check_own_rules(mteb.get_task("Touche2020Retrieval.v3"), ["test"], "key")


@pytest.mark.parametrize(
    ("subsets", "wanted", "message"),
    [
        (["en", "zh"], "zh", None),
        (["default"], None, None),
        (["en", "zh"], None, "expected one of en, zh; found null"),
        (["en", "zh"], "fr", "expected one of en, zh; found 'fr'"),
        (["default"], "zh", "expected null, as this task has one subset only; found 'zh'"),
    ],
)
def test_a_subset_of_mtebs_is_named_where_there_are_several(subsets: list, wanted: str, message: str) -> None:
    task = SimpleNamespace(metadata=SimpleNamespace(is_multilingual=len(subsets) > 1), hf_subsets=subsets)
    with pytest.raises(ConfigError, match=f"key: {message}") if message else nullcontext():
        download.check_subset(task, wanted, "key")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_ranked": {"q": ["d"]}}, "has candidates of its own to re-rank"),
        ({"relevant_docs": {"q": {"d": 0.5}}}, "has a relevance of 0.5, of which mteb computes no metric"),
        ({"queries": {"id": ["q"], "text": ["a"], "instruction": ["b"]}}, "has instructions beside its queries"),
        ({"queries": {"id": ["q"], "text": [["a", "b"]]}}, "has conversations as queries"),
    ],
)
def test_a_retrieval_set_of_mtebs_that_is_more_than_texts_is_refused(change: dict, message: str) -> None:
    from datasets import Dataset

    split = {
        "corpus": {"id": ["d"], "title": ["t"], "text": ["x"]},
        "queries": {"id": ["q"], "text": ["a"]},
        "relevant_docs": {"q": {"d": 1}},
    } | change
    split |= {part: Dataset.from_dict(split[part]) for part in ("corpus", "queries")}
    with pytest.raises(ConfigError, match=f"key: this set of mteb's {message}"):
        download.retrieval(split, "key")


def test_a_set_of_mtebs_takes_incomplete_as_files_do() -> None:
    task = MtebSet(mteb="STS22", subset="zh", type="sts", group="sts", incomplete="drop")
    assert task.as_files("folder").incomplete == "drop" and task.name == "mteb--sts22--zh"
