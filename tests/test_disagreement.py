"""The examples on which methods disagree: chosen by the stated rule, with the right texts, and bounded."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from d2llm.evaluation.tasks import Task
from d2llm.reporting.page import disagreement
from d2llm.reporting.page.disagreement import examples
from d2llm.run.errors import ArtifactError

ABOUT = {"title": "T", "group": "nli", "description": "", "split": "test", "revision": ""}


def nli(count: int) -> Task:
    frame = pd.DataFrame(
        {"id": [f"p{n}" for n in range(count)], "sentence1": [f"甲{n}" for n in range(count)], "sentence2": "乙" * 400, "phenomenon": "role swap"}
    )  # fmt: skip
    return Task(name="t", type="pair_classification", pairs=frame.assign(label=[n % 2 for n in range(count)]), **ABOUT)


def predictions(scores: dict[tuple[str, int], dict], labels: dict, cluster=None) -> pd.DataFrame:
    """Rows of {(method, seed): {example or (query, passage): score}}."""
    rows = []
    for (method, seed), values in scores.items():
        for key, score in values.items():
            query, doc = key if isinstance(key, tuple) else (key, "")
            rows.append({"method": method, "seed": seed, "query_id": query, "doc_id": doc, "score": score, "label": labels[key], "phenomenon": "role swap", "cluster": (cluster or {}).get(query, query)})  # fmt: skip
    return pd.DataFrame(rows)


def test_a_pairs_standing_is_the_share_of_others_scored_lower() -> None:
    ids = [f"p{n}" for n in range(5)]
    scores = {
        ("a", 1): dict(zip(ids, [1.0, 2.0, 3.0, 4.0, 5.0], strict=True)),
        ("a", 2): dict(zip(ids, [1.0, 2.0, 3.0, 5.0, 4.0], strict=True)),
        ("b", 1): dict(zip(ids, [900.0, 200.0, 300.0, 300.0, -7.0], strict=True)),
        ("bm25", 1): dict(zip(ids, [0.0, 0.0, 0.0, 0.0, 1.0], strict=True)),
    }
    found = examples(nli(5), predictions(scores, dict.fromkeys(ids, 0.0)), ["a", "b"])
    by_id = {example["id"]: example for example in found["examples"]}
    for place, identity in enumerate(ids):
        for method in ("a", "b", "bm25"):
            shares = []
            for (name, _), values in scores.items():
                if name == method:
                    others = [value for other, value in values.items() if other != identity]
                    own = values[identity]
                    shares.append(sum(1.0 if own > other else 0.5 if own == other else 0.0 for other in others) / 4)
            if identity in by_id:
                assert by_id[identity]["methods"][method]["standing"] == pytest.approx(sum(shares) / len(shares))
        if identity in by_id:
            assert by_id[identity]["query"] == f"甲{place}" and by_id[identity]["label"] == place % 2
    # p0: 0 against 1; p4: 0.875 against 0; p3: 0.875 against 0.625; p1 and p2: level, p1 0.25 and 0.25, p2 0.5 against 0.625.
    assert [(example["id"], example["spread"]) for example in found["examples"]] == [
        ("p0", 1.0), ("p4", 0.875), ("p3", 0.25), ("p2", 0.125),
    ]  # fmt: skip
    assert by_id["p4"]["methods"]["a"]["score"] == 4.5  # mean over seeds
    assert found["of"] == 5


def test_of_examples_that_share_a_text_one_is_kept_and_forty_in_all() -> None:
    count = 100
    ids = [f"p{n}" for n in range(count)]
    up = dict(zip(ids, map(float, range(count)), strict=True))
    down = {name: -value for name, value in up.items()}
    frame = predictions({("a", 1): up, ("b", 1): down}, dict.fromkeys(ids, 1.0))
    found = examples(nli(count), frame, ["a", "b"])["examples"]
    assert len(found) == disagreement.KEPT == 40
    # The ends disagree most; equal ones by id.
    assert [example["id"] for example in found[:4]] == ["p0", "p99", "p1", "p98"]
    assert len(found[0]["passage"]) == disagreement.CHARACTERS and found[0]["passage"].endswith("…")
    shared = predictions({("a", 1): up, ("b", 1): down}, dict.fromkeys(ids, 1.0), dict.fromkeys(ids, "one"))
    assert [example["id"] for example in examples(nli(count), shared, ["a", "b"])["examples"]] == ["p0"]


def retrieval() -> Task:
    corpus = pd.DataFrame({"id": [f"d{n:02}" for n in range(15)], "text": [f"文{n}" for n in range(15)]})
    asked = pd.DataFrame({"id": ["q0", "q1"], "text": ["问0", "问1"], "phenomenon": "all"})
    qrels = pd.DataFrame({"query_id": ["q0", "q0", "q1"], "doc_id": ["d03", "d07", "d00"], "relevance": [1, 2, 1]})
    return Task(name="t", type="retrieval", corpus=corpus, queries=asked, qrels=qrels, **(ABOUT | {"group": "ir"}))


def test_a_querys_standing_is_its_reciprocal_rank() -> None:
    task = retrieval()
    docs = task.corpus["id"].tolist()
    right = {("q0", "d03"), ("q0", "d07"), ("q1", "d00")}
    labels = {pair: float(pair in right) for pair in itertools.product(["q0", "q1"], docs)}
    # a: passages from the last to the first; b: all equal, so by id from the last; c: from the first, d00 not kept.
    a = {(q, d): float(n) for q in ("q0", "q1") for n, d in enumerate(docs)}
    b = {(q, d): 1.0 for q in ("q0", "q1") for d in docs}
    c = {(q, d): -float(n) for q in ("q0", "q1") for n, d in enumerate(docs) if (q, d) != ("q1", "d00")}
    scores = {("a", 1): a, ("a", 2): c, ("b", 1): b, ("teacher", 1): c}
    found = examples(task, predictions(scores, labels), ["a", "b"])["examples"]
    assert [example["id"] for example in found] == ["q0"]  # nobody finds q1's passage within ten: no disagreement
    q0 = found[0]
    # d07 comes 8th from the last, d03 4th from the first.
    assert q0["methods"]["a"] == {"standing": pytest.approx((1 / 8 + 1 / 4) / 2), "ranks": [8, 4]}
    assert q0["methods"]["b"]["ranks"] == [8] and q0["methods"]["teacher"]["ranks"] == [4]
    assert (q0["query"], q0["passage"], q0["right"]) == ("问0", "文7", 2)  # the most relevant
    assert q0["instead"] == [{"methods": ["a", "b"], "text": "文14"}, {"methods": ["teacher"], "text": "文0"}]
    everywhere = disagreement.queries(predictions(scores, labels))
    assert everywhere[(everywhere["query_id"] == "q1") & (everywhere["seed"] == 2)]["rank"].isna().all()


def test_predictions_of_other_texts_are_refused() -> None:
    frame = predictions({("a", 1): {"p0": 1.0, "p9": 2.0}, ("b", 1): {"p0": 2.0, "p9": 1.0}}, {"p0": 0.0, "p9": 1.0})
    with pytest.raises(ArtifactError, match="task t: predictions of 'p9', which it does not have"):
        examples(nli(3), frame, ["a", "b"])


@pytest.mark.slow
def test_means_of_standings_are_the_metric(tiny_scores) -> None:
    """Over all queries of a real evaluation, mteb's MRR@10 comes out."""
    from d2llm.evaluation.evaluate import measure

    scores, found = measure(tiny_scores, "bm25", "base", 1, "test")
    for task, own in found[found["task"].isin(scores.loc[scores["task_type"] == "retrieval", "task"])].groupby("task"):
        whole = scores[(scores["task"] == task) & (scores["metric"] == "mrr_at_10") & (scores["phenomenon"] == "all")]
        assert disagreement.queries(own)["standing"].mean() == pytest.approx(whole["value"].item(), abs=1e-5)
