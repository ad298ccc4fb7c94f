"""The scorers against the concatenation formula in float64, and what the matcher initialisation promises."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from d2llm.models.parts import build_scorer
from d2llm.models.scorers.iem import IEM
from d2llm.run.errors import ConfigError

D, N, M = 6, 5, 8
KINDS = [
    ("iem", {"hidden": 9}),
    ("iem", {"hidden": 9, "activation": "squared_relu"}),
    ("iem", {"hidden": 9, "branches": "shared", "skip": "cosine"}),
    ("iem", {"hidden": 9, "inputs": "compared", "order": "average", "skip": "cosine", "block_bytes": 8 * 48 * 3}),
    ("iem", {"hidden": 9, "order": "average"}),
    ("cosine", {}),
    ("dot", {}),
    ("bilinear", {}),
    ("bilinear_modes", {}),
    ("maxsim", {"size": 2}),
    ("hypernetwork", {"layers": 2}),
    ("hypernetwork", {"layers": 1, "block_bytes": 0}),
    # Blocks of so many pairs: the caches of an IEM are 9 numbers wide, a pair of texts has 9 products of tokens.
    *(("iem", {"hidden": 9, "skip": "cosine", "block_bytes": 8 * 2 * 9 * pairs}) for pairs in (0, 3, 8, 17)),
    ("maxsim", {"size": 2, "block_bytes": 8 * 9 * 3}),
]
every_kind = pytest.mark.parametrize(("name", "settings"), KINDS)
both_modes = pytest.mark.parametrize("mode", ["symmetric", "asymmetric"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(11)


def normed(*shape):
    return nn.functional.layer_norm(torch.randn(*shape), shape[-1:])


def vectors(size=D, n=N, m=M, dtype=torch.float64):
    return torch.randn(n, size, dtype=dtype), torch.randn(m, size, dtype=dtype)


def built(name, **settings):
    """A scorer in float64 with random parameters, biases included."""
    scorer = build_scorer(name, D, **settings).double()
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.normal_(0, 0.7)
    return scorer


def branch_of(iem, mode, q, p):
    """Pair feature of one pair, by the formula over the concatenation (as the release computes it)."""

    def one(q, p):
        x = iem.first(torch.cat([q, p]))
        if iem.compared is not None:
            x = x + iem.compared(torch.cat([(q - p).abs(), q * p]))
        x = torch.relu(x)
        return torch.relu(iem.branches["shared" if "shared" in iem.branches else mode](x * x if iem.squared else x))

    return (one(q, p) + one(p, q)) / 2 if iem.average and mode == "symmetric" else one(q, p)


def hyper_score(scorer, states, p):
    """The released code's network of one query, a row of weights at a time."""

    def row(rows, k):
        shares = torch.stack([rows.query[k] @ rows.key(x) / math.sqrt(D) for x in states]).softmax(0)
        context = torch.relu(sum(share * rows.value(x) for share, x in zip(shares, states, strict=True)))
        return rows.output(nn.functional.layer_norm(context, (D,))) + rows.base[k]

    for number, (weights, bias) in enumerate(zip(scorer.weights, scorer.biases, strict=True), 1):
        y = torch.stack([row(weights, k) @ p + row(bias, 0)[k] for k in range(D)])
        y = nn.functional.layer_norm(torch.relu(y), (D,))
        p = y if number == len(scorer.weights) else y + p
    return row(scorer.last, 0) @ p


def naive(scorer, q, p, mode):
    if scorer.name == "iem":
        logit, skip = scorer.head(branch_of(scorer, mode, q, p))[0], scorer.skip_weight
        return logit if skip is None else logit + skip * (q @ p) / (q.norm() * p.norm())
    if scorer.name == "bilinear":
        return q @ scorer.weight @ p
    if scorer.name == "bilinear_modes":
        return q @ scorer.weights[mode] @ p
    if scorer.name == "hypernetwork":
        return hyper_score(scorer, [state for state in q.split(D) if state.any()], p[:D])
    if scorer.name == "maxsim":
        left, right = ([token for token in side.split(scorer.size) if token.any()] for side in (q, p))
        return sum((max(a @ b for b in right) for a in left if right), torch.zeros(()))
    return (q @ p) if scorer.name == "dot" else (q @ p) / (q.norm() * p.norm())


