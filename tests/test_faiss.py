"""Candidates by faiss find what the whole index finds, from memory, from a file and from shards; an index is written as
passages come."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_search import COSINE, PLAIN_IEM, SKIP, TOKENS, Vectors, clustered, equal, iem, recall, student, texts

from d2llm.config.load import load
from d2llm.models.scorers.cosine import Cosine
from d2llm.models.scorers.dot import Dot
from d2llm.run import jobs
from d2llm.run.errors import ArtifactError, ConfigError, DataError
from d2llm.run.paths import Paths
from d2llm.run.stages import judging_queries
from d2llm.search import corpus
from d2llm.search import index as search
from d2llm.search.candidates import BUDGETS
from d2llm.search.index import Index
from d2llm.search.ranking import by_id

ROOT = Path(__file__).resolve().parent.parent

IEMS = [{"init": "matcher", "activation": "squared_relu"}, {"init": "matcher"}, {}, {"skip": "cosine"}]


def listed(scorer: torch.nn.Module, vectors: np.ndarray) -> Index:
    """An index with lists over vectors that stand for texts, judged by some of them."""
    model = Vectors(scorer)
    model.encode = lambda rows, *_: vectors[np.array(rows, dtype=int)]
    index = Index.of_vectors(model, vectors, range(len(vectors)), precision="float16")
    index.add_lists(list(range(0, len(vectors), len(vectors) // 32)))
    return index


@pytest.mark.parametrize("scorer", [*(iem(**options) for options in IEMS), Cosine(), Dot()], ids=lambda s: s.name)
def test_lists_find_what_all_scores_find(scorer: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    index = listed(scorer, clustered(20_000, 32, 1))
    queries, scored = clustered(20, 32, 2), []
    exact = index.search_vectors(queries, 10, exact=True)
    assert index.lists is not None and index.lists.recall >= 0.99
    whole = scorer.matrix_cached
    monkeypatch.setattr(scorer, "matrix_cached", lambda q, p, m: scored.append(len(q) * len(p)) or whole(q, p, m))
    hits = index.search_vectors(queries, 10)
    assert recall(exact, hits) >= 0.97 and sum(scored) <= 20 * index.lists.budget
    rows = whole(scorer.query_cache(torch.from_numpy(queries)), index.rows(slice(0, 20_000)), "asymmetric").detach()
    for row, (found, scores) in zip(rows.numpy(), hits, strict=True):
        np.testing.assert_allclose(scores, row[found], rtol=1e-4, atol=1e-4)  # what is found has its exact score
        assert len(set(found.tolist())) == 10 and (np.diff(scores) <= 0).all()
    every, index.lists.budget = len(index.lists.sizes), BUDGETS[-1]
    assert recall(exact, index.search_vectors(queries, 10, nprobe=every)) >= 0.99
    assert len(index.search_vectors(queries[:1], 700)[0][0]) == 700  # more than the lists it would look into hold
    alone = [index.search_vectors(queries[i : i + 1], 200, nprobe=1)[0] for i in range(20)]
    for (rows, _), (same, _) in zip(index.search_vectors(queries, 200, nprobe=1), alone, strict=True):
        assert set(rows) == set(same)  # whatever is searched beside a query


def test_lists_in_a_file_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "FEW", 100)
    passages, queries = texts(3000, 2) + texts(300, 2), texts(6, 1)
    for number, scorer in enumerate((COSINE, PLAIN_IEM, SKIP)):
        model, folder = student(scorer), tmp_path / str(number)
        held = Index.build(model, passages, precision="float16", candidates="faiss")
        written = Index.build(model, iter(passages), 256, "asymmetric", "float16", "faiss", passages[::51][:64], folder)
        assert held.lists is not None and written.lists is not None and held.lists.recall >= 0.95
        held.save(tmp_path / f"{number} saved")
        again = Index.load(tmp_path / f"{number} saved", model)
        assert str(folder / "lists.data") in Path("/proc/self/maps").read_text()
        for nprobe in (1, 4, None):
            hits = held.search(queries, 7, nprobe=nprobe)
            assert equal(hits, again.search(queries, 7, nprobe=nprobe))
            assert equal(held.search(queries, 7, nprobe=4), written.search(queries, 7, nprobe=4))
        assert again.lists is not None and again.lists.recall == held.lists.recall
    (folder / "lists.data").write_bytes(b"short")
    with pytest.raises(ArtifactError, match=r"lists.data: expected \d+ bytes of inverted lists; build the index again"):
        Index.load(folder, model)


@pytest.mark.parametrize("precision", ["full", "float16", "int8"])
def test_shards_merged_are_the_whole(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BUILD_BLOCK", 64)
    monkeypatch.setattr(search, "FEW", 100)
    passages = texts(200, 2) + texts(50, 2) + texts(300, 3) + ["甲"] * 3
    model, queries = student(PLAIN_IEM), texts(4, 1)
    whole = Index.build(model, passages, precision=precision)
    parts = [tmp_path / name for name in ("first", "second", "third")]
    for folder, start, end in zip(parts, (0, 230, 300), (230, 300, len(passages)), strict=True):
        Index.build(model, iter(passages[start:end]), precision=precision, to=folder)
    merged = Index.merge(model, parts, tmp_path / "merged")
    assert len(merged) == len(whole) and merged.places.tolist() == whole.places.tolist()
    for (rows, scores), (others, exact) in zip(merged.search(queries, 9), whole.search(queries, 9), strict=True):
        assert rows.tolist() == others.tolist()
        np.testing.assert_allclose(scores, exact, atol=1e-2 if precision == "int8" else 1e-3)
    merged.add_lists(passages[:20], tmp_path / "merged")
    loaded = Index.load(tmp_path / "merged", model)
    assert loaded.recall(queries, 5) >= 0.9 and not list(tmp_path.rglob("*.part")) + list(tmp_path.rglob("seen*"))
    whole.save(tmp_path / "saved")
    with pytest.raises(ConfigError, match="expected a shard that `d2llm index`, or Index.build with `to`, wrote"):
        Index.merge(model, [parts[0], tmp_path / "saved"], tmp_path / "no")


def test_nothing_of_an_index_that_was_stays_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor of a build that was killed. An index with lists is saved where it was loaded from, and searched on."""
    monkeypatch.setattr(search, "BUILD_BLOCK", 50)
    monkeypatch.setattr(search, "FEW", 100)
    model, passages, others = student(COSINE), texts(200, 2), texts(200, 5)

    def killed() -> Iterator[str]:
        yield from passages[:120]
        (tmp_path / "lists.data").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index.build(model, killed(), to=tmp_path)
    (tmp_path / "seen.sqlite").write_bytes(b"of a process that could not clean up")
    built = Index.build(model, iter(passages), candidates="faiss", queries=passages[:9], to=tmp_path)
    hits = built.search(others[:5], 5)
    Index.load(tmp_path, model).save(tmp_path)
    assert equal(hits, built.search(others[:5], 5)) and equal(hits, Index.load(tmp_path, model).search(others[:5], 5))
    Index.build(model, others).save(tmp_path)
    assert Index.load(tmp_path, model).lists is None


