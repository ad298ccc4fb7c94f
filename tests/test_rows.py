"""The reference rows: BM25 against its formula written out, the teacher's grouping, candidates and depth."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from task_folders import retrieval_task, sts_task
from test_search import plain
from tiny_run import tiny_config

from d2llm.config.evaluation import Bm25Settings, EvaluationSettings, TeacherCandidates
from d2llm.config.schema import Run
from d2llm.data.negatives.bm25 import Bm25, tokens
from d2llm.evaluation import tasks
from d2llm.evaluation.rows.bm25 import Bm25Reference
from d2llm.evaluation.rows.teacher import TeacherReference
from d2llm.run.paths import Paths
from d2llm.run.stages import STAGES

DOCUMENTS = [
    "张伟昨天在公园买了苹果",
    "李娜今天在学校买了书",
    "张伟没有在公园买苹果",
    "天气很好",
    "苹果苹果苹果很好吃",
    "!?",
]


def formula(query: list[str], documents: list[list[str]], k1: float, b: float) -> np.ndarray:
    """Lucene's BM25, written out."""
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        count, total = Counter(document), 0.0
        for word in query:
            having = sum(word in other for other in documents)
            if count[word]:
                idf = log(1 + (len(documents) - having + 0.5) / (having + 0.5))
                total += idf * count[word] / (count[word] + k1 * (1 - b + b * len(document) / mean))
        scores.append(total)
    return np.array(scores)


@pytest.mark.parametrize("kind", ["words", "characters"])
@pytest.mark.parametrize("query", ["张伟在公园买了苹果", "苹果，苹果", "没见过", ""])
def test_bm25_is_its_formula(kind, query):
    index = Bm25(DOCUMENTS, kind, k1=1.2, b=0.6)
    expected = formula(tokens(query, kind), [tokens(text, kind) for text in DOCUMENTS], 1.2, 0.6)
    np.testing.assert_allclose(index.scores(query), expected, rtol=1e-5, atol=1e-7)
    best, scores = index.top(query, 3)
    assert best.tolist() == np.argsort(-index.scores(query), kind="stable")[:3].tolist()
    np.testing.assert_array_equal(scores, index.scores(query)[best])
    np.testing.assert_array_equal(Bm25(["!", "。"], kind).scores(query), [0, 0])  # documents without words


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_an_untuned_base_model_is_the_cosine_of_its_mean_states(kind, tmp_path):
    name = f"untuned_{kind}"
    config = tiny_config(tmp_path, references=["bm25", name])
    place = Paths.of(config).base(kind)
    model = tiny.backbone(kind, place).model.eval()
    texts, around = ("甲吃书", "乙看花"), ((2,), (3,)) if kind == "encoder" else ((), ())
    with torch.no_grad():
        rows = [torch.tensor([[*around[0], *tiny.ids(text), *around[1]]]) for text in texts]
        first, second = (model(input_ids=row).last_hidden_state[0].mean(0) for row in rows)
    scorer = import_module(f"d2llm.evaluation.rows.{name}").load(config, Run(name, "base", 1))
    expected = torch.cosine_similarity(first, second, dim=0).item()
    assert scorer.score_pairs([texts], "symmetric") == pytest.approx([expected], rel=1e-4)
    assert name in config.untrained() and kind in config.bases()
    assert STAGES["evaluate"].reads(config, Paths.of(config), name, "base", 1)[1:] == [place]


def python(code: str, **environment: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_words_are_those_of_the_installed_dictionary_without_punctuation(tmp_path: Path) -> None:
    """jieba takes whatever lies in its place for a cache, from any version and anybody, as its dictionary."""
    assert tokens("我爱北京天安门，OK！", "words") == ["我", "爱", "北京", "天安门", "ok"]
    assert tokens("北京 A1。", "characters") == ["北", "京", "a", "1"]
    words = {"我爱": 10**9, "我": 0, "北": 0, "北京天安门": 10**9, "北京天安": 0}
    stale = f"import jieba; jieba.dt.gen_pfdict = lambda file: ({words!r}, 10**9); jieba.initialize()"
    python(stale, TMPDIR=str(tmp_path))
    assert (tmp_path / "jieba.cache").is_file()
    code = "from d2llm.data.negatives.bm25 import tokens; print(*tokens('我爱北京天安门', 'words'))"
    shown = python(code, TMPDIR=str(tmp_path), XDG_CACHE_HOME="/proc/none")
    assert shown.split() == ["我", "爱", "北京", "天安门"] and not list(tmp_path.glob("d2llm-*"))


@pytest.mark.slow
def test_bm25_is_the_same_in_another_process():
    """Python's string hashes differ between processes; scores may not."""
    scores = f"Bm25({DOCUMENTS!r}, 'characters').scores('张伟在公园买了苹果很好')"
    code = f"from d2llm.data.negatives.bm25 import Bm25; print({scores}.tobytes().hex())"
    assert python(code, PYTHONHASHSEED="1") == python(code, PYTHONHASHSEED="2")


def test_bm25_reference_takes_the_second_text_as_the_document():
    pairs = [(DOCUMENTS[a], DOCUMENTS[b]) for a, b in ((0, 2), (4, 1), (0, 1))] + [("书", DOCUMENTS[1])]
    split = [tokens(text, "words") for text in (DOCUMENTS[2], DOCUMENTS[1])]  # distinct second texts
    expected = [formula(tokens(a, "words"), split, 1.5, 0.75)[int(b == DOCUMENTS[1])] for a, b in pairs]
    scores = Bm25Reference().score_pairs(pairs, "symmetric")
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)
    assert not np.allclose(scores, Bm25Reference().score_pairs([(b, a) for a, b in pairs], "symmetric"))


