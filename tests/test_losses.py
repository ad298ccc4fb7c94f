"""The losses against naive loops in float64, gradient checks, masks, and degenerate input."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import tensor

from d2llm.methods.d2llm.losses.ci import contrastive_imitation
from d2llm.methods.d2llm.losses.fi import cosine_matrix, feature_imitation
from d2llm.methods.d2llm.losses.ri_ehn import rank_imitation_easy
from d2llm.methods.d2llm.losses.ri_phn import rank_imitation_hard
from d2llm.methods.losses import in_batch_contrast, info_nce, off_diagonal, weighted_total
from d2llm.models.fast import token_loss

B, K, E, H = 5, 4, 3, 6
HARD = tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]]).bool()
EASY = tensor([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]]).bool()
MASKS = {"hard": HARD, "easy": EASY}
STUDENT = ("z_p", "z_h", "z_e")


@pytest.fixture
def data():
    """Student logits z, teacher probabilities p and features t in float64: positive, hard and easy, (B, B) in-batch."""
    torch.manual_seed(5)
    shapes = {"z_p": (B,), "z_h": (B, K), "z_e": (B, E), "square": (B, B), "t": (B, K, 2 * H)}
    values = {name: torch.randn(*shape).double() * 2 for name, shape in shapes.items()}
    return values | {f"p_{side}": torch.rand_like(values[f"z_{side}"]) for side in "phe"}


def features(z_h):
    """Student features that depend on the logits."""
    return torch.stack([z_h, z_h**2, z_h + 1], -1)


def losses(data, hard=None, easy=None):
    """Every loss as a function of the student's logits (z_p, z_h, z_e)."""
    d = SimpleNamespace(**data)
    target = cosine_matrix(d.t)
    return {
        "ci": lambda z_p, z_h, z_e: contrastive_imitation(z_p, z_h, d.p_p, d.p_h, 0.5, hard),
        "ci_joint": lambda z_p, z_h, z_e: contrastive_imitation(z_p, z_h, d.p_p, d.p_h, 0.5, hard, z_e, easy),
        "info_nce": lambda z_p, z_h, z_e: info_nce(z_p, z_h, z_e, 0.5, hard, easy),
        "ri_phn": lambda z_p, z_h, z_e: rank_imitation_hard(z_h, d.p_h, hard),
        "ri_phn_batch": lambda z_p, z_h, z_e: rank_imitation_hard(z_h, d.p_h, hard, over="batch"),
        "ri_ehn": lambda z_p, z_h, z_e: rank_imitation_easy(z_h, z_e, d.p_h, d.p_e, hard, easy),
        "fi": lambda z_p, z_h, z_e: feature_imitation(target, cosine_matrix(features(z_h)), hard),
    }


# How many of the five queries a loss is defined for under the masks: those with a competitor, a ranking, a pair.
VALID = {"ci": 4, "ci_joint": 5, "info_nce": 5, "ri_phn": 3, "ri_phn_batch": 1, "ri_ehn": 3, "fi": 3}
every_loss = pytest.mark.parametrize("name", VALID)


def value(data, name, **masks):
    """A loss of the fixture's data."""
    return losses(data, **masks)[name](*(data[key] for key in STUDENT)).item()


def leaves(data):
    return [data[key].clone().requires_grad_() for key in STUDENT]


# ------------------------------------------------------------------------------------------- naive references (loops)
def mean(values):
    return sum(values) / len(values)


def softmax_loss(positive, competitors, temperature=0.5):
    scores = [math.exp(z / temperature) for z in (positive, *competitors)]
    return -math.log(scores[0] / sum(scores))


def pearson(x, y):
    x, y = [a - mean(x) for a in x], [b - mean(y) for b in y]
    return cosine(x, y)


def cosine(x, y):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def loop(data, name, row):
    """A loss of one query over what the masks keep, in plain floats; None where it is not defined."""
    d = SimpleNamespace(**{key: part[row].tolist() for key, part in data.items()})
    hard = [k for k in range(K) if HARD[row, k]]
    easy = [e for e in range(E) if EASY[row, e]]
    if name == "fi":
        own = features(data["z_h"])[row].tolist()
        pairs = [(cosine(d.t[a], d.t[b]) - cosine(own[a], own[b])) ** 2 for a in hard for b in hard]
        return mean(pairs) if len(hard) > 1 else None
    if name == "ri_phn":
        return 1 - pearson([d.z_h[k] for k in hard], [d.p_h[k] for k in hard]) if len(hard) > 1 else None
    if name == "ri_ehn":
        pairs = [
            max(0.0, d.p_h[h] - d.p_e[e]) * -math.log(1 / (1 + math.exp(d.z_e[e] - d.z_h[h])))
            for h in hard
            for e in easy
        ]
        return mean(pairs) if pairs else None
    weighed = name != "info_nce"
    competitors = [(1 - d.p_h[k]) * d.z_h[k] if weighed else d.z_h[k] for k in hard]
    competitors += [] if name == "ci" else [d.z_e[e] for e in easy]  # weight 1, whatever the teacher thinks
    return softmax_loss(d.p_p * d.z_p if weighed else d.z_p, competitors) if competitors else None


