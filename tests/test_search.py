"""The index finds what a plain loop over all pairs finds, however it is cut into blocks, and survives being saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from sklearn.linear_model import Ridge

from d2llm.models.scorers.iem import IEM
from d2llm.models.student import Student, TextFormat
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.search import index as search
from d2llm.search.candidates import RIDGE, Approximation
from d2llm.search.index import Index

SCORERS = [("cosine", {}), ("iem", {"hidden": 24}), ("iem", {"hidden": 24, "skip": "cosine"})]
TOKENS = ("maxsim", {"size": 8})
FORMATS = {
    (role, mode): TextFormat(prefix) for role, prefix in (("query", (5,)), ("passage", (6,))) for mode in ("symmetric", "asymmetric")
}  # fmt: skip


def student(scorer: tuple[str, dict]) -> Student:
    pooling = ("tokens", scorer[1]) if scorer[0] == "maxsim" else ("mean", {})
    return Student(tiny.backbone("decoder"), pooling, scorer, FORMATS).eval()


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
            if model.scorer.name == "maxsim":
                left, right = ([token for token in side.view(-1, 8) if token.any()] for side in (q, p))
                scores.append(sum(max(a @ b for b in right) for a in left))
                continue
            iem = model.scorer
            x = torch.relu(iem.first(torch.cat([q, p])))
            logit = iem.head(torch.relu(iem.branches[mode](x)))[0]
            scores.append(logit if iem.skip_weight is None else logit + iem.skip_weight * cosine)
        return torch.stack(scores).numpy()


@pytest.mark.parametrize("scorer", [*SCORERS, TOKENS])
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
        # By value, not by place: two passages may score alike, and rounding, which differs by machine, then orders them.
        assert len(set(rows.tolist())) == len(rows) == min(depth, 23)
        np.testing.assert_allclose(expected[rows], scores, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores, np.sort(expected)[::-1][:depth], rtol=1e-4, atol=1e-5)


def test_blocks_change_no_score(monkeypatch):
    model, queries, passages = student(SCORERS[1]), texts(5, 1), texts(40, 2)
    whole = Index.build(model, passages).search(queries, 40)
    monkeypatch.setattr(search, "PASSAGE_BLOCK", 7)
    for (rows, scores), (other, again) in zip(whole, Index.build(model, passages).search(queries, 40), strict=True):
        np.testing.assert_allclose(scores, again, rtol=1e-5, atol=1e-6)
        assert rows.tolist() == other.tolist()


def test_one_text_is_no_list_of_its_letters():
    model, one = student(SCORERS[1]), "甲乙丙"
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
    built = Index.build(model, [distinct[row] for row in rows])
    assert torch.equal(repeated.cache, built.cache[built.places])


@pytest.mark.parametrize("scorer", [*SCORERS, TOKENS])
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
    with pytest.raises(ArtifactError, match="index of another student; build it again .*, with this one"):
        Index.load(tmp_path, model)
    (tmp_path / "index.safetensors").write_bytes(b"nothing")
    # No rule of the workflow makes an index: what mends it is its own.
    again = r"build it again \(`d2llm index`, or Index.build and save\)"
    with pytest.raises(ArtifactError, match=f"not a saved index .*; {again}"):
        Index.load(tmp_path, model)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ArtifactError, match=f"index.json: damaged JSON .*; {again}"):
        Index.load(tmp_path, model)
    (tmp_path / "index.json").unlink()
    with pytest.raises(ArtifactError, match=r"no index here \(index.json is missing\); `d2llm index` makes one"):
        Index.load(tmp_path, model)
    with pytest.raises(ArtifactError, match=r"no index here \(no such folder\); `d2llm index` makes one"):
        Index.load(tmp_path / "none", model)


def test_an_index_knows_what_its_student_feeds(tmp_path: Path):
    """Equal weights make no equal vectors where the texts are framed, cut, pooled or scored in another way."""
    model = student(SCORERS[1])
    Index.build(model, texts(20, 2)).save(tmp_path)
    longer = {key: replace(form, max_length=form.max_length + 1) for key, form in FORMATS.items()}
    for name, other in (
        ("formats", Student(model.backbone, ("mean", {}), SCORERS[1], longer)),
        ("pooling", Student(model.backbone, ("cls", {}), SCORERS[1], FORMATS)),
        (
            "scorer",
            Student(model.backbone, ("mean", {}), ("iem", {"hidden": 24, "activation": "squared_relu"}), FORMATS),
        ),
        ("normalize", Student(model.backbone, ("mean", {}), SCORERS[1], FORMATS, normalize=True)),
    ):
        other.load_state_dict(model.state_dict())
        with pytest.raises(
            ArtifactError, match=rf"the index of another student \(not the same {name}\); build it again"
        ):
            Index.load(tmp_path, other)
    assert len(Index.load(tmp_path, model)) == 20
    # One that was made before the settings were kept is told by the weights alone.
    about = json.loads((tmp_path / "index.json").read_text())
    del about["settings"]
    (tmp_path / "index.json").write_text(json.dumps(about))
    assert len(Index.load(tmp_path, model)) == 20


def test_a_loaded_index_stays_in_its_file(tmp_path: Path):
    model = student(SCORERS[1])
    Index.build(model, texts(2000, 2)).save(tmp_path)
    file = str((tmp_path / "index.safetensors").resolve())
    mapped = Index.load(tmp_path, model)
    assert file in Path("/proc/self/maps").read_text()
    expected = mapped.search(texts(3, 1), 5)
    del mapped
    read = Index.load(tmp_path, model, mapped=False)
    assert file not in Path("/proc/self/maps").read_text()
    for (rows, scores), (other, again) in zip(expected, read.search(texts(3, 1), 5), strict=True):
        assert rows.tolist() == other.tolist() and scores.tolist() == again.tolist()


@pytest.mark.parametrize("scorer", [*SCORERS, TOKENS])
@pytest.mark.parametrize(("precision", "size", "error"), [("float16", 2, 1e-3), ("int8", 1, 2e-2)])
def test_an_index_in_less_precision(tmp_path: Path, scorer, precision, size, error):
    model, passages = student(scorer), texts(50, 2)
    full, small = Index.build(model, passages), Index.build(model, passages, precision=precision)
    widths = [24, 32] if "skip" in scorer[1] else [8] * 512 if scorer == TOKENS else [full.cache.shape[1]]
    assert small.bytes_per_passage == size * sum(widths) + (4 * len(widths) if precision == "int8" else 0)
    rounded = small.rows(slice(0, 50))
    assert rounded.dtype == torch.float32
    largest = torch.cat(
        [part.abs().amax(1, keepdim=True).expand_as(part) for part in full.cache.split(widths, dim=1)], 1
    )
    assert ((rounded - full.cache).abs() <= largest * (2**-11 if precision == "float16" else 0.5001 / 127)).all()
    small.save(tmp_path)
    for index in (small, Index.load(tmp_path, model)):
        for (rows, scores), (_, exact) in zip(index.search(texts(4, 1), 50), full.search(texts(4, 1), 50), strict=True):
            assert sorted(rows.tolist()) == list(range(50))
            np.testing.assert_allclose(scores, exact, atol=error * float(np.abs(exact).max()))
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
    made = IEM(32, 64, **options)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * weight.std(correction=0) * torch.randn_like(weight))
    return made


@pytest.mark.parametrize("options", [{"init": "matcher", "activation": "squared_relu"}, {"init": "matcher"}, {}])
def test_a_twentieth_of_the_scores_finds_what_all_of_them_find(monkeypatch, options):
    model = Vectors(iem(**options))
    index = Index.of_vectors(model, clustered(20_000, 32, 1), range(20_000))
    queries = clustered(20, 32, 2)
    exact = index.search_vectors(queries, 10)
    scored: list[int] = []
    whole = model.scorer.matrix_cached
    monkeypatch.setattr(
        model.scorer, "matrix_cached", lambda q, p, mode: scored.append(len(q) * len(p)) or whole(q, p, mode)
    )
    found = index.search_vectors(queries, 10, share=0.05)
    assert sum(scored) <= 0.05 * 20 * 20_000
    hit = [len(set(a.tolist()) & set(b.tolist())) / 10 for (a, _), (b, _) in zip(exact, found, strict=True)]
    assert np.mean(hit) >= 0.99
    table = whole(model.scorer.query_cache(torch.from_numpy(queries)), index.cache, "asymmetric").detach().numpy()
    for row, (rows, scores) in zip(table, found, strict=True):
        np.testing.assert_allclose(scores, row[rows], rtol=1e-4, atol=1e-4)  # what is found has its exact score
        assert (np.diff(scores) <= 0).all() and len(set(rows.tolist())) == 10


def test_the_weights_are_those_of_a_ridge_regression():
    torch.manual_seed(0)
    table = torch.randn(500, 6) * torch.linspace(0.1, 3, 6) + 1
    fitted = Approximation(lambda rows: table[rows], 500, 200)
    assert len(fitted.sample) == 100 == len(set(fitted.sample.tolist()))
    scores, drawn = torch.randn(3, 100), table[fitted.sample]
    x = (table - drawn.mean(0)) / drawn.std(0, correction=0)
    features = torch.cat([x, x**2, torch.ones(500, 1)], 1).double().numpy()

    def ridge(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """What scikit-learn predicts of all rows, one query a column."""
        chosen = features[rows]
        strength = RIDGE * float(np.mean((chosen**2).sum(1)))
        return Ridge(alpha=strength, fit_intercept=False, solver="cholesky").fit(chosen, values).predict(features)

    def same(found: torch.Tensor, expected: np.ndarray) -> None:
        # Equal but for a constant of each query, which no ranking sees.
        found = found.numpy() - found.numpy().mean(1, keepdims=True)
        np.testing.assert_allclose(found, expected - expected.mean(1, keepdims=True), atol=2e-3)
        assert expected.std() > 0.1

    first = ridge(fitted.sample.numpy(), scores.T.numpy()).T
    weights = fitted.weights(scores)
    same(fitted.scan(weights)(table), first)
    near, exact = torch.arange(40, 90), torch.randn(50)
    second = first[0] + ridge(near.numpy(), exact.numpy() - first[0][near.numpy()])
    same(fitted.scan(fitted.corrected(weights[0], table[near], exact)[None])(table), second[None])


def test_few_passages_and_plain_scorers_are_searched_whole():
    model = student(SCORERS[1])
    index, queries = Index.build(model, texts(30, 2)), texts(3, 1)
    for (a, _), (b, _) in zip(index.search(queries, 20), index.search(queries, 20, share=0.02), strict=True):
        assert a.tolist() == b.tolist()
    assert index.recall(queries, 20) == 1.0
    assert Index.build(model, texts(90, 2)).recall(queries) == 1.0
    plain = Index.build(student(SCORERS[0]), texts(300, 2))
    assert plain.recall(queries, 5, share=0.05) == 1.0
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(ConfigError, match="share: expected a number above 0 and at most 1"):
            index.search(queries, 5, share=share)
    for depth in (0, -1):
        with pytest.raises(ConfigError, match=f"depth: expected a number of at least 1; found {depth}"):
            index.search(queries, depth)


def test_how_many_are_scored_is_as_documented():
    """By the number of passages, share and depth; None: all of them. From a million on, the share alone decides."""
    model = Vectors(iem())

    def budget(count: int, share: float, depth: int = 10) -> int | None:
        return Index(model, torch.zeros(1, 1).expand(count, 1)).budget(share, depth)

    assert [budget(count, 0.02) for count in (90, 999, 5000)] == [None] * 3
    assert [budget(count, 0.02) for count in (5001, 50_000, 60_000)] == [1000, 1000, 1200]
    assert [budget(count, 0.001) for count in (19_999, 20_000)] == [None, 1000]
    assert [budget(count, 0.02, 100) for count in (9_999, 10_000)] == [None, 1000]
    assert [budget(1_000_000, share) for share in (0.001, 0.0025, 0.02)] == [1000, 2500, 20_000]
    assert budget(6000, 1.0) is None


@pytest.mark.parametrize("count", [90, 999, 1000, 4000, 6000, 15_000])
def test_a_share_of_few_passages_finds_nearly_all(count):
    model, queries = Vectors(iem()), clustered(10, 32, 2)
    index = Index.of_vectors(model, clustered(count, 32, 1), range(count))
    exact, found = index.search_vectors(queries, 10), index.search_vectors(queries, 10, 0.02)
    hit = [len(set(a.tolist()) & set(b.tolist())) / 10 for (a, _), (b, _) in zip(exact, found, strict=True)]
    assert np.mean(hit) >= (0.95 if count > search.FEW else 1.0)


def test_what_is_not_finite_comes_first_among_candidates_too():
    vectors = clustered(6000, 32, 1)
    vectors[7] = np.nan
    index = Index.of_vectors(Vectors(iem()), vectors, range(6000))
    rows, scores = index.search_vectors(clustered(1, 32, 2), 3, share=5999 / 6000)[0]
    assert rows[0] == 7 and scores[0] == np.inf