def test_what_there_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="float16 holds numbers up to 65504; found 70000; choose full or int8"):
        Index.of_vectors(Vectors(Dot()), np.full((3, 4), 7e4, np.float32), range(3), precision="float16")
    model = student(PLAIN_IEM)
    for scorer, passages, options, message in (
        (TOKENS, texts(3, 1), {"candidates": "faiss"}, "scorer maxsim: inner products find no candidates for it"),
        (COSINE, texts(3, 1), {"candidates": "hnsw"}, "candidates: expected faiss or none; found 'hnsw'"),
        (COSINE, iter(texts(3, 1)), {"candidates": "faiss"}, "queries: give some, by which candidates are judged"),
    ):
        with pytest.raises(ConfigError, match=message):
            Index.build(student(scorer), passages, **options)
    index = Index.build(model, texts(30, 1), candidates="faiss")
    assert index.lists is None, "few are searched whole"
    with pytest.raises(ConfigError, match="nprobe: expected a number of at least 1; found 0"):
        index.search(["甲"], 1, nprobe=0)
    vectors = clustered(6000, 32, 1)
    vectors[7] = np.nan
    with pytest.raises(ArtifactError, match="passage 7: its vector is not finite"):
        listed(iem(), vectors)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts that come once, thrice as many take no more memory of Python's and numpy's but the places' own bytes."""
    monkeypatch.setattr(search, "BUILD_BLOCK", 256)
    model, peaks = student(PLAIN_IEM), []
    model.encode = lambda part, *_: np.ones((len(part), 32), dtype=np.float32)

    def coming(count: int) -> Iterator[str]:
        return (f"{number} {'甲' * 200}" for number in range(count))

    for count in (2_000, 20_000):
        tracemalloc.start()
        Index.build(model, coming(count), to=tmp_path / str(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 64 * 18_000, peaks  # the texts alone are 7 MB


def test_a_corpus_by_shards_is_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages `corpus_shard` and `corpus` against one index of all texts; files are read and kept in pieces."""
    monkeypatch.setattr(corpus, "PIECE", 7)
    monkeypatch.setattr(search, "FEW", 20)
    model, passages = student(PLAIN_IEM), texts(40, 2) + texts(9, 2)
    frame = pd.DataFrame({"nr": [f"n{i}" for i in range(49)], "says": passages})
    frame.to_json(tmp_path / "c.jsonl", orient="records", lines=True, force_ascii=False)
    frame.to_parquet(tmp_path / "c.parquet")
    monkeypatch.setattr(corpus, "student_of", lambda config: model)
    for kind in ("jsonl", "parquet"):
        settings = {
            "texts": str(tmp_path / f"c.{kind}"),
            "column": "says",
            "id": "nr",
            "shards": 3,
            "precision": "full",
        }
        config = load([ROOT / "config" / "mini.yaml"], {"results": str(tmp_path / kind), "corpus": settings})
        for shard in range(3):
            corpus.run_shard(config, shard, 3)
        corpus.run(config)
        folder = Paths.of(config).corpus
        merged, whole = Index.load(folder, model), Index.build(model, passages)
        assert merged.lists is not None and len(merged.cache) == 40 and len(merged) == 49
        ties = corpus.order_of(folder)
        assert ties.tolist() == by_id(frame["nr"].tolist()).tolist()
        found = merged.search(passages[:3], 12, ties, exact=True)
        for (rows, scores), (others, exact) in zip(found, whole.search(passages[:3], 12, ties), strict=True):
            assert rows.tolist() == others.tolist()
            np.testing.assert_allclose(scores, exact, rtol=1e-5, atol=1e-6)
        kept = corpus.texts_at(corpus.kept_texts(folder), [48, 0, 13, 48])
        assert kept.loc[[48, 13], "text"].tolist() == [passages[48], passages[13]] and kept.loc[0, "id"] == "n0"
    (tmp_path / "asked.txt").write_text("甲乙\n丙")
    more = {"shards": 50, "queries": str(tmp_path / "asked.txt")}
    few = load([ROOT / "config" / "mini.yaml"], {"results": str(tmp_path), "corpus": {**settings, **more}})
    plain = load([ROOT / "config" / "mini.yaml"], {"results": str(tmp_path), "corpus": {**settings, "shards": 50}})
    part = {"shard": 0, "shards": 50}
    assert jobs.settings(few, "corpus_shard", **part) == jobs.settings(plain, "corpus_shard", **part)
    assert jobs.settings(few, "corpus") != jobs.settings(plain, "corpus")
    assert judging_queries(few) == [tmp_path / "asked.txt"]
    judged, add = [], Index.add_lists
    monkeypatch.setattr(Index, "add_lists", lambda index, asked, to: judged.append(asked) or add(index, asked, to))
    for shard in range(50):  # one part is empty
        corpus.run_shard(few, shard, 50)
    corpus.run(few)
    assert len(Index.load(Paths.of(few).corpus, model)) == 49 and judged == [["甲乙", "丙"]]
    frame["nr"] = [f"n{i % 30}" for i in range(49)]
    frame.to_parquet(tmp_path / "twice.parquet")
    pieces = corpus.texts_in(str(tmp_path / "twice.parquet"), "says", "nr")
    with pytest.raises(DataError, match="made: expected every id once; found 'n0' again, as in row 0"):
        corpus.write(model, pieces, tmp_path / "no", "made", "asymmetric", "full")