@every_loss
def test_matches_loop(data, name):
    if name == "ri_phn_batch":
        rows = [1 - pearson(data["z_h"][HARD].tolist(), data["p_h"][HARD].tolist())]
    else:
        rows = [result for result in (loop(data, name, row) for row in range(B)) if result is not None]
    assert len(rows) == VALID[name]
    assert value(data, name, **MASKS) == pytest.approx(mean(rows), rel=1e-12)


def test_in_batch_contrast_matches_loop_and_cross_entropy(data):
    square, mask = data["square"], torch.ones(B, B).bool()
    plain = torch.nn.functional.cross_entropy(square / 0.2, torch.arange(B))
    assert in_batch_contrast(square, 0.2).item() == pytest.approx(plain.item(), rel=1e-12)
    mask[0, 2] = mask[4, 1] = False  # two passages that are right for another query as well
    mask[1] = False  # nothing left: no part of the mean; its diagonal entry counts for nothing
    rows = [
        softmax_loss(square[i, i].item(), [square[i, j].item() for j in range(B) if j != i and mask[i, j]])
        for i in (0, 2, 3, 4)
    ]
    assert in_batch_contrast(square, 0.5, mask).item() == pytest.approx(mean(rows), rel=1e-12)


def test_a_large_loss_does_not_saturate():
    """−log softmax of [−1e4, 1e4] at the first = 2e4, and −log σ(−2e4) = 2e4, so that the gradient pulls."""
    for loss in (
        info_nce(tensor([-1e4]), tensor([[1e4]])),
        rank_imitation_easy(tensor([[-1e4]]), tensor([[1e4]]), torch.ones(1, 1), torch.zeros(1, 1)),
    ):
        assert loss.item() == pytest.approx(2e4)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_off_diagonal(size):
    matrix = torch.arange(size * size).view(size, size)
    assert off_diagonal(matrix).tolist() == [[size * i + j for j in range(size) if j != i] for i in range(size)]


# -------------------------------------------------------------------------------------------------- degenerate input
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1.0])
def test_rank_imitation_hard_without_variance(dtype, constant):
    """A constant row (of student or of teacher) adds a loss of 1 and no gradient; its neighbour is untouched."""
    flat, varied = torch.full((9,), constant, dtype=dtype), torch.linspace(0, 1, 9, dtype=dtype)
    expected = 1 - pearson(varied.square().tolist(), varied.tolist())
    for student, teacher in ((flat, varied), (varied, flat), (flat, flat)):
        z = torch.stack([student, varied.square()]).requires_grad_()
        loss = rank_imitation_hard(z, torch.stack([teacher, varied]))
        assert loss.item() == pytest.approx((1 + expected) / 2, abs=1e-6)
        loss.backward()
        assert not z.grad[0].any() and z.grad[1].any() and z.grad.isfinite().all()


