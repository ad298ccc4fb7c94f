"""The examples on which methods disagree: chosen by the stated rule, with the right texts, and bounded."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from d2llm.evaluation.tasks import Task
from d2llm.reporting.page import disagreement
from d2llm.reporting.page.disagreement import examples
from d2llm.run.errors import ArtifactError

ABOUT = {"name": "t", "title": "T", "group": "nli", "description": "", "split": "test", "revision": ""}


def nli(count: int) -> Task:
    columns = {"passage": "乙" * 400, "phenomenon": "role swap", "label": [n % 2 for n in range(count)]}
    rows = [(f"p{n}", f"甲{n}") for n in range(count)]
    pairs = pd.DataFrame(rows, columns=["id", "query"]).assign(**columns)
    return Task(type="pair_classification", pairs=pairs, **ABOUT)


def predictions(scores: dict[tuple[str, int], dict], labels: dict, cluster: str | None = None) -> pd.DataFrame:
    """Rows of {(method, seed): {example or (query, passage): score}}."""
    rows = []
    for (method, seed), values in scores.items():
        for key, score in values.items():
            query, doc = key if isinstance(key, tuple) else (key, "")
            rows.append((method, seed, query, doc, score, labels[key], cluster or query))
    columns = ["method", "seed", "query_id", "doc_id", "score", "label", "cluster"]
    return pd.DataFrame(rows, columns=columns).assign(phenomenon="role swap")


def test_a_pairs_standing_is_the_share_of_others_scored_lower() -> None:
    ids = [f"p{n}" for n in range(5)]
    rows = {
        ("a", 1): [1.0, 2.0, 3.0, 4.0, 5.0],
        ("a", 2): [1.0, 2.0, 3.0, 5.0, 4.0],
        ("b", 1): [900.0, 200.0, 300.0, 300.0, -7.0],
        ("bm25", 1): [0.0, 0.0, 0.0, 0.0, 1.0],
    }
    scores = {key: dict(zip(ids, values, strict=True)) for key, values in rows.items()}
    chosen = examples(nli(5), predictions(scores, dict.fromkeys(ids, 0.0)), ["a", "b"])
    by_id = {example["id"]: example for example in chosen["examples"]}
    for identity, method in itertools.product(by_id, ("a", "b", "bm25")):
        shares = []
        for values in (values for (name, _), values in scores.items() if name == method):
            own, others = values[identity], [value for other, value in values.items() if other != identity]
            shares.append(sum(1.0 if own > other else 0.5 if own == other else 0.0 for other in others) / 4)
        assert by_id[identity]["methods"][method]["standing"] == pytest.approx(sum(shares) / len(shares))
        place = ids.index(identity)
        assert by_id[identity]["query"] == f"甲{place}" and by_id[identity]["label"] == place % 2
    # p0: 0 against 1; p4: 0.875 against 0; p3: 0.875 against 0.625; p1: level; p2: 0.5 against 0.625.
    spreads = {name: example["spread"] for name, example in by_id.items()}
    assert list(spreads.items()) == [("p0", 1.0), ("p4", 0.875), ("p3", 0.25), ("p2", 0.125)]
    assert by_id["p4"]["methods"]["a"]["score"] == 4.5  # mean over seeds
    assert chosen["of"] == 5


def test_of_examples_that_share_a_text_one_is_kept_and_forty_in_all() -> None:
    up = {f"p{n}": float(n) for n in range(100)}
    scores = {("a", 1): up, ("b", 1): {name: -value for name, value in up.items()}}

    def chosen(cluster: str | None) -> list[dict]:
        return examples(nli(100), predictions(scores, dict.fromkeys(up, 1.0), cluster), ["a", "b"])["examples"]

    forty = chosen(None)
    assert len(forty) == disagreement.KEPT == 40
    # The ends disagree most; equal ones by id.
    assert [example["id"] for example in forty[:4]] == ["p0", "p99", "p1", "p98"]
    assert len(forty[0]["passage"]) == disagreement.CHARACTERS and forty[0]["passage"].endswith("…")
    assert [example["id"] for example in chosen("one")] == ["p0"]


def test_a_querys_standing_is_its_reciprocal_rank() -> None:
    docs = [f"d{n:02}" for n in range(15)]
    corpus = pd.DataFrame({"id": docs, "text": [f"文{n}" for n in range(15)]})
    asked = pd.DataFrame({"id": ["q0", "q1"], "text": ["问0", "问1"], "phenomenon": "all"})
    qrels = pd.DataFrame({"query_id": ["q0", "q0", "q1"], "doc_id": ["d03", "d07", "d00"], "relevance": [1, 2, 1]})
    task = Task(type="retrieval", corpus=corpus, queries=asked, qrels=qrels, **(ABOUT | {"group": "ir"}))
    right = set(zip(qrels["query_id"], qrels["doc_id"], strict=True))
    labels = {pair: float(pair in right) for pair in itertools.product(["q0", "q1"], docs)}
    # a: passages from the last to the first; b: all equal, so by id from the last; c: from the first, d00 not kept.
    a = {pair: float(docs.index(pair[1])) for pair in labels}
    c = {pair: -value for pair, value in a.items() if pair != ("q1", "d00")}
    scores = {("a", 1): a, ("a", 2): c, ("b", 1): dict.fromkeys(labels, 1.0), ("teacher", 1): c}
    frame = predictions(scores, labels)
    [q0] = examples(task, frame, ["a", "b"])["examples"]  # nobody finds q1's passage within ten: no disagreement
    # d07 comes 8th from the last, d03 4th from the first.
    assert q0["id"] == "q0" and q0["methods"]["a"] == {"standing": pytest.approx((1 / 8 + 1 / 4) / 2), "ranks": [8, 4]}
    assert q0["methods"]["b"]["ranks"] == [8] and q0["methods"]["teacher"]["ranks"] == [4]
    assert (q0["query"], q0["passage"], q0["right"]) == ("问0", "文7", 2)  # the most relevant
    assert q0["instead"] == [{"methods": ["a", "b"], "text": "文14"}, {"methods": ["teacher"], "text": "文0"}]
    assert disagreement.queries(frame).query("query_id == 'q1' and seed == 2")["rank"].isna().all()


def test_predictions_of_other_texts_are_refused() -> None:
    frame = predictions({("a", 1): {"p0": 1.0, "p9": 2.0}, ("b", 1): {"p0": 2.0, "p9": 1.0}}, {"p0": 0.0, "p9": 1.0})
    with pytest.raises(ArtifactError, match="task t: predictions of 'p9', which it does not have"):
        examples(nli(3), frame, ["a", "b"])
