"""Equal scores rank by one rule wherever something is ranked: against plain sorts, and against trec_eval itself."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytrec_eval
import tiny
import torch
from datasets import Dataset
from mteb.abstasks.task_metadata import TaskMetadata
from test_search import FORMATS

from d2llm.cli.student import as_json, as_trec
from d2llm.config.evaluation import Bm25Settings, TeacherCandidates
from d2llm.data.negatives.bm25 import Bm25
from d2llm.evaluation.adapter import SearchModel
from d2llm.evaluation.rows.bm25 import Bm25Reference
from d2llm.evaluation.rows.teacher import TeacherReference
from d2llm.models.student import Student
from d2llm.search import index as search
from d2llm.search.index import Index
from d2llm.search.ranking import best, by_id


def plain(scores: np.ndarray, ties: np.ndarray, depth: int) -> list[int]:
    """The rule by a full sort in a loop."""
    return sorted(range(len(scores)), key=lambda row: (-scores[row], ties[row]))[:depth]


@pytest.mark.parametrize("values", [1, 3, 10_000])
@pytest.mark.parametrize("depth", [1, 2, 7, 40, 60])
def test_the_best_are_those_of_a_full_sort(values: int, depth: int) -> None:
    rng = np.random.default_rng(depth)
    scores = rng.integers(values, size=(9, 40)).astype(np.float32)
    rows, ties = np.stack([rng.permutation(60)[:40] for _ in scores]), rng.permutation(60)
    top, chosen = best(torch.from_numpy(scores), torch.from_numpy(rows), torch.from_numpy(ties), depth)
    for line, places, own, got in zip(scores, rows, top.numpy(), chosen.numpy(), strict=True):
        expected = plain(line, ties[places], depth)
        assert got.tolist() == places[expected].tolist() and own.tolist() == line[expected].tolist()


def test_ids_descend_as_texts() -> None:
    assert by_id(["7", "10", "9", "é", "甲", "Z"]).tolist() == [4, 5, 3, 1, 0, 2]


def student(scorer: tuple[str, dict]) -> Student:
    torch.manual_seed(0)
    return Student(tiny.backbone("decoder"), ("mean", {}), scorer, FORMATS).eval()


@pytest.mark.parametrize("scorer", [("cosine", {}), ("iem", {"hidden": 96})])
@pytest.mark.parametrize("share", [None, 0.9])
def test_a_search_ranks_equal_passages_by_the_rule_at_every_depth(
    scorer: tuple[str, dict], share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of a text score alike to the last bit, although a matrix product may round them differently."""
    for name, value in (("PASSAGE_BLOCK", 64), ("FEW", 20), ("LEAST_BUDGET", 8)):
        monkeypatch.setattr(search, name, value)
    rng = np.random.default_rng(0)
    distinct = [" ".join(rng.choice(tiny.WORDS[:20], 5)) for _ in range(90)]
    passages = [distinct[place] for place in rng.integers(90, size=500)]
    ties = rng.permutation(500)
    index, queries = Index.build(student(scorer), passages), distinct[:3]
    for query, (rows, scores) in zip(queries, index.search(queries, 500, ties=ties), strict=True):
        by_text: dict[str, set[float]] = {}
        for row, score in zip(rows, scores, strict=True):
            by_text.setdefault(passages[row], set()).add(float(score))
        assert all(len(values) == 1 for values in by_text.values()), "copies of a text have one score"
        every = np.empty(500, dtype=np.float32)
        every[rows] = scores
        assert rows.tolist() == plain(every, ties, 500)
        assert index.search([query], 500)[0][0].tolist() == plain(every, np.arange(500), 500)
    deep = index.search(queries, 20, share, ties)
    for depth in (1, 2, 6, 19):
        for (rows, scores), (more, others) in zip(index.search(queries, depth, share, ties), deep, strict=True):
            assert rows.tolist() == more[:depth].tolist() and scores.tolist() == others[:depth].tolist()