def naive_matrix(scorer, q, p, mode="symmetric"):
    return torch.tensor([[naive(scorer, a, b, mode).item() for b in p] for a in q.detach()], dtype=torch.float64)


@both_modes
@every_kind
@pytest.mark.parametrize("grad", [True, False])
def test_matrix_pairs_features_and_caches_match_the_formula(name, settings, mode, grad):
    """The caches are all that is needed, and stay unchanged: arithmetic in place is on copies."""
    scorer, (q, p) = built(name, **settings), vectors()
    expected = naive_matrix(scorer, q, p, mode)
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    with torch.set_grad_enabled(grad):
        query, passage = scorer.query_cache(q), scorer.passage_cache(p)
        before = query.clone(), passage.clone()
        for matrix in (scorer.matrix(q, p, mode), scorer.matrix_cached(query, passage, mode)):
            close(matrix, expected)
        for pairs in (scorer.pairs(q, p[:N], mode), scorer.pairs_cached(query, passage[:N], mode)):
            close(pairs, expected.diagonal())
        assert torch.equal(query, before[0]) and torch.equal(passage, before[1])
        # Sides without any text.
        assert scorer.matrix(q[:0], p, mode).shape == (0, M) and scorer.matrix(q, p[:0], mode).shape == (N, 0)
        assert scorer.pairs(q[:0], p[:0], mode).shape == (0,)
        if name == "iem":
            close(scorer.features(q, p[:N], mode), torch.stack(list(map(partial(branch_of, scorer, mode), q, p))))
            more = {("skip", "cosine"): D, ("inputs", "compared"): D, ("order", "average"): 9}
            assert passage.shape == (M, 9 + sum(size for key, size in more.items() if key in settings.items()))
            assert sum(scorer.cache_parts(passage.shape[1])) == passage.shape[1]


