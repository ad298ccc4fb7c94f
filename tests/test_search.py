"""The index finds what a plain loop over all pairs finds, however it is cut into blocks, and survives being saved;
candidates find nearly that. What people do with a trained student is in test_searching."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from d2llm.models.scorers.iem import IEM
from d2llm.models.student import Student, TextFormat
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.search import candidates
from d2llm.search import index as search
from d2llm.search.candidates import Approximation, spread
from d2llm.search.index import Index
from d2llm.search.ranking import best, by_id

SCORERS = [("cosine", {}), ("iem", {"hidden": 24}), ("iem", {"hidden": 24, "skip": "cosine"})]
COSINE, PLAIN_IEM, SKIP = SCORERS
TOKENS = ("maxsim", {"size": 8})
PREFIXES = {"query": (5,), "passage": (6,)}
FORMATS = {(role, mode): TextFormat(PREFIXES[role]) for role, mode in product(PREFIXES, ("symmetric", "asymmetric"))}


def student(scorer: tuple[str, dict]) -> Student:
    pooling = ("tokens", scorer[1]) if scorer[0] == "maxsim" else ("mean", {})
    return Student(tiny.backbone("decoder"), pooling, scorer, FORMATS).eval()


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(tiny.WORDS[:20], rng.integers(2, 9))) for _ in range(count)]


def equal(hits: list, others: list) -> bool:
    pairs = zip(hits, others, strict=True)
    return all(a.tolist() == c.tolist() and b.tolist() == d.tolist() for (a, b), (c, d) in pairs)


@torch.no_grad()
def by_hand(model: Student, query: str, passages: list[str], mode: str) -> np.ndarray:
    """Scores of one query, pair by pair, from the definition of the scorer."""
    q, scorer = model.embed([query], "query", mode)[0], model.scorer
    scores = []
    for p in model.embed(passages, "passage", mode):
        cosine = (q @ p) / (q.norm() * p.norm())
        if scorer.name == "cosine":
            scores.append(cosine)
        elif scorer.name == "maxsim":
            left, right = ([token for token in side.view(-1, 8) if token.any()] for side in (q, p))
            scores.append(sum(max(a @ b for b in right) for a in left))
        else:
            x = torch.relu(scorer.first(torch.cat([q, p])))
            logit = scorer.head(torch.relu(scorer.branches[mode](x)))[0]
            scores.append(logit if scorer.skip_weight is None else logit + scorer.skip_weight * cosine)
    return torch.stack(scores).numpy()


@pytest.mark.parametrize("scorer", [*SCORERS, TOKENS])
@pytest.mark.parametrize("mode", ["asymmetric", "symmetric"])
def test_search_is_a_loop_over_all_pairs(monkeypatch, scorer, mode):
    monkeypatch.setattr(search, "QUERY_BLOCK", 2)
    monkeypatch.setattr(search, "PASSAGE_BLOCK", 4)  # fewer than passages, and they do not divide evenly
    model, queries, passages = student(scorer), texts(5, 1), texts(23, 2)
    index = Index.build(model, passages, mode=mode)
    assert len(index) == len(set(passages)) == 23
    values = [by_hand(model, query, passages, mode) for query in queries]
    for query, expected in zip(queries, values, strict=True):
        assert expected.std() > 1e-3
        np.testing.assert_allclose(model.score([query] * 23, passages, mode), expected, rtol=1e-4, atol=1e-5)
    for depth in (1, 7, 1000):
        for expected, (rows, scores) in zip(values, index.search(queries, depth), strict=True):
            # By value, not by place: two passages may score alike, and rounding, which differs by machine, orders them.
            assert len(set(rows.tolist())) == len(rows) == min(depth, 23)
            np.testing.assert_allclose(expected[rows], scores, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(scores, np.sort(expected)[::-1][:depth], rtol=1e-4, atol=1e-5)


def test_one_text_is_no_list_of_its_letters():
    model, one = student(PLAIN_IEM), "甲乙丙"
    index = Index.build(model, [one])
    for name, call in (
        ("texts", lambda: model.encode(one, "query")),
        ("queries", lambda: model.score(one, [one] * 3)),
        ("passages", lambda: model.score([one] * 3, one)),
        ("passages", lambda: Index.build(model, one)),
        ("queries", lambda: index.search(one, 1)),
        ("queries", lambda: index.recall(one)),
    ):
        with pytest.raises(TypeError, match=f"^{name}: expected a list of texts; found one text, '甲乙丙'"):
            call()


def test_what_is_not_finite_comes_first():
    model = student(COSINE)
    vectors = model.encode(texts(5, 5), "passage", "asymmetric")
    vectors[3] = np.nan
    rows, scores = Index.of_vectors(model, vectors, range(5)).search(texts(1, 6), 2)[0]
    assert rows[0] == 3 and scores[0] == np.inf


# -------------------------------------------------------------------------------------------------------------- ranking
def plain(scores: np.ndarray, ties: np.ndarray, depth: int) -> list[int]:
    """The rule by a full sort in a loop."""
    return sorted(range(len(scores)), key=lambda row: (-scores[row], ties[row]))[:depth]


@pytest.mark.parametrize("values", [1, 3, 10_000])
@pytest.mark.parametrize("depth", [1, 2, 7, 40, 60])
def test_the_best_are_those_of_a_full_sort(values: int, depth: int) -> None:
    assert by_id(["7", "10", "9", "é", "甲", "Z"]).tolist() == [4, 5, 3, 1, 0, 2]  # ids descend as texts
    rng = np.random.default_rng(depth)
    scores = rng.integers(values, size=(9, 40)).astype(np.float32)
    rows, ties = np.stack([rng.permutation(60)[:40] for _ in scores]), rng.permutation(60)
    top, chosen = best(torch.from_numpy(scores), torch.from_numpy(rows), torch.from_numpy(ties), depth)
    for line, places, own, got in zip(scores, rows, top.numpy(), chosen.numpy(), strict=True):
        expected = plain(line, ties[places], depth)
        assert got.tolist() == places[expected].tolist() and own.tolist() == line[expected].tolist()


@pytest.mark.parametrize("scorer", [("cosine", {}), ("iem", {"hidden": 96})])
@pytest.mark.parametrize("candidates", [None, "faiss"])
def test_a_search_ranks_equal_passages_by_the_rule_at_every_depth(
    scorer: tuple[str, dict], candidates: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of a text score alike to the last bit, although a matrix product may round them differently."""
    for name, value in (("PASSAGE_BLOCK", 64), ("FEW", 20)):
        monkeypatch.setattr(search, name, value)
    rng = np.random.default_rng(0)
    distinct = [" ".join(rng.choice(tiny.WORDS[:20], 5)) for _ in range(90)]
    passages = [distinct[place] for place in rng.integers(90, size=500)]
    ties = rng.permutation(500)
    index, queries = Index.build(student(scorer), passages, candidates=candidates), distinct[:3]
    for query, (rows, scores) in zip(queries, index.search(queries, 500, ties), strict=True):
        by_text: dict[str, set[float]] = {}
        for row, score in zip(rows, scores, strict=True):
            by_text.setdefault(passages[row], set()).add(float(score))
        assert all(len(values) == 1 for values in by_text.values()), "copies of a text have one score"
        every = np.empty(500, dtype=np.float32)
        every[rows] = scores
        assert rows.tolist() == plain(every, ties, 500)
        assert index.search([query], 500)[0][0].tolist() == plain(every, np.arange(500), 500)
    deep = index.search(queries, 20, ties)
    for depth in (1, 2, 6, 19):
        for (rows, scores), (more, others) in zip(index.search(queries, depth, ties), deep, strict=True):
            assert rows.tolist() == more[:depth].tolist() and scores.tolist() == others[:depth].tolist()