def test_a_saved_index_knows_its_copies(tmp_path: Any) -> None:
    model, passages = student(("iem", {"hidden": 24})), ["甲 乙", "丙 丁", "甲 乙", "甲 乙"]
    index = Index.build(model, passages)
    assert len(index) == 4 and len(index.cache) == 2
    index.save(tmp_path)
    for one in (index, Index.load(tmp_path, model, mapped=False)):
        ((rows, scores),) = one.search(["甲 乙"], 4, ties=np.array([3, 2, 1, 0]))
        assert [row for row in rows if row != 1] == [3, 2, 0] and len(set(scores[rows != 1].tolist())) == 1


class Alike:
    """A teacher that scores by a text's first character alone, and adds rounding noise by place, as batches do."""

    def score(self, groups: list[tuple[str, list[str]]], mode: str) -> list[np.ndarray]:
        return [
            np.array([(float(text[0]) * (1 + place * 2**-23), 0.0) for place, text in enumerate(texts)], np.float32)
            for _, texts in groups
        ]


def test_references_keep_and_rank_equal_scores_by_the_rule() -> None:
    passages = ["1 苹果", "2 苹果", "2 苹果", "1 香蕉", "2 香蕉", "1 苹果"] * 4
    ties, settings = np.random.default_rng(1).permutation(24), Bm25Settings(tokens="characters")
    every = Bm25(passages, "characters").scores("苹果")
    ((rows, _),) = Bm25Reference(settings).search(["苹果"], passages, 9, ties)
    assert rows.tolist() == plain(every, ties, 9)

    def nearest(queries: Any, texts: Any, depth: int, ties: np.ndarray) -> list[np.ndarray]:
        return [np.argsort(ties)[:depth] for _ in queries]

    reference = TeacherReference(Alike(), TeacherCandidates(bm25=7, dense=5), settings, nearest)
    ((rows, scores),) = reference.search(["苹果"], passages, 24, ties)
    candidates = {*plain(every, ties, 7), *np.argsort(ties)[:5].tolist()}
    value = dict(zip(rows, scores, strict=True))
    assert rows.tolist() == sorted(candidates, key=lambda row: (-value[row], ties[row]))
    assert len(set(scores.tolist())) <= len({passages[row] for row in candidates})


def test_what_is_kept_for_mteb_is_what_trec_eval_ranks_first() -> None:
    """Ties at the last place that is kept: no document stays that trec_eval would rank below one that goes."""
    rng = np.random.default_rng(2)
    ids = [str(number) for number in rng.permutation(60)]
    levels = rng.integers(4, size=60).astype(np.float32)

    class Levels:
        kind, candidates, trained = "levels", "all", True

        def search(self, queries: Any, passages: Any, depth: int, ties: np.ndarray) -> list[Any]:
            rows = np.array(plain(levels, ties, depth))
            return [(rows, levels[rows]) for _ in queries]

    model, about = SearchModel("toy", Levels()), TaskMetadata.model_construct(type="Retrieval", name="t")
    model.index(Dataset.from_dict({"id": ids, "text": ids}), task_metadata=about)
    kept = model.search({"id": ["q"], "text": ["q"]}, task_metadata=about, top_k=20)
    everything = {"q": {doc: float(level) for doc, level in zip(ids, levels, strict=True)}}
    # The reciprocal rank of each document, were it the only relevant one, is its place.
    places = {}
    for doc in ids:
        run = pytrec_eval.RelevanceEvaluator({"q": {doc: 1}}, {"recip_rank"})
        places[doc] = run.evaluate(everything)["q"]["recip_rank"]
    assert set(kept["q"]) == set(sorted(ids, key=places.__getitem__, reverse=True)[:20])


def test_scores_of_a_trec_run_have_the_ties_of_the_search() -> None:
    scores = np.array([1.0000001, 1.0, 1.0, -3e-7], dtype=np.float32)
    hits = pd.DataFrame({"id": list("abcd"), "text": "t"}).assign(rank=range(1, 5), score=scores)
    query = SimpleNamespace(id="q", text="t")
    assert np.float32([line.split()[4] for line in as_trec(query, hits)]).tolist() == scores.tolist()
    assert np.float32([json.loads(line)["score"] for line in as_json(query, hits)]).tolist() == scores.tolist()