@pytest.mark.parametrize("pairs_a_block", [0, 3, 8, 1000])
def test_tokens_that_are_not_there_match_nothing(pairs_a_block):
    """Between texts of unequal lengths, whatever the sign of the products; on either side of the text; none at all."""
    q, p = -vectors()[0].abs(), vectors()[1].abs()  # all products are negative: a zero token would win
    q[0, 4:], q[1, :4], p[2, 2:], p[3, :2], p[4] = 0, 0, 0, 0, 0
    scorer = build_scorer("maxsim", D, size=2, block_bytes=pairs_a_block * 9 * 8)
    expected = naive_matrix(scorer, q.requires_grad_(), p)
    assert (expected < 0).all(0).tolist() == [True] * 4 + [False] + [True] * 3
    matrix = scorer.matrix(q, p, "symmetric")
    torch.testing.assert_close(matrix, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(scorer.pairs(q, p[:N], "symmetric"), expected.diagonal(), rtol=1e-6, atol=1e-8)
    (gradient,) = torch.autograd.grad(matrix.square().sum(), q)
    assert gradient.isfinite().all() and gradient[2:].any()
    assert scorer.cache_parts(D) == (2, 2, 2)


@pytest.mark.parametrize("block_bytes", [0, None])
def test_a_network_reads_the_states_that_there_are(block_bytes):
    """Of queries of three, two and one states; of a passage its first state alone, which is all an index keeps."""
    scorer = built("hypernetwork", layers=2, block_bytes=block_bytes)
    q, p = vectors(3 * D, 3, 4)
    q[1, 2 * D :] = q[2, D:] = 0
    torch.testing.assert_close(scorer.matrix(q, p, "symmetric"), naive_matrix(scorer, q, p), rtol=1e-9, atol=1e-9)
    assert torch.equal(scorer.passage_cache(p), p[:, :D])


def test_blocks_bound_the_memory():
    scorer, (q, p) = IEM(D, hidden=16, block_bytes=4096), vectors(n=40, m=50, dtype=torch.float32)
    rows, memory, branch = [], set(), scorer._branch

    def watched(x, mode, out=None):
        rows.append(len(x))
        memory.update(part.untyped_storage().data_ptr() for part in (x, out))
        return branch(x, mode, out)

    scorer._branch = watched
    with torch.no_grad():
        scorer.matrix(q, p, "symmetric")
    assert sum(rows) == 40 * 50 and max(rows) * 16 * 4 * 2 <= 4096 and len(memory) == 2  # which all blocks share


def test_blocks_leave_to_autocast_and_autograd_what_is_theirs():
    """Autograd keeps every block's values, and autocast computes in another type than the block's memory has."""
    scorer, (q, p) = IEM(D, hidden=16, block_bytes=4096), vectors(n=40, m=50, dtype=torch.float32)
    with torch.no_grad():
        exact = scorer.matrix(q, p, "symmetric")
        query, passage = scorer.query_cache(q), scorer.passage_cache(p)  # float32, as an index holds them
        with torch.autocast("cpu", torch.bfloat16):
            rough = scorer.matrix_cached(query, passage, "symmetric")
            pairs = scorer.pairs_cached(query.repeat_interleave(50, 0), passage.repeat(40, 1), "symmetric")
    torch.testing.assert_close(rough.flatten(), pairs, rtol=0, atol=1e-6)  # the branch too ran in autocast's type
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()
    matrix, weight = scorer.matrix(q, p, "symmetric"), scorer.first.weight
    torch.testing.assert_close(matrix, exact, rtol=1e-6, atol=1e-6)
    pairs = scorer.pairs(q.repeat_interleave(50, 0), p.repeat(40, 1), "symmetric")
    gradients = [torch.autograd.grad(scores.sum(), weight)[0] for scores in (matrix, pairs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@every_kind
def test_gradient(name, settings):
    scorer, (q, p) = built(name, **settings), vectors(n=3, m=4)
    inputs = q.requires_grad_(), p.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: scorer.matrix(a, b, "symmetric"), inputs)
    zeros = torch.zeros(2, D, dtype=torch.float64, requires_grad=True)
    scores = scorer.matrix(zeros, p, "symmetric")
    scores.sum().backward()
    assert scores.isfinite().all() and zeros.grad.isfinite().all()


def test_random_init_is_the_release_s():
    iem = IEM(64, hidden=512)
    bound = math.sqrt(6 / (2 * 64 + 512))  # Xavier: fan in 2d, fan out h
    assert iem.first.weight.abs().max() <= bound
    assert iem.first.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    layers = ("first", "branches.symmetric", "branches.asymmetric", "head")
    assert set(iem.state_dict()) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


# ---------------------------------------------------------------------------------------------------------- the matcher
both_activations = pytest.mark.parametrize("activation", ["relu", "squared_relu"])
# hidden > 2d, = 2d, far below it (random directions), odd
every_shape = pytest.mark.parametrize(("size", "hidden"), [(48, 512), (256, 512), (1024, 512), (48, 97)])


@both_modes
@pytest.mark.parametrize(("size", "hidden"), [(48, 512), (256, 512), (32, 64), (32, 65)])
def test_matcher_starts_as_the_distance(size, hidden, mode):
    q, p = normed(20, size), normed(20, size)
    squared = IEM(size, hidden, activation="squared_relu", init="matcher").matrix(q, p, mode)
    plain = IEM(size, hidden, activation="relu", init="matcher").matrix(q, p, mode)
    distance, city = torch.cdist(q, p).square(), torch.cdist(q, p, p=1)
    cosine = nn.functional.cosine_similarity(q[:, None], p[None], dim=-1)
    for logits, expected in (
        (squared, 10 * (1 - distance / (2 * size))),
        (squared, 10 * cosine),
        (plain, 10 * (1 - math.sqrt(math.pi) / 2 * city / size)),
    ):
        torch.testing.assert_close(logits, expected, rtol=0, atol=0.6)


def test_matcher_random_directions_keep_distances_and_repeat_themselves():
    """hidden < 2d: R has orthogonal rows of norm √(d / count), so ‖R x‖² = ‖x‖² in the mean."""
    iem = IEM(64, hidden=40, init="matcher")
    directions = iem.first.weight[:20, :64]
    torch.testing.assert_close(directions @ directions.T, torch.eye(20) * 64 / 20, rtol=0, atol=1e-4)
    torch.testing.assert_close(iem.first.weight[:20, 64:], -directions)
    torch.testing.assert_close(iem.first.weight[20:, :64], -directions)
    torch.manual_seed(11)
    again = IEM(64, hidden=40, init="matcher").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in iem.state_dict().items())


@both_activations
@every_shape
def test_matcher_can_learn(size, hidden, activation):
    """No dead parameter: every unit of every layer gets a gradient within two steps (the head of spare units is 0 in
    the first)."""
    iem = IEM(size, hidden, activation=activation, init="matcher")
    optimizer = torch.optim.SGD(iem.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        logits = iem.matrix(normed(64, size), normed(64, size), "symmetric")
        logits.log_softmax(1).diagonal().mean().neg().backward()
        optimizer.step()
    for name, parameter in iem.named_parameters():
        if "asymmetric" not in name:
            alive = parameter.grad.flatten(1).abs().amax(1) if parameter.dim() > 1 else parameter.grad.abs()
            assert (alive > 0).float().mean() > 0.99, name


# ----------------------------------------------------------------------------------------------------------------- rest
def test_bilinear_starts_as_scaled_cosine_of_normed_vectors():
    q, p = normed(4, 64), normed(4, 64)
    scores = build_scorer("bilinear", 64).pairs(q, p, "symmetric")
    torch.testing.assert_close(scores, 10 * nn.functional.cosine_similarity(q, p), rtol=1e-3, atol=1e-3)


@every_kind
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
        matrix = scorer.matrix(q, p, "symmetric")
        left, right = scorer.query_cache(q), scorer.passage_cache(p)
        pairs = scorer.pairs_cached(left.repeat_interleave(60, 0), right.repeat(60, 1), "symmetric").view(60, 60)
    assert matrix.dtype == pairs.dtype == torch.float32
    assert len(matrix.unique()) > 3000 and len(matrix.bfloat16().unique()) < 2000
    torch.testing.assert_close(matrix, pairs, rtol=1e-4, atol=1e-4)
    if precision == "vectors":
        exact = naive_matrix(scorer.double(), q[:6].double(), p[:6].double())
        torch.testing.assert_close(matrix[:6, :6].double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("iem", {"activation": "gelu"}, "activation is one of relu, squared_relu, found 'gelu'"),
        ("iem", {"hidden": 1, "init": "matcher"}, "at least 2, found 1"),
        ("iem", {"width": 3}, "iem.*'width'"),
        ("maxsim", {"size": 0}, "size must be at least 1"),
        ("hypernetwork", {"layers": 0}, "layers must be at least 1"),
        ("cosin", {}, "unknown 'cosin'.*nearest: cosine"),
    ],
)
def test_refuses(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_scorer(name, D, **settings)


@every_kind
def test_refuses_an_unknown_mode_and_features_there_are_not(name, settings):
    scorer, (q, p) = built(name, **settings), vectors(m=N)
    for call in (scorer.pairs, scorer.matrix, *([scorer.features] if name == "iem" else [])):
        with pytest.raises(ValueError, match="symmetric, asymmetric, found 'both'"):
            call(q, p, "both")
    if name != "iem":
        with pytest.raises(ConfigError, match=f"scorer {name} has no pair features: set gamma"):
            scorer.features(q, p, "symmetric")