def test_a_saved_index_knows_its_copies(tmp_path: Path) -> None:
    model, passages = student(("iem", {"hidden": 24})), ["甲 乙", "丙 丁", "甲 乙", "甲 乙"]
    index = Index.build(model, passages)
    assert len(index) == 4 and len(index.cache) == 2
    index.save(tmp_path)
    for one in (index, Index.load(tmp_path, model, mapped=False)):
        ((rows, scores),) = one.search(["甲 乙"], 4, ties=np.array([3, 2, 1, 0]))
        assert [row for row in rows if row != 1] == [3, 2, 0] and len(set(scores[rows != 1].tolist())) == 1


# ----------------------------------------------------------------------------------------------------- saved and loaded
def test_another_students_or_a_damaged_index_is_refused(tmp_path: Path):
    model = student(PLAIN_IEM)
    Index.build(model, texts(20, 2)).save(tmp_path)

    def refused(message: str, folder: Path = tmp_path) -> None:
        with pytest.raises(ArtifactError, match=message):
            Index.load(folder, model)

    with torch.no_grad():
        next(model.backbone.parameters()).view(-1)[0] += 1
    refused("index of another student; build it again .*, with this one")
    (tmp_path / "index.safetensors").write_bytes(b"nothing")
    # No rule of the workflow makes an index: what mends it is its own.
    again = r"build it again \(`d2llm index`, or Index.build and save\)"
    refused(f"not a saved index .*; {again}")
    (tmp_path / "index.json").write_text("{")
    refused(f"index.json: damaged JSON .*; {again}")
    (tmp_path / "index.json").unlink()
    refused(r"no index here \(index.json is missing\); `d2llm index` makes one")
    refused(r"no index here \(no such folder\); `d2llm index` makes one", tmp_path / "none")


