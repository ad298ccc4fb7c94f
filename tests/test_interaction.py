"""The scorers against the concatenation formula in float64, and what the matcher initialisation promises."""

import math

import pytest
import torch
from torch import nn

from d2llm.models.parts import build_scorer
from d2llm.models.scorers.iem import IEM
from d2llm.run.errors import ConfigError

D, N, M = 6, 5, 8


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(11)


def vectors(size=D, n=N, m=M, dtype=torch.float64):
    return torch.randn(n, size, dtype=dtype), torch.randn(m, size, dtype=dtype)


def built(name, **settings):
    """A scorer in float64 with random parameters, biases included."""
    scorer = build_scorer(name, D, **settings).double()
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.normal_(0, 0.7)
    return scorer


def naive_iem(iem, q, p, mode):
    """Feature and logit of one pair, by the formula over the concatenation (as the release computes it)."""
    x = torch.relu(iem.first(torch.cat([q, p])))
    if iem.squared:
        x = x * x
    y = torch.relu(iem.branches["shared" if "shared" in iem.branches else mode](x))
    logit = iem.head(y)[0]
    if iem.skip_weight is not None:
        logit = logit + iem.skip_weight * (q @ p) / (q.norm() * p.norm())
    return y, logit


def naive(scorer, q, p, mode):
    if scorer.name == "iem":
        return naive_iem(scorer, q, p, mode)[1]
    if scorer.name == "bilinear":
        return sum(q[i] * scorer.weight[i, j] * p[j] for i in range(D) for j in range(D))
    if scorer.name == "maxsim":
        tokens = [[side[i : i + scorer.size] for i in range(0, len(side), scorer.size)] for side in (q, p)]
        left, right = ([token for token in side if token.any()] for side in tokens)
        return sum((max(a @ b for b in right) for a in left), torch.zeros(()))
    return (q @ p) if scorer.name == "dot" else (q @ p) / (q.norm() * p.norm())