class FakeTeacher:
    """Logits by a rule; records what it read."""

    def __init__(self, rule: Callable[[str, str, str], tuple[float, float]]) -> None:
        self.rule, self.read = rule, []

    def score(self, groups, mode):
        self.read += [(query, list(texts), mode) for query, texts in groups]
        return [np.array([self.rule(q, t, mode) for t in texts], dtype=np.float32) for q, texts in groups]


def numbers(query: str, text: str, mode: str) -> tuple[float, float]:
    return float(len(query) + int(text)), 0.5 * len(query) if mode == "symmetric" else -1.0


def test_teacher_scores_pairs_as_yes_minus_no_and_reads_a_first_text_once():
    teacher = FakeTeacher(numbers)
    pairs = [("ab", "3"), ("c", "1"), ("ab", "2"), ("c", "9")]
    reference = TeacherReference(teacher, TeacherCandidates(), Bm25Settings(), lambda *_: [])
    yes_no = [numbers(q, t, "symmetric") for q, t in pairs]
    np.testing.assert_allclose(reference.score_pairs(pairs, "symmetric"), [yes - no for yes, no in yes_no])
    assert teacher.read == [("ab", ["3", "2"], "symmetric"), ("c", ["1", "9"], "symmetric")]


def test_teacher_reranks_the_union_of_both_candidate_lists_and_nothing_else():
    teacher, asked = FakeTeacher(numbers), []
    passages, queries = [str(number) for number in range(10, 60)], ["3", "99"]

    def dense(queries, texts, depth, ties):
        asked.append((list(queries), len(texts), depth))
        return [np.arange(40, 40 + depth + 3) for _ in queries]  # more than asked for: cut

    depths = TeacherCandidates(bm25=6, dense=4)
    reference = TeacherReference(teacher, depths, Bm25Settings(tokens="characters"), dense)
    hits = reference.search(queries, passages, 100, np.arange(50))
    assert asked == [(queries, 50, 4)] and reference.candidates == "BM25 6 + dense 4"
    for query, (index, scores) in zip(queries, hits, strict=True):
        lexical = Bm25(passages, "characters").top(query, 6)[0]
        assert set(index.tolist()) == set(lexical.tolist()) | {40, 41, 42, 43}
        assert index.tolist() == sorted(index.tolist(), reverse=True)  # the teacher's rule: the larger number is better
        np.testing.assert_allclose(scores, [len(query) + int(passages[i]) + 1.0 for i in index])
    assert all(len(texts) == len(set(texts)) and mode == "asymmetric" for _, texts, mode in teacher.read)
    assert [len(index) for index, _ in reference.search(queries, passages, 5, np.arange(50))] == [5, 5]


def test_references_keep_and_rank_equal_scores_by_the_rule() -> None:
    passages = ["1 苹果", "2 苹果", "2 苹果", "1 香蕉", "2 香蕉", "1 苹果"] * 4
    ties, settings = np.random.default_rng(1).permutation(24), Bm25Settings(tokens="characters")
    every = Bm25(passages, "characters").scores("苹果")
    ((rows, _),) = Bm25Reference(settings).search(["苹果"], passages, 9, ties)
    assert rows.tolist() == plain(every, ties, 9)

    class Alike:
        """Scores by a text's first character alone, and adds rounding noise by place, as batches do."""

        def score(self, groups, mode):
            assert all(len(own) == len(set(own)) for _, own in groups)  # each text is read once
            noise = 1 + np.arange(99) * 2**-23
            return [np.array([(float(t[0]) * n, 0) for t, n in zip(ts, noise, strict=False)]) for _, ts in groups]

    def nearest(queries: list[str], texts: list[str], depth: int, ties: np.ndarray) -> list[np.ndarray]:
        return [np.argsort(ties)[:depth] for _ in queries]

    reference = TeacherReference(Alike(), TeacherCandidates(bm25=7, dense=5), settings, nearest)
    ((rows, scores),) = reference.search(["苹果"], passages, 24, ties)
    candidates = {*plain(every, ties, 7), *np.argsort(ties)[:5].tolist()}
    value = dict(zip(rows, scores, strict=True))
    assert rows.tolist() == sorted(candidates, key=lambda row: (-value[row], ties[row]))
    assert len(set(scores.tolist())) <= len({passages[row] for row in candidates})


def test_reference_rows_go_through_the_same_adapter(tmp_path, monkeypatch):
    """The teacher gets every score row a student gets; STS in both orders."""
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
    from d2llm.evaluation.evaluate import evaluate

    def rule(query: str, text: str, mode: str) -> tuple[float, float]:
        return float(sum(map(ord, query)) % 97 + 2 * (sum(map(ord, text)) % 89)), 0.0

    folders = [sts_task(tmp_path), retrieval_task(tmp_path)]
    read = [tasks.read(folder, "test") for folder in folders]
    rank = lambda queries, passages, depth, ties: [np.arange(depth)] * len(queries)  # noqa: E731
    teacher = TeacherReference(FakeTeacher(rule), TeacherCandidates(), Bm25Settings(tokens="characters"), rank)
    scores, predictions = evaluate(teacher, read, "teacher/base/seed1", EvaluationSettings())
    frame = pd.read_parquet(folders[0] / "test.parquet")
    both = [rule(a, b, "")[0] + rule(b, a, "")[0] for a, b in zip(frame["query"], frame["passage"], strict=True)]
    np.testing.assert_allclose(predictions.score[predictions.task == "sts_x"], np.array(both) / 2)
    candidates = scores.groupby("task")["candidates"].unique().map(list).to_dict()
    assert candidates == {"ir_x": ["BM25 30 + dense 30"], "sts_x": [""]} and set(scores.scorer) == {"cross_encoder"}