def test_cosine_matrix_of_a_dead_feature():
    rows = torch.zeros(1, 3, 4)
    rows[0, :2, 1] = 2.0
    cosines = cosine_matrix(rows.requires_grad_())
    assert cosines.tolist() == [[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]
    feature_imitation(torch.full((1, 3, 3), 0.5), cosines).backward()
    assert rows.grad.isfinite().all() and not rows.grad[0, 2].any()


# -------------------------------------------------------------------------------------------- every loss, as one family
@every_loss
@pytest.mark.parametrize("masks", [{}, MASKS], ids=["all", "masked"])
def test_gradient(data, name, masks):
    assert torch.autograd.gradcheck(losses(data, **masks)[name], tuple(leaves(data)))


@every_loss
def test_masked_entries_contribute_nothing(data, name):
    """Whatever stands behind a mask, NaN and inf included: the same value, and no gradient there."""
    results = []
    for junk in (0.0, 1e4, math.inf, math.nan):
        if name == "fi" and not math.isfinite(junk):
            continue  # features, not logits, are its input: below
        spoiled = dict(data)
        for key, mask in (("z_h", HARD), ("p_h", HARD), ("z_e", EASY), ("p_e", EASY)):
            spoiled[key] = data[key].masked_fill(~mask, junk)
        inputs = leaves(spoiled)
        loss = losses(spoiled, **MASKS)[name](*inputs)
        loss.backward()
        gradients = [torch.zeros(1) if z.grad is None else z.grad for z in inputs]
        for gradient, mask in zip(gradients[1:], (HARD, EASY), strict=True):
            assert not gradient.expand_as(mask)[~mask].any()
        results.append((loss.item(), *(gradient.sum().item() for gradient in gradients)))
    assert all(result == results[0] for result in results)


def test_feature_imitation_masks_what_is_not_finite():
    student, teacher = torch.randn(2, 1, 3, 3)
    clean = feature_imitation(teacher[:, :2, :2], student[:, :2, :2])
    teacher[:, 2], teacher[:, :, 2] = math.nan, math.inf
    assert feature_imitation(teacher, student, tensor([[True, True, False]])).item() == clean.item()


@every_loss
@pytest.mark.parametrize("probability", ["extreme", "tiny"])
@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
def test_large_logits_and_sure_teachers_stay_finite(data, name, probability, size):
    single = {key: part.float() for key, part in data.items()}
    for key in ("p_p", "p_h", "p_e"):
        single[key] = single[key].round() if probability == "extreme" else single[key] * 1e-30
    inputs = [(single[key].sign() * size).requires_grad_() for key in STUDENT]
    loss = losses(single)[name](*inputs)
    loss.backward()
    assert loss.isfinite() and all(z.grad is None or z.grad.isfinite().all() for z in inputs)


@every_loss
def test_nothing_to_learn_from_is_a_differentiable_zero(data, name):
    inputs = leaves(data)
    loss = losses(data, hard=torch.zeros(B, K).bool(), easy=torch.zeros(B, E).bool())[name](*inputs)
    assert loss.item() == 0.0 and loss.shape == ()
    loss.backward()
    assert all(z.grad is None or not z.grad.any() for z in inputs)


def test_empty_shapes():
    z, none = torch.randn(3, requires_grad=True), torch.zeros(3, 0)
    for loss in (
        contrastive_imitation(z, none, torch.rand(3), none),
        info_nce(z),
        info_nce(z, none, None),
        info_nce(z[:0], none[:0]),
        in_batch_contrast(z[:1, None]),
        rank_imitation_hard(z[:, None], torch.rand(3, 1)),
        rank_imitation_hard(z[:, None][:, :0], none),
        rank_imitation_easy(z[:, None], none, torch.rand(3, 1), none),
        rank_imitation_easy(none * z[:, None], none, none, none),
        feature_imitation(torch.ones(3, 1, 1), cosine_matrix(z[:, None, None])),
    ):
        assert loss.item() == 0.0
        loss.backward()
    # No negatives but others: the others alone.
    joint = contrastive_imitation(z, none, torch.ones(3), none, others=torch.ones(3, 2))
    assert joint.item() == pytest.approx(info_nce(z, torch.ones(3, 2)).item())


@every_loss
def test_half_precision_is_computed_in_float32(data, name):
    half = {key: part.bfloat16() for key, part in data.items()}
    loss = losses(half)[name](*(half[key] for key in STUDENT))
    assert loss.dtype == torch.float32
    exact = value({key: part.float() for key, part in half.items()}, name)
    assert loss.item() == pytest.approx(exact, rel=2e-2 if name == "fi" else 1e-6)  # fi's features are made in half


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: off_diagonal(torch.zeros(2, 3)), r"square.*\(2, 3\)"),
        (lambda: info_nce(torch.zeros(5), torch.zeros(5, 4), temperature=0), "temperature must be above 0, found 0"),
        (lambda: info_nce(torch.zeros(5), torch.zeros(5, 4), mask=EASY), r"mask \(5, 3\) does not fit .*\(5, 4\)"),
        (lambda: rank_imitation_hard(torch.zeros(2, 3), torch.zeros(2, 3), over="row"), "row"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------------------------- weighted_total
def test_weight_zero_removes_exactly_its_term():
    def never():
        raise AssertionError("a term of weight 0 was computed")

    x = tensor(2.0, requires_grad=True)
    terms = {"ci": x, "ri": x * math.inf, "fi": lambda: tensor(3.0), "cl": never}
    total = weighted_total(terms, {"ci": 1.0, "ri": 0.0, "fi": 0.5, "cl": 0})
    assert {name: term.item() for name, term in total.items()} == {"ci": 2.0, "fi": 1.5}
    sum(total.values()).backward()
    assert x.grad.item() == 1.0


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        (["ci"], {"ci": 1.0, "fi": 0.1}, "'fi' has weight 0.1 but no term"),  # two ablations were identical once
        (["ci", "fi"], {"ci": 1.0}, "'fi' has no weight"),
        (["ci"], {"ci": -1.0}, "found -1.0"),
        (["ci"], {"ci": math.nan}, "found nan"),
    ],
)
def test_weighted_total_refuses(terms, weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_total(dict.fromkeys(terms, tensor(1.0)), weights)


def test_a_loss_over_a_large_vocabulary_is_the_same_in_parts(monkeypatch) -> None:
    head, targets = torch.nn.Linear(8, 50), torch.arange(23) * 2
    states = torch.randn(23, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = torch.nn.functional.cross_entropy(head(states), targets)
    gradients = torch.autograd.grad(expected, [states, head.weight])
    monkeypatch.setattr(token_loss, "AT_ONCE", 100)
    monkeypatch.setattr(token_loss, "PART", 250)
    seen = []
    head.register_forward_hook(lambda _, __, logits: seen.append(len(logits)))
    loss = token_loss.token_loss(head, states, targets, 50)
    torch.testing.assert_close(loss, expected)
    for own, other in zip(torch.autograd.grad(loss, [states, head.weight]), gradients, strict=True):
        torch.testing.assert_close(own, other)
    assert max(seen) == 5 and sum(seen) == 2 * 23