KINDS = [
    ("iem", {"hidden": 9}),
    ("iem", {"hidden": 9, "activation": "squared_relu"}),
    ("iem", {"hidden": 9, "branches": "shared", "skip": "cosine"}),
    ("cosine", {}),
    ("dot", {}),
    ("bilinear", {}),
    ("maxsim", {"size": 2}),
]


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("name", "settings"), KINDS)
@pytest.mark.parametrize("grad", [True, False])
def test_matrix_and_pairs_match_the_formula(name, settings, mode, grad):
    scorer, (q, p) = built(name, **settings), vectors()
    with torch.set_grad_enabled(grad):
        expected = torch.tensor([[naive(scorer, a, b, mode).item() for b in p] for a in q], dtype=torch.float64)
        torch.testing.assert_close(scorer.matrix(q, p, mode), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(scorer.pairs(q, p[:N], mode), expected.diagonal(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("skip", ["none", "cosine"])
@pytest.mark.parametrize("pairs_a_block", [0, 1, 2, 3, 7, 8, 9, 16, 17, 40, 1000])
def test_blocks_change_nothing(pairs_a_block, skip):
    scorer, (q, p) = built("iem", hidden=9, skip=skip), vectors()
    expected = scorer.matrix(q, p, "symmetric")
    scorer.block_bytes = pairs_a_block * 2 * 9 * 8
    torch.testing.assert_close(scorer.matrix(q, p, "symmetric"), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(scorer.matrix(q, p, "symmetric"), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pairs_a_block", [0, 1, 3, 7, 8, 9, 1000])
def test_tokens_that_are_not_there_match_nothing(pairs_a_block):
    """Between texts of unequal lengths, whatever the sign of the products; on either side of the text; none at all."""
    q, p = -vectors()[0].abs(), vectors()[1].abs()  # all products are negative: a zero token would win
    q[0, 4:], q[1, :4], p[2, 2:], p[3, :2], p[4] = 0, 0, 0, 0, 0
    scorer = build_scorer("maxsim", D, size=2, block_bytes=pairs_a_block * 9 * 8)
    q.requires_grad_()
    expected = torch.tensor(
        [[0.0 if j == 4 else naive(scorer, a, b, "symmetric").item() for j, b in enumerate(p)] for a in q.detach()]
    )
    assert (expected[:, [0, 1, 2, 3, 5, 6, 7]] < 0).all()
    found = scorer.matrix(q, p, "symmetric")
    torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(scorer.pairs(q, p[:N], "symmetric"), expected.diagonal().double(), rtol=1e-6, atol=1e-8)
    (gradient,) = torch.autograd.grad(found.square().sum(), q)
    assert gradient.isfinite().all() and gradient[2:].any()


def test_maxsim_has_the_gradient_of_its_formula():
    scorer, (q, p) = build_scorer("maxsim", D, size=3), vectors()
    assert torch.autograd.gradcheck(
        lambda a, b: scorer.matrix(a, b, "symmetric"), (q.requires_grad_(), p.requires_grad_())
    )
    assert scorer.cache_parts(D) == (3, 3)


def test_blocks_bound_the_memory():
    scorer, (q, p) = IEM(D, hidden=16, block_bytes=4096), vectors(n=40, m=50, dtype=torch.float32)
    rows, held, branch = [], set(), scorer._branch

    def watched(x, mode, out=None):
        rows.append(len(x))
        held.update(part.untyped_storage().data_ptr() for part in (x, out))
        return branch(x, mode, out)

    scorer._branch = watched
    with torch.no_grad():
        scorer.matrix(q, p, "symmetric")
    assert sum(rows) == 40 * 50
    assert max(rows) * 16 * 4 * 2 <= 4096
    assert len(held) == 1 + 1  # all blocks share the two pieces of memory


def test_blocks_leave_to_autocast_and_autograd_what_is_theirs():
    """Autograd keeps every block's values, and autocast computes in another type than the block's memory has."""
    scorer, (q, p) = IEM(D, hidden=16, block_bytes=4096), vectors(n=40, m=50, dtype=torch.float32)
    with torch.no_grad():
        exact = scorer.matrix(q, p, "symmetric")
        kept = scorer.query_cache(q), scorer.passage_cache(p)  # float32, as an index holds them
        with torch.autocast("cpu", torch.bfloat16):
            rough = scorer.matrix_cached(*kept, "symmetric")
            pairs = scorer.pairs_cached(kept[0].repeat_interleave(50, 0), kept[1].repeat(40, 1), "symmetric")
    torch.testing.assert_close(rough.flatten(), pairs, rtol=0, atol=1e-6)  # the branch too ran in autocast's type
    assert rough.dtype == torch.float32 and 0 < (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
    found = scorer.matrix(q, p, "symmetric")
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)
    found.sum().backward()
    one = torch.autograd.grad(scorer.pairs(q.repeat_interleave(50, 0), p.repeat(40, 1), "symmetric").sum(), scorer.first.weight)[0]  # fmt: skip
    torch.testing.assert_close(scorer.first.weight.grad, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_caches_are_all_that_is_needed_and_stay_unchanged(name, settings):
    scorer, (q, p) = built(name, **settings), vectors()
    with torch.no_grad():
        query, passage = scorer.query_cache(q), scorer.passage_cache(p)
        kept = query.clone(), passage.clone()
        assert torch.equal(scorer.matrix_cached(query, passage, "asymmetric"), scorer.matrix(q, p, "asymmetric"))
        assert torch.equal(scorer.pairs_cached(query, passage[:N], "asymmetric"), scorer.pairs(q, p[:N], "asymmetric"))
        assert torch.equal(query, kept[0]) and torch.equal(passage, kept[1])  # the in-place arithmetic is on copies
    if name == "iem":
        assert passage.shape == (M, 9 + (D if settings.get("skip") == "cosine" else 0))


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_empty_sides(name, settings):
    scorer, (q, p) = built(name, **settings), vectors()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert scorer.matrix(q[:0], p, "symmetric").shape == (0, M)
            assert scorer.matrix(q, p[:0], "symmetric").shape == (N, 0)
            assert scorer.pairs(q[:0], p[:0], "symmetric").shape == (0,)


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
def test_features_are_the_branch(mode):
    scorer, (q, p) = built("iem", hidden=9), vectors(m=N)
    expected = torch.stack([naive_iem(scorer, a, b, mode)[0] for a, b in zip(q, p, strict=True)])
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = scorer.features(q, p, mode)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(scorer.logits_of(found), scorer.pairs(q, p, mode), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["cosine", "dot", "bilinear"])
def test_plain_scorers_have_no_features_and_ignore_the_mode(name):
    scorer, (q, p) = built(name), vectors(m=N)
    assert torch.equal(scorer.matrix(q, p, "symmetric"), scorer.matrix(q, p, "asymmetric"))
    with pytest.raises(ConfigError, match=f"scorer {name} has no pair features: set gamma"):
        scorer.features(q, p, "symmetric")


def test_branches():
    (q, p), shared = vectors(m=N), built("iem", hidden=9, branches="shared")
    assert torch.equal(shared.matrix(q, p, "symmetric"), shared.matrix(q, p, "asymmetric"))
    both = built("iem", hidden=9)
    assert not torch.allclose(both.matrix(q, p, "symmetric"), both.matrix(q, p, "asymmetric"))
    both.pairs(q, p, "asymmetric").sum().backward()
    assert both.branches["symmetric"].weight.grad is None and both.branches["asymmetric"].weight.grad.abs().max() > 0
    assert both.head.weight.grad.abs().max() > 0  # one head for both
    assert sum(x.numel() for x in both.parameters()) - sum(x.numel() for x in shared.parameters()) == 9 * 9 + 9


def test_order_of_a_pair_matters_to_the_iem_but_not_to_cosine():
    q, p = vectors(m=N)
    iem = built("iem", hidden=9)
    assert not torch.allclose(iem.pairs(q, p, "symmetric"), iem.pairs(p, q, "symmetric"))
    cosine = build_scorer("cosine", D)
    torch.testing.assert_close(cosine.pairs(q, p, "symmetric"), cosine.pairs(p, q, "symmetric"))


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_gradient(name, settings):
    scorer, (q, p) = built(name, **settings), vectors(n=3, m=4)
    if name == "iem":
        scorer.block_bytes = 3 * 2 * 9 * 8  # several blocks
    assert torch.autograd.gradcheck(
        lambda a, b: scorer.matrix(a, b, "symmetric"), (q.requires_grad_(), p.requires_grad_())
    )


def test_zero_vectors_are_finite():
    for name, settings in KINDS:
        scorer, q = built(name, **settings), torch.zeros(2, D, dtype=torch.float64, requires_grad=True)
        scores = scorer.matrix(q, vectors()[1], "symmetric")
        scores.sum().backward()
        assert scores.isfinite().all() and q.grad.isfinite().all()


def test_random_init_is_the_release_s():
    iem = IEM(64, hidden=512)
    bound = math.sqrt(6 / (2 * 64 + 512))  # Xavier: fan in 2d, fan out h
    assert iem.first.weight.abs().max() <= bound
    assert iem.first.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert set(iem.state_dict()) == {
        f"{layer}.{part}"
        for layer in ("first", "branches.symmetric", "branches.asymmetric", "head")
        for part in ("weight", "bias")
    }


# ---------------------------------------------------------------------------------------------------------- the matcher


def normed(*shape):
    return nn.functional.layer_norm(torch.randn(*shape), shape[-1:])


SHAPES = [
    (48, 512),
    (256, 512),
    (300, 512),
    (1024, 512),
    (48, 97),
]  # hidden > 2d, = 2d, < 2d (random directions), far below, odd


@pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("size", "hidden"), [(48, 512), (256, 512), (32, 64), (32, 65)])
def test_matcher_starts_as_the_distance(size, hidden, mode):
    q, p = normed(20, size), normed(20, size)
    squared = IEM(size, hidden, activation="squared_relu", init="matcher").matrix(q, p, mode)
    distance = torch.cdist(q.double(), p.double()).square().float()
    torch.testing.assert_close(squared, 10 * (1 - distance / (2 * size)), rtol=0, atol=0.6)
    torch.testing.assert_close(
        squared, 10 * nn.functional.cosine_similarity(q[:, None], p[None], dim=-1), rtol=0, atol=0.6
    )
    plain = IEM(size, hidden, activation="relu", init="matcher").matrix(q, p, mode)
    city = torch.cdist(q.double(), p.double(), p=1).float()
    torch.testing.assert_close(plain, 10 * (1 - math.sqrt(math.pi) / 2 * city / size), rtol=0, atol=0.6)


@pytest.mark.parametrize("activation", ["relu", "squared_relu"])
@pytest.mark.parametrize(("size", "hidden"), SHAPES)
def test_matcher_ranks_the_match_first_and_by_units(size, hidden, activation):
    """A passage of cosine 0.8 with its query against 99 unrelated ones: first for every query, some units above the
    mean of the others."""
    n = 100
    q = normed(n, size)
    p = nn.functional.layer_norm(0.8 * q + 0.6 * torch.randn(n, size), (size,))
    iem = IEM(size, hidden, activation=activation, init="matcher")
    for mode in ("symmetric", "asymmetric"):
        with torch.no_grad():
            logits = iem.matrix(q, p, mode)
        matched, others = logits.diagonal(), logits[~torch.eye(n, dtype=torch.bool)]
        assert (logits.argmax(1) == torch.arange(n)).float().mean() > 0.99
        assert 3 < matched.mean() - others.mean() < 12
        assert abs(others.mean()) < 1.5
        assert logits.abs().max() < 15
    random = IEM(size, hidden, activation=activation)
    with torch.no_grad():
        assert (
            random.matrix(q, p, "symmetric").argmax(1) == torch.arange(n)
        ).float().mean() < 0.5  # nothing of the kind without it


@pytest.mark.parametrize("activation", ["relu", "squared_relu"])
def test_matcher_orders_by_closeness(activation):
    size = 128
    q = normed(1, size).expand(21, -1)
    away = normed(1, size)
    steps = torch.linspace(0, 1, 21)[:, None]
    iem = IEM(size, activation=activation, init="matcher")
    logits = iem.pairs(q, q + steps * (away - q), "symmetric")
    assert (logits.diff() < 0).all()
    assert logits[0].item() == pytest.approx(10.0, abs=0.2)  # scale, at distance 0; the rest is the spare units' noise


def test_matcher_random_directions_keep_distances():
    """hidden < 2d: R has orthogonal rows of norm √(d / count), so ‖R x‖² = ‖x‖² in the mean."""
    iem = IEM(64, hidden=40, init="matcher")
    directions = iem.first.weight[:20, :64]
    torch.testing.assert_close(directions @ directions.T, torch.eye(20) * 64 / 20, rtol=0, atol=1e-4)
    torch.testing.assert_close(iem.first.weight[:20, 64:], -directions)
    torch.testing.assert_close(iem.first.weight[20:, :64], -directions)


@pytest.mark.parametrize("activation", ["relu", "squared_relu"])
@pytest.mark.parametrize(("size", "hidden"), SHAPES)
def test_matcher_can_learn(size, hidden, activation):
    """No dead parameter: every unit of every layer gets a gradient within two steps (the head of spare units is 0 in
    the first)."""
    iem, n = IEM(size, hidden, activation=activation, init="matcher"), 64
    optimizer = torch.optim.SGD(iem.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        q, p = normed(n, size), normed(n, size)
        iem.matrix(q, p, "symmetric").log_softmax(1).diagonal().mean().neg().backward()
        optimizer.step()
    for name, parameter in iem.named_parameters():
        if "asymmetric" not in name:
            alive = parameter.grad.flatten(1).abs().amax(1) if parameter.dim() > 1 else parameter.grad.abs()
            assert (alive > 0).float().mean() > 0.99, name


def test_matcher_is_reproducible():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(IEM(48, hidden=64, init="matcher").state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# ----------------------------------------------------------------------------------------------------------------- rest


def test_bilinear_starts_as_scaled_cosine_of_normed_vectors():
    q, p = normed(4, 64), normed(4, 64)
    found = build_scorer("bilinear", 64).pairs(q, p, "symmetric")
    torch.testing.assert_close(found, 10 * nn.functional.cosine_similarity(q, p), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "settings"), KINDS)
@pytest.mark.parametrize("precision", ["vectors", "weights", "autocast"])
def test_logits_of_half_precision_vectors_are_formed_in_float32(name, settings, precision):
    """bfloat16 keeps 8 bits: of thousands of logits it would leave some hundred different ones."""
    scorer = build_scorer(name, D, **settings)
    q, p = (torch.randn(60, D, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    if precision != "autocast":
        q, p = q.bfloat16(), p.bfloat16()
    if precision == "weights":
        scorer.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        found = scorer.matrix(q, p, "symmetric")
        left, right = scorer.query_cache(q), scorer.passage_cache(p)
        pairs = scorer.pairs_cached(left.repeat_interleave(60, 0), right.repeat(60, 1), "symmetric").view(60, 60)
    assert found.dtype == pairs.dtype == torch.float32
    assert len(found.unique()) > 3000 and len(found.bfloat16().unique()) < 2000
    torch.testing.assert_close(found, pairs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("iem", {"activation": "gelu"}, "activation is one of relu, squared_relu, found 'gelu'"),
        ("iem", {"init": "zero"}, "init is one of"),
        ("iem", {"branches": "one"}, "branches is one of"),
        ("iem", {"skip": "dot"}, "skip is one of"),
        ("iem", {"hidden": 1, "init": "matcher"}, "at least 2, found 1"),
        ("iem", {"width": 3}, "iem.*'width'"),
        ("cosin", {}, "unknown 'cosin'.*nearest: cosine"),
    ],
)
def test_refuses(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_scorer(name, D, **settings)


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_refuses_an_unknown_mode(name, settings):
    scorer, (q, p) = built(name, **settings), vectors(m=N)
    for call in (scorer.pairs, scorer.matrix, *([scorer.features] if name == "iem" else [])):
        with pytest.raises(ValueError, match="symmetric, asymmetric, found 'both'"):
            call(q, p, "both")
