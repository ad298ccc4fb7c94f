"""Groups of examples of one's own sets: by columns, overlap, length and negation; their scores; the direction test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from own_files import jsonl, rows, search_files
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from task_folders import FakeStudent, pair_task

from d2llm.config.data import FilesSettings
from d2llm.config.evaluation import EvaluationSettings
from d2llm.data import build
from d2llm.data.card import summarise
from d2llm.data.files import examples, groups
from d2llm.evaluation import evaluate as stage
from d2llm.evaluation import metrics, tasks
from d2llm.evaluation.rows.student import StudentScorer
from d2llm.run.errors import DataError

PAIRS = rows(
    "s1 s2 label genre",
    ("他没有去学校", "他去学校", 1, "news"),  # 5 + 3 bigrams, 2 in both (去学, 学校): 2/6
    ("天气非常好", "天气好", 1, "news"),  # 4 and 2: one in both (天气): 1/5; 非常 denies nothing
    ("他不在家", "他没在家", 0, "lit"),  # 3 and 3: 在家: 1/5; both deny
    ("猫", "狗跑了很远很远很远", 0, None),  # none: 0
)


def read(folder: Path, **changes: object) -> tuple[dict, dict]:
    """(the test split of a set of these pairs with its groups, the bounds of thirds)."""
    file = jsonl(folder / "pairs.jsonl", PAIRS)
    search = search_files(folder, {"q": "天气好"}, {"a": "不好", "b": "天气真好吗", "c": "天气好"},
                          [("q", "a", 0), ("q", "b", 2), ("q", "c", 1)])  # fmt: skip
    jsonl(folder / "queries.jsonl", [{"id": "q", "text": "天气好", "kind": 7}])
    entail = {
        "type": "pair_classification",
        "group": "nli",
        "language": "cmn-Hans",
        "test": file,
        "phenomena": ["genre"],
        "query": "s1",
        "passage": "s2",
    }
    find = {"type": "retrieval", "group": "ir", "language": "cmn-Hans", "test": search, "phenomena": ["kind"]}
    settings = FilesSettings(tasks={"e": entail | changes, "f": find})
    sets, _, _ = build.files_tasks(settings)
    return examples.with_groups(sets, settings.tasks, settings.breakdowns, settings.negation)


def test_groups_of_pairs_and_queries_by_hand(tmp_path: Path) -> None:
    sets, bounds = read(tmp_path)
    pairs, queries = sets["test"]["e"]["pairs"], sets["test"]["f"]["queries"]
    assert pairs["by_genre"].tolist() == ["news", "news", "lit", ""]
    assert pairs["by_overlap"].tolist() == ["high", "low", "low", "low"] and bounds["e/test"]["overlap"] == [0.2, 0.2]
    assert pairs["by_length"].tolist() == ["middle", "short", "short", "middle"] and bounds["e/test"]["length"] == [
        8.0,
        10.0,
    ]
    assert pairs["by_negation"].tolist() == ["in one text", *["in both or neither"] * 3]
    # Of the most relevant passage's bigrams the query has one of its two.
    assert queries["by_kind"].tolist() == ["7"] and bounds["f/test"]["overlap"] == [0.5, 0.5]
    assert (
        "by_negation" not in queries
        and "by_negation" not in read(tmp_path, language="fra-Latn")[0]["test"]["e"]["pairs"]
    )
    card = summarise(*empty(), sets, {}, {"removed": 0, "tasks": {}}, bounds=bounds)["evaluation"][0]["groups"]
    assert card["genre"] == {"n": {"lit": 1, "news": 2}} and card["length"]["thirds_end_at"] == [8.0, 10.0]
    with pytest.raises(DataError, match="no column 'style'; found s1"):
        read(tmp_path, phenomena=["style"])


def empty() -> tuple[pd.DataFrame, pd.DataFrame]:
    return pd.DataFrame({"dataset": []}), pd.DataFrame({"dataset": []})


def test_english_words_of_denial_stand_alone() -> None:
    denies = groups.denial("eng-Latn", None)
    assert [denies(text) for text in ("He does not go", "It isn't", "A knot, a note", "Nothing")] == [
        True,
        True,
        False,
        True,
    ]
    assert groups.denial("eng-Latn", ["sans"])("Sans sucre") and groups.denial("fra-Latn", None) is None


def test_a_group_is_scored_by_itself() -> None:
    rng = np.random.default_rng(0)
    label, score, graded = rng.integers(0, 2, 60), rng.normal(size=60), rng.normal(size=60)
    group = np.array(["a", "b", ""])[rng.integers(0, 3, 60)]
    label[group == "b"] = 1  # no wrong pair: nothing to tell apart
    found = {row[:2]: row[2:] for row in metrics.grouped_breakdown(score, label, group)}
    assert set(found) == {("a", "ap"), ("a", "auc")}
    assert found["a", "auc"] == (
        pytest.approx(roc_auc_score(label[group == "a"], score[group == "a"])),
        sum(group == "a"),
    )
    found = {row[:2]: row[2] for row in metrics.grouped_breakdown(score, graded, group)}
    assert found["b", "spearman"] == pytest.approx(spearmanr(score[group == "b"], graded[group == "b"])[0])


class Lengths(StudentScorer):
    """Scores by the two texts' lengths."""

    def __init__(self, weight: float) -> None:
        super().__init__(FakeStudent())
        self.weight = weight

    def score_pairs(self, pairs: Sequence[tuple[str, str]], mode: str) -> np.ndarray:
        return np.array([len(a) + len(b) + self.weight * len(a) for a, b in pairs], dtype=np.float32)


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize("count", [5, 1000])
def test_direction_is_the_share_of_right_pairs_above_their_reverse(weight: float, count: int, tmp_path: Path) -> None:
    folder = pair_task(tmp_path)
    frame = pd.read_parquet(folder / "test.parquet").assign(by_kind="x")
    frame["passage"] = [text * (1 + n % 3) for n, text in enumerate(frame["passage"])]
    frame.to_parquet(folder / "test.parquet")
    settings = EvaluationSettings(direction=count)
    scores, _ = stage.evaluate(Lengths(weight), [tasks.read(folder, "test")], "x", settings)
    [row] = scores[scores["phenomenon"] == "direction"].to_dict("records")
    right = frame[frame["label"] == 1]
    longer = np.sign(right["query"].str.len() - right["passage"].str.len()) if weight else 0 * right["label"]
    assert row["metric"] == "forward" and row["n"] == min(count, len(right))
    if count > len(right):
        assert row["value"] == pytest.approx((longer + 1).mean() / 2)
    elif not weight:
        assert row["value"] == 0.5
    assert set(scores.loc[scores["phenomenon"] == "kind: x", "metric"]) == {"ap", "auc"}
    assert "direction" not in set(
        stage.evaluate(Lengths(1.0), [tasks.read(folder, "test")], "x", EvaluationSettings())[0]["phenomenon"]
    )