def test_an_index_knows_what_its_student_feeds(tmp_path: Path):
    """Equal weights make no equal vectors where the texts are framed, cut, pooled or scored in another way."""
    model = student(PLAIN_IEM)
    Index.build(model, texts(20, 2)).save(tmp_path)
    longer = {key: replace(form, max_length=form.max_length + 1) for key, form in FORMATS.items()}
    squared = ("iem", {"hidden": 24, "activation": "squared_relu"})
    for name, pooling, scorer, formats, options in (
        ("formats", "mean", PLAIN_IEM, longer, {}),
        ("pooling", "cls", PLAIN_IEM, FORMATS, {}),
        ("scorer", "mean", squared, FORMATS, {}),
        ("normalize", "mean", PLAIN_IEM, FORMATS, {"normalize": True}),
    ):
        other = Student(model.backbone, (pooling, {}), scorer, formats, **options)
        other.load_state_dict(model.state_dict())
        with pytest.raises(ArtifactError, match=rf"the index of another student \(not the same {name}\); build it"):
            Index.load(tmp_path, other)
    # One that was made before the settings were kept is told by the weights alone.
    about = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({name: about[name] for name in about if name != "settings"}))
    assert len(Index.load(tmp_path, model)) == 20


def test_a_loaded_index_stays_in_its_file(tmp_path: Path):
    model = student(PLAIN_IEM)
    Index.build(model, texts(2000, 2)).save(tmp_path)
    file, hits = str((tmp_path / "index.safetensors").resolve()), []
    for mapped in (True, False):
        index = Index.load(tmp_path, model, mapped=mapped)
        assert (file in Path("/proc/self/maps").read_text()) == mapped
        hits.append(index.search(texts(3, 1), 5))
        del index
    assert equal(*hits)


@pytest.mark.parametrize("scorer", [*SCORERS, TOKENS])
@pytest.mark.parametrize(("precision", "size", "error"), [("full", 4, 1e-6), ("float16", 2, 1e-3), ("int8", 1, 2e-2)])
def test_a_saved_index_finds_the_same_in_every_precision(tmp_path: Path, scorer, precision, size, error):
    model, passages, queries = student(scorer), texts(50, 2), texts(4, 1)
    full = Index.build(model, passages, mode="symmetric")
    small = Index.build(model, passages, mode="symmetric", precision=precision)
    widths = [24, 32] if "skip" in scorer[1] else [8] * 512 if scorer == TOKENS else [full.cache.shape[1]]
    assert small.bytes_per_passage == size * sum(widths) + (4 * len(widths) if precision == "int8" else 0)
    rounded = small.rows(slice(0, 50))
    assert rounded.dtype == torch.float32
    parts = [part.abs().amax(1, keepdim=True).expand_as(part) for part in full.cache.split(widths, dim=1)]
    step = {"full": 0, "float16": 2**-11, "int8": 0.5001 / 127}[precision]
    assert ((rounded - full.cache).abs() <= torch.cat(parts, 1) * step).all()
    hits = small.search(queries, 50)
    for (rows, scores), (_, exact) in zip(hits, full.search(queries, 50), strict=True):
        assert sorted(rows.tolist()) == list(range(50))
        np.testing.assert_allclose(scores, exact, atol=error * float(np.abs(exact).max()))
    small.save(tmp_path)
    again = Index.load(tmp_path, model)
    assert (again.mode, again.vector_bytes) == ("symmetric", full.vector_bytes) and equal(
        hits, again.search(queries, 50)
    )
    with pytest.raises(ConfigError, match="precision: expected one of full, float16, int8; found 'int4'"):
        Index.build(model, passages, precision="int4")


