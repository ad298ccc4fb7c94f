"""The index finds what a plain loop over all pairs finds, however it is cut into blocks, and survives being saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from d2llm import search
from d2llm.errors import ArtifactError
from d2llm.models.student import Student, TextFormat
from d2llm.search import Index

SCORERS = [("cosine", {}), ("iem", {"hidden": 24}), ("iem", {"hidden": 24, "skip": "cosine"})]
FORMATS = {
    (role, mode): TextFormat(prefix) for role, prefix in (("query", (5,)), ("passage", (6,))) for mode in ("symmetric", "asymmetric")
}  # fmt: skip


def student(scorer: tuple[str, dict]) -> Student:
    return Student(tiny.backbone("decoder"), ("mean", {}), scorer, FORMATS).eval()


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(tiny.WORDS[:20], rng.integers(2, 9))) for _ in range(count)]


def by_hand(model: Student, query: str, passages: list[str], mode: str) -> np.ndarray:
    """Scores of one query, pair by pair, from the definition of the scorer."""
    with torch.no_grad():
        q = model.embed([query], "query", mode)[0]
        scores = []
        for p in model.embed(passages, "passage", mode):
            cosine = (q @ p) / (q.norm() * p.norm())
            if model.scorer.name == "cosine":
                scores.append(cosine)
                continue
            iem = model.scorer
            x = torch.relu(iem.first(torch.cat([q, p])))
            logit = iem.head(torch.relu(iem.branches[mode](x)))[0]
            scores.append(logit if iem.skip_weight is None else logit + iem.skip_weight * cosine)
        return torch.stack(scores).numpy()


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("depth", [1, 7, 1000])
@pytest.mark.parametrize("mode", ["asymmetric", "symmetric"])
def test_search_is_a_loop_over_all_pairs(monkeypatch, scorer, depth, mode):
    monkeypatch.setattr(search, "QUERY_BLOCK", 2)
    monkeypatch.setattr(search, "PASSAGE_BLOCK", 4)  # fewer than passages, and they do not divide evenly
    model, queries, passages = student(scorer), texts(5, 1), texts(23, 2)
    assert len(set(passages)) == 23
    index = Index.build(model, passages, mode=mode)
    assert len(index) == 23
    for query, (rows, scores) in zip(queries, index.search(queries, depth), strict=True):
        expected = by_hand(model, query, passages, mode)
        assert expected.std() > 1e-3
        assert rows.tolist() == np.argsort(-expected).tolist()[:depth]
        np.testing.assert_allclose(scores, np.sort(expected)[::-1][:depth], rtol=1e-4, atol=1e-5)


def test_blocks_change_no_score(monkeypatch):
    model, queries, passages = student(SCORERS[1]), texts(5, 1), texts(40, 2)
    whole = Index.build(model, passages).search(queries, 40)
    monkeypatch.setattr(search, "PASSAGE_BLOCK", 7)
    for (rows, scores), (other, again) in zip(whole, Index.build(model, passages).search(queries, 40), strict=True):
        np.testing.assert_allclose(scores, again, rtol=1e-5, atol=1e-6)
        assert rows.tolist() == other.tolist()


@pytest.mark.parametrize("scorer", SCORERS)
def test_equal_passages_score_equally_and_all_are_found(monkeypatch, scorer):
    monkeypatch.setattr(search, "PASSAGE_BLOCK", 3)
    model = student(scorer)
    one, two = texts(2, 3)
    index = Index.build(model, [one, two] * 4)
    for rows, scores in index.search(texts(3, 4), 8):
        assert sorted(rows.tolist()) == list(range(8))
        assert sorted({row % 2 for row in rows[:4]}) in ([0], [1])  # the better text's four copies first
        assert np.ptp(scores[:4]) < 1e-6 and np.ptp(scores[4:]) < 1e-6 and scores[0] > scores[4]


def test_what_is_not_finite_comes_first():
    model = student(SCORERS[0])
    vectors = model.encode(texts(5, 5), "passage", "asymmetric")
    vectors[3] = np.nan
    rows, scores = Index.of_vectors(model, vectors, range(5)).search(texts(1, 6), 2)[0]
    assert rows[0] == 3 and scores[0] == np.inf


def test_an_index_knows_its_size():
    """D2LLM stores Wp·p + b1, as wide as its hidden layer; a cosine the embedding; the cosine skip both."""
    width = tiny.backbone("decoder").hidden_size
    for scorer, numbers in zip(SCORERS, (width, 24, 24 + width), strict=True):
        model = student(scorer)
        index = Index.build(model, texts(3, 7))
        assert (index.bytes_per_passage, index.vector_bytes) == (4 * numbers, 4 * width)
    with torch.no_grad():
        p = model.embed(texts(3, 7), "passage", "asymmetric")
        stored = p @ model.scorer.first.weight[:, width:].T + model.scorer.first.bias
    np.testing.assert_allclose(index.cache[:, :24], stored, rtol=1e-4, atol=1e-5)


def test_vectors_can_stand_for_several_passages():
    model, distinct = student(SCORERS[1]), texts(4, 8)
    rows = [0, 1, 2, 3, 0, 1, 2]
    repeated = Index.of_vectors(model, model.encode(distinct, "passage", "asymmetric"), rows)
    assert torch.equal(repeated.cache, Index.build(model, [distinct[row] for row in rows]).cache)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_saved_index_finds_the_same(tmp_path: Path, scorer):
    model, queries = student(scorer), texts(4, 1)
    index = Index.build(model, texts(20, 2), mode="symmetric")
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index", model)
    assert (again.mode, again.vector_bytes) == (index.mode, index.vector_bytes)
    for (rows, scores), (other, loaded) in zip(index.search(queries, 9), again.search(queries, 9), strict=True):
        assert rows.tolist() == other.tolist() and scores.tolist() == loaded.tolist()


def test_another_students_or_a_damaged_index_is_refused(tmp_path: Path):
    model = student(SCORERS[1])
    Index.build(model, texts(20, 2)).save(tmp_path)
    with torch.no_grad():
        next(model.backbone.parameters()).view(-1)[0] += 1
    with pytest.raises(ArtifactError, match="index of another student; build it again"):
        Index.load(tmp_path, model)
    (tmp_path / "index.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="not a saved index"):
        Index.load(tmp_path, model)
    (tmp_path / "index.json").unlink()
    with pytest.raises(ArtifactError, match="index.json: missing"):
        Index.load(tmp_path, model)