# ---------------------------------------------------------------------------------------------------------- candidates
class Vectors:
    """A student whose texts are numbers of rows: only its scorer matters."""

    def __init__(self, scorer: torch.nn.Module) -> None:
        self.scorer = scorer.eval()


def clustered(count: int, width: int, seed: int) -> np.ndarray:
    """Unit-variance vectors in fifty heaps, as texts about fifty things are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(50, width))
    heaps = centres[rng.integers(50, size=count)] * 0.8 + rng.normal(size=(count, width)) * 0.6
    return heaps.astype(np.float32)


def iem(**options: object) -> IEM:
    """A module far from what it starts as: every weight moved by a tenth of its layer's spread."""
    torch.manual_seed(1)
    module = IEM(32, 64, **options)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.1 * weight.std(correction=0) * torch.randn_like(weight))
    return module


def recall(exact: list, hits: list) -> float:
    return float(np.mean([len({*a.tolist()} & {*b.tolist()}) / 10 for (a, _), (b, _) in zip(exact, hits, strict=True)]))


@pytest.mark.parametrize("skip", ["none", "cosine"])
@pytest.mark.parametrize("activation", ["relu", "squared_relu"])
@torch.no_grad()
def test_slopes_are_those_of_a_linear_regression(activation: str, skip: str) -> None:
    """Of the logits of many normal passages on their features, where every unit of the branch is positive."""
    torch.manual_seed(0)
    scorer = IEM(5, 6, activation, skip=skip)
    scorer.branches["asymmetric"].bias.fill_(100)
    width = sum(scorer.cache_parts(11 if skip == "cosine" else 6))
    mean, deviation = torch.randn(width), torch.rand(width) + 0.2
    e, queries = torch.randn(200_000, width), torch.randn(3, width)
    logits = scorer.matrix_cached(queries, mean + deviation * e, "asymmetric").double()
    features = torch.cat([e, e**2 - 1, torch.ones(len(e), 1)], 1).double()
    expected = np.linalg.lstsq(features.numpy(), logits.T.numpy())[0][:-1].T
    slopes = scorer.slopes(mean, deviation, "asymmetric")(queries).numpy()
    np.testing.assert_allclose(slopes, expected, atol=0.02 * np.abs(expected).max())


@torch.no_grad()
def test_few_features_stand_for_all() -> None:
    """Passages of twenty dimensions in 64 numbers: inner products lose at most the part of the variance they may."""
    scorer = iem(init="matcher", activation="squared_relu")
    rows = scorer.passage_cache(torch.randn(3000, 20) @ torch.randn(20, 32) / 4)
    queries = scorer.query_cache(torch.randn(60, 32))
    whole = Approximation(scorer, "asymmetric", *spread(rows))
    few = Approximation(scorer, "asymmetric", *spread(rows))
    few.reduce(rows, rows.mean(0).expand_as(rows), queries[:30])
    assert few.features(rows).shape[1] == 48 and whole.features(rows).shape[1] == 128
    expected = whole.weights(queries[30:]) @ whole.features(rows).T
    lost = few.weights(queries[30:]) @ few.features(rows).T - expected
    assert float(lost.var(1).sum() / expected.var(1).sum()) < candidates.LOST
    whole.reduce(rows, rows, queries[:3])  # three queries tell too little
    assert len(whole.kept) == 2
