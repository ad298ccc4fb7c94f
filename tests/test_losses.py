"""The losses against naive loops in float64, hand-worked numbers, gradient checks, invariances and degenerate input."""

import math

import pytest
import torch

from d2llm.methods.d2llm.losses.ci import contrastive_imitation
from d2llm.methods.d2llm.losses.fi import cosine_matrix, feature_imitation
from d2llm.methods.d2llm.losses.ri_ehn import rank_imitation_easy
from d2llm.methods.d2llm.losses.ri_phn import rank_imitation_hard
from d2llm.methods.losses import in_batch_contrast, info_nce, off_diagonal, weighted_total

B, K, E, H = 5, 4, 3, 6


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(5)


@pytest.fixture
def data():
    """Random logits, probabilities and masks in float64, every row with some entries on and some off."""
    g = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64) * 2

    def uniform(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    hard_mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.bool)
    easy_mask = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
    return {
        "z_p": normal(B), "z_h": normal(B, K), "z_e": normal(B, E), "square": normal(B, B),
        "p_p": uniform(B), "p_h": uniform(B, K), "p_e": uniform(B, E), "hard_mask": hard_mask, "easy_mask": easy_mask,
    }  # fmt: skip


# ------------------------------------------------------------------------------- naive references (plain floats, loops)


def naive_softmax_loss(positive, competitors, temperature):
    numerator = math.exp(positive / temperature)
    return -math.log(numerator / (numerator + sum(math.exp(c / temperature) for c in competitors)))


def naive_pearson(x, y):
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))


def kept(values, mask):
    return [v for v, m in zip(values.tolist(), mask.tolist(), strict=True) if m]


def mean(values):
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------------------------------------- CI


def test_contrastive_imitation_matches_loop(data):
    rows = []
    for i in range(B):
        negatives = [
            (1 - p) * z
            for z, p in zip(
                kept(data["z_h"][i], data["hard_mask"][i]), kept(data["p_h"][i], data["hard_mask"][i]), strict=True
            )
        ]
        if negatives:
            rows.append(naive_softmax_loss(float(data["p_p"][i] * data["z_p"][i]), negatives, 0.7))
    assert len(rows) == 4  # row 3 has no negative and is no part of the mean
    found = contrastive_imitation(data["z_p"], data["z_h"], data["p_p"], data["p_h"], 0.7, mask=data["hard_mask"])
    assert found.item() == pytest.approx(mean(rows), rel=1e-12)


def test_contrastive_imitation_with_others_matches_loop(data):
    rows = []
    for i in range(B):
        negatives = [
            (1 - p) * z
            for z, p in zip(
                kept(data["z_h"][i], data["hard_mask"][i]), kept(data["p_h"][i], data["hard_mask"][i]), strict=True
            )
        ]
        negatives += kept(data["z_e"][i], data["easy_mask"][i])  # weight 1, whatever the teacher thinks
        if negatives:
            rows.append(naive_softmax_loss(float(data["p_p"][i] * data["z_p"][i]), negatives, 0.7))
    assert len(rows) == B  # row 3 now has competitors
    found = contrastive_imitation(
        data["z_p"], data["z_h"], data["p_p"], data["p_h"], 0.7, data["hard_mask"], data["z_e"], data["easy_mask"]
    )
    assert found.item() == pytest.approx(mean(rows), rel=1e-12)


def test_contrastive_imitation_by_hand():
    # p̂_p·z_p = 0.5·2 = 1; (1 − p̂_k)·z_k: (1 − 0.75)·4 = 1 and (1 − 1)·9 = 0; τ = 0.5 doubles them: 2, 2, 0
    # −log e²/(e² + e² + e⁰) = log(2 + e⁻²) = log(2.135335283) = 0.758624
    found = contrastive_imitation(
        torch.tensor([2.0]), torch.tensor([[4.0, 9.0]]), torch.tensor([0.5]), torch.tensor([[0.75, 1.0]]), 0.5
    )
    assert found.item() == pytest.approx(math.log(2 + math.exp(-2)), rel=1e-6)
    assert found.item() == pytest.approx(0.758624, abs=1e-6)


def test_contrastive_imitation_teacher_sure_of_everything_is_info_nce(data):
    # p̂_p = 1 and p̂_k = 0 leave the logits as they are.
    found = contrastive_imitation(data["z_p"], data["z_h"], torch.ones(B).double(), torch.zeros(B, K).double(), 0.3)
    assert found.item() == pytest.approx(info_nce(data["z_p"], data["z_h"], temperature=0.3).item(), rel=1e-12)


# ------------------------------------------------------------------------------------------------------- CL and InfoNCE


def test_in_batch_contrast_matches_loop_and_cross_entropy(data):
    square = data["square"]
    rows = [
        naive_softmax_loss(float(square[i, i]), [float(square[i, j]) for j in range(B) if j != i], 0.2)
        for i in range(B)
    ]
    found = in_batch_contrast(square, 0.2)
    assert found.item() == pytest.approx(mean(rows), rel=1e-12)
    assert found.item() == pytest.approx(
        torch.nn.functional.cross_entropy(square / 0.2, torch.arange(B)).item(), rel=1e-12
    )


def test_in_batch_contrast_mask(data):
    square, mask = data["square"], torch.ones(B, B, dtype=torch.bool)
    mask[0, 2] = mask[4, 1] = False  # two passages that are right for another query as well
    mask[1] = False  # nothing left: no part of the mean; its diagonal entry counts for nothing
    rows = []
    for i in (0, 2, 3, 4):
        rows.append(
            naive_softmax_loss(
                float(square[i, i]), [float(square[i, j]) for j in range(B) if j != i and mask[i, j]], 1.0
            )
        )
    assert in_batch_contrast(square, mask=mask).item() == pytest.approx(mean(rows), rel=1e-12)


def test_info_nce_matches_loop(data):
    rows = []
    for i in range(B):
        competitors = kept(data["z_h"][i], data["hard_mask"][i]) + kept(data["z_e"][i], data["easy_mask"][i])
        rows.append(naive_softmax_loss(float(data["z_p"][i]), competitors, 0.05))
    found = info_nce(data["z_p"], data["z_h"], data["z_e"], 0.05, data["hard_mask"], data["easy_mask"])
    assert found.item() == pytest.approx(mean(rows), rel=1e-12)


def test_info_nce_by_hand():
    # log(1 + e^(1−3) + e^(2−3)) = log(1 + 0.135335 + 0.367879) = log 1.503215 = 0.407606
    found = info_nce(torch.tensor([3.0]), torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    assert found.item() == pytest.approx(0.407606, abs=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_off_diagonal(size):
    matrix = torch.arange(size * size).view(size, size)
    assert off_diagonal(matrix).tolist() == [[size * i + j for j in range(size) if j != i] for i in range(size)]


def test_off_diagonal_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"square.*\(2, 3\)"):
        off_diagonal(torch.zeros(2, 3))


# --------------------------------------------------------------------------------------------------------------- RI-PHN


def test_rank_imitation_hard_matches_loop(data):
    rows = []
    for i in range(B):
        x, y = kept(data["z_h"][i], data["hard_mask"][i]), kept(data["p_h"][i], data["hard_mask"][i])
        if len(x) >= 2:
            rows.append(1 - naive_pearson(x, y))
    assert len(rows) == 3  # rows 2 and 3 have one entry and none
    found = rank_imitation_hard(data["z_h"], data["p_h"], data["hard_mask"])
    assert found.item() == pytest.approx(mean(rows), rel=1e-12)


def test_rank_imitation_hard_over_batch_matches_loop(data):
    mask = data["hard_mask"].flatten()
    expected = 1 - naive_pearson(kept(data["z_h"].flatten(), mask), kept(data["p_h"].flatten(), mask))
    assert rank_imitation_hard(data["z_h"], data["p_h"], data["hard_mask"], over="batch").item() == pytest.approx(
        expected, rel=1e-12
    )


def test_rank_imitation_hard_by_hand():
    # z = 1, 2, 3 (centred −1, 0, 1), p̂ = 0.2, 0.9, 0.4 (mean 0.5; centred −0.3, 0.4, −0.1)
    # covariance 0.3 − 0.1 = 0.2; norms √2 and √(0.09 + 0.16 + 0.01) = √0.26; r = 0.2/√0.52 = 0.277350
    found = rank_imitation_hard(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.2, 0.9, 0.4]]))
    assert found.item() == pytest.approx(1 - 0.277350, abs=1e-6)


def test_rank_imitation_hard_is_affine_invariant_per_query_only(data):
    scale, shift = torch.rand(B, 1).double() * 1e6 + 1e-6, torch.randn(B, 1).double() * 10
    moved = data["z_h"] * scale + shift
    assert rank_imitation_hard(moved, data["p_h"]).item() == pytest.approx(
        rank_imitation_hard(data["z_h"], data["p_h"]).item(), rel=1e-8
    )
    batch = rank_imitation_hard(data["z_h"], data["p_h"], over="batch").item()
    assert rank_imitation_hard(data["z_h"] * 3 + 1, data["p_h"], over="batch").item() == pytest.approx(batch, rel=1e-12)
    assert rank_imitation_hard(moved, data["p_h"], over="batch").item() != pytest.approx(batch, rel=1e-3)


def test_rank_imitation_hard_extremes(data):
    assert rank_imitation_hard(data["p_h"] * 9 - 4, data["p_h"]).item() == pytest.approx(0.0, abs=1e-12)
    assert rank_imitation_hard(-data["p_h"], data["p_h"]).item() == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, 1.0])
def test_rank_imitation_hard_without_variance(dtype, constant):
    """A constant row (of student or of teacher) adds a loss of 1 and no gradient; its neighbour is untouched."""
    flat, varied = torch.full((9,), constant, dtype=dtype), torch.linspace(0, 1, 9, dtype=dtype)
    for student, teacher in ((flat, varied), (varied, flat), (flat, flat)):
        z = torch.stack([student, varied.square()]).requires_grad_()
        loss = rank_imitation_hard(z, torch.stack([teacher, varied]))
        expected = 1 - naive_pearson(varied.square().tolist(), varied.tolist())
        assert loss.item() == pytest.approx((1 + expected) / 2, abs=1e-6)
        loss.backward()
        assert torch.equal(z.grad[0], torch.zeros_like(z.grad[0]))
        assert z.grad[1].abs().max() > 0 and z.grad.isfinite().all()


def test_rank_imitation_hard_unknown_scope(data):
    with pytest.raises(ValueError, match="row"):
        rank_imitation_hard(data["z_h"], data["p_h"], over="row")


# --------------------------------------------------------------------------------------------------------------- RI-EHN


def test_rank_imitation_easy_matches_loop(data):
    rows = []
    for i in range(B):
        values = []
        for h in range(K):
            for e in range(E):
                if data["hard_mask"][i, h] and data["easy_mask"][i, e]:
                    weight = max(0.0, float(data["p_h"][i, h] - data["p_e"][i, e]))
                    values.append(-weight * math.log(1 / (1 + math.exp(-float(data["z_h"][i, h] - data["z_e"][i, e])))))
        if values:
            rows.append(mean(values))
    assert len(rows) == 3
    found = rank_imitation_easy(
        data["z_h"], data["z_e"], data["p_h"], data["p_e"], data["hard_mask"], data["easy_mask"]
    )
    assert found.item() == pytest.approx(mean(rows), rel=1e-12)


def test_rank_imitation_easy_by_hand():
    # h: z 1, p̂ 0.6; e: z 1, p̂ 0.1 → 0.5·(−log σ(0)) = 0.5·0.693147; e': z −1, p̂ 0.8 → weight 0. Mean of two:
    # 0.173287
    found = rank_imitation_easy(
        torch.tensor([[1.0]]), torch.tensor([[1.0, -1.0]]), torch.tensor([[0.6]]), torch.tensor([[0.1, 0.8]])
    )
    assert found.item() == pytest.approx(0.173287, abs=1e-6)


def test_rank_imitation_easy_sees_only_differences(data):
    args = data["p_h"], data["p_e"]
    base = rank_imitation_easy(data["z_h"], data["z_e"], *args).item()
    assert rank_imitation_easy(data["z_h"] + 5, data["z_e"] + 5, *args).item() == pytest.approx(base, rel=1e-12)
    assert rank_imitation_easy(data["z_h"] + 5, data["z_e"], *args).item() < base


# ------------------------------------------------------------------------------------------------------------------- FI


def test_cosine_matrix_and_feature_imitation_match_loop(data):
    student, teacher = torch.randn(B, K, H).double(), torch.randn(B, K, 2 * H).double()
    mask = data["hard_mask"]

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    rows = []
    for i in range(B):
        index = [k for k in range(K) if mask[i, k]]
        if len(index) >= 2:
            total = 0.0
            for a in index:
                for b in index:
                    difference = cosine(teacher[i, a].tolist(), teacher[i, b].tolist()) - cosine(
                        student[i, a].tolist(), student[i, b].tolist()
                    )
                    total += difference**2
            rows.append(total / len(index) ** 2)
    assert len(rows) == 3
    found = feature_imitation(cosine_matrix(teacher), cosine_matrix(student), mask)
    assert found.item() == pytest.approx(mean(rows), rel=1e-12)


def test_feature_imitation_by_hand():
    # C^T: cosine 0.5 off the diagonal; student features (1, 0) and (3, 4): cosine 3/5. Two entries differ by 0.1:
    # 2·0.01/4 = 0.005
    teacher = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]])
    student = cosine_matrix(torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]))
    assert feature_imitation(teacher, student).item() == pytest.approx(0.005, rel=1e-5)


def test_feature_imitation_is_zero_for_the_same_geometry():
    features = torch.randn(B, K, H).double()
    rotation = torch.linalg.qr(torch.randn(H, H).double()).Q
    moved = features @ rotation * torch.rand(B, K, 1).double().add(0.1)  # cosines survive a rotation and lengths
    assert feature_imitation(cosine_matrix(features), cosine_matrix(features)).item() == 0.0
    assert feature_imitation(cosine_matrix(features), cosine_matrix(moved)).item() == pytest.approx(0.0, abs=1e-25)


def test_cosine_matrix_of_a_dead_feature():
    features = torch.zeros(1, 3, 4)
    features[0, 0, 1] = features[0, 1, 1] = 2.0
    features.requires_grad_()
    found = cosine_matrix(features)
    assert found.tolist() == [[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]
    feature_imitation(torch.full((1, 3, 3), 0.5), found).backward()
    assert features.grad.isfinite().all() and not features.grad[0, 2].any()


# ----------------------------------------------------------------------------------------- the release's normalisations


def test_release_normalisation(data):
    """The factors in docs/method.md: the release's sums over this module's means are 1/K (CI), 1/B (CL), 1 (RI-PHN,
    RI-EHN) and B (FI)."""
    ci = sum(
        naive_softmax_loss(
            float(data["p_p"][i] * data["z_p"][i]), ((1 - data["p_h"][i]) * data["z_h"][i]).tolist(), 1.0
        )
        for i in range(B)
    )
    assert contrastive_imitation(data["z_p"], data["z_h"], data["p_p"], data["p_h"]).item() / K == pytest.approx(
        ci / (B * K), rel=1e-12
    )
    cl = sum(
        naive_softmax_loss(float(data["square"][i, i]), off_diagonal(data["square"])[i].tolist(), 1.0) for i in range(B)
    )
    assert in_batch_contrast(data["square"]).item() / B == pytest.approx(cl / B**2, rel=1e-12)
    teacher, student = cosine_matrix(torch.randn(B, K, H).double()), cosine_matrix(torch.randn(B, K, H).double())
    assert B * feature_imitation(teacher, student).item() == pytest.approx(
        ((teacher - student) ** 2).sum().item() / K**2, rel=1e-12
    )


# -------------------------------------------------------------------------------------------- every loss, as one family


def losses(d, **masks):
    """Every loss as a function of the student's tensors, on the fixture's data."""
    hard, easy = masks.get("hard"), masks.get("easy")
    both = None if hard is None else torch.cat([torch.ones(B, 1, dtype=torch.bool), hard], 1)
    p = torch.cat([d["p_p"][:, None], d["p_h"]], 1).to(d["p_p"].dtype)
    target = cosine_matrix(torch.randn(B, 1 + K, H, generator=torch.Generator().manual_seed(1)).to(p.dtype))

    def feature(z_p, z_h, z_e):
        z = torch.cat([z_p[:, None], z_h], 1)
        return feature_imitation(target, cosine_matrix(torch.stack([z, z**2, z + 1], -1)), both)

    return {
        "ci": lambda z_p, z_h, z_e: contrastive_imitation(z_p, z_h, d["p_p"], d["p_h"], 0.5, hard),
        "ci_joint": lambda z_p, z_h, z_e: contrastive_imitation(z_p, z_h, d["p_p"], d["p_h"], 0.5, hard, z_e, easy),
        "info_nce": lambda z_p, z_h, z_e: info_nce(z_p, z_h, z_e, 0.5, hard, easy),
        "ri_phn": lambda z_p, z_h, z_e: rank_imitation_hard(torch.cat([z_p[:, None], z_h], 1), p, both),
        "ri_phn_batch": lambda z_p, z_h, z_e: rank_imitation_hard(
            torch.cat([z_p[:, None], z_h], 1), p, both, over="batch"
        ),
        "ri_ehn": lambda z_p, z_h, z_e: rank_imitation_easy(z_h, z_e, d["p_h"], d["p_e"], hard, easy),
        "fi": feature,
    }


NAMES = ["ci", "ci_joint", "info_nce", "ri_phn", "ri_phn_batch", "ri_ehn", "fi"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradient(data, name, masked):
    loss = losses(data, **({"hard": data["hard_mask"], "easy": data["easy_mask"]} if masked else {}))[name]
    inputs = tuple(data[key].clone().requires_grad_() for key in ("z_p", "z_h", "z_e"))
    assert torch.autograd.gradcheck(loss, inputs)


def test_gradient_in_batch(data):
    assert torch.autograd.gradcheck(in_batch_contrast, (data["square"].requires_grad_(),))


@pytest.mark.parametrize("name", NAMES)
def test_masked_entries_contribute_nothing(data, name):
    """Whatever stands behind a mask, NaN and inf included: the same value, and no gradient there."""
    masks = {"hard": data["hard_mask"], "easy": data["easy_mask"]}
    results = []
    for junk in (0.0, 1e4, math.inf, math.nan):
        d = dict(data)
        for key, mask in (("z_h", "hard"), ("p_h", "hard"), ("z_e", "easy"), ("p_e", "easy")):
            d[key] = data[key].masked_fill(~masks[mask], junk)
        if name == "fi" and not math.isfinite(junk):
            continue  # features, not logits, are its input: below
        inputs = [d[key].clone().requires_grad_() for key in ("z_p", "z_h", "z_e")]
        loss = losses(d, **masks)[name](*inputs)
        loss.backward()
        for tensor, mask in ((inputs[1], "hard"), (inputs[2], "easy")):
            if tensor.grad is not None:
                assert not tensor.grad[~masks[mask]].any()
        results.append((loss.item(), *(t.grad.sum().item() for t in inputs if t.grad is not None)))
    assert all(result == results[0] for result in results)


def test_feature_imitation_masks_what_is_not_finite():
    student, mask = torch.randn(1, 3, 3, requires_grad=True), torch.tensor([[True, True, False]])
    teacher = torch.randn(1, 3, 3)
    clean = feature_imitation(teacher[:, :2, :2], student[:, :2, :2])
    teacher[:, 2], teacher[:, :, 2] = math.nan, math.inf
    assert feature_imitation(teacher, student, mask).item() == clean.item()


@pytest.mark.parametrize("name", NAMES)
def test_permutation_of_queries_and_negatives(data, name):
    inputs = [data[key] for key in ("z_p", "z_h", "z_e")]
    rows, columns = torch.randperm(B), torch.randperm(K)
    moved = {key: value[rows] if value.shape[0] == B else value for key, value in data.items()}
    if name != "fi":  # its teacher matrix has the negatives' order too
        for key in ("z_h", "p_h"):
            moved[key] = moved[key][:, columns]
        assert losses(moved)[name](*(moved[key] for key in ("z_p", "z_h", "z_e"))).item() == pytest.approx(
            losses(data)[name](*inputs).item(), rel=1e-12
        )
    else:
        t, s = cosine_matrix(torch.randn(B, K, H)), cosine_matrix(torch.randn(B, K, H))
        assert feature_imitation(
            t[rows][:, columns][:, :, columns], s[rows][:, columns][:, :, columns]
        ).item() == pytest.approx(feature_imitation(t, s).item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("probability", ["extreme", "tiny"])
@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
def test_large_logits_and_sure_teachers_stay_finite(data, name, probability, size):
    d = {key: value.float() if value.is_floating_point() else value for key, value in data.items()}
    for key in ("p_p", "p_h", "p_e"):
        d[key] = d[key].round() if probability == "extreme" else d[key] * 1e-30
    inputs = [(d[key].sign() * size).requires_grad_() for key in ("z_p", "z_h", "z_e")]
    loss = losses(d)[name](*inputs)
    loss.backward()
    assert loss.isfinite()
    assert all(t.grad is None or t.grad.isfinite().all() for t in inputs)


def test_large_logits_are_exact():
    # −log softmax of [−1e4, 1e4] at the first = 2e4; of −log σ(−2e4) = 2e4: no saturation, so the gradient pulls.
    z = torch.tensor([-1e4], requires_grad=True)
    assert info_nce(z, torch.tensor([[1e4]])).item() == pytest.approx(2e4)
    assert rank_imitation_easy(
        torch.tensor([[-1e4]]), torch.tensor([[1e4]]), torch.ones(1, 1), torch.zeros(1, 1)
    ).item() == pytest.approx(2e4)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ri_phn_batch"])  # that has the positives left
def test_nothing_to_learn_from_is_a_differentiable_zero(data, name):
    off = {"hard": torch.zeros(B, K, dtype=torch.bool), "easy": torch.zeros(B, E, dtype=torch.bool)}
    inputs = [data[key].clone().requires_grad_() for key in ("z_p", "z_h", "z_e")]
    loss = losses(data, **off)[name](*inputs)
    assert loss.item() == 0.0 and loss.shape == ()
    loss.backward()
    assert all(t.grad is None or not t.grad.any() for t in inputs)


def test_empty_shapes():
    z = torch.randn(3, requires_grad=True)
    none = torch.zeros(3, 0)
    for loss in (
        contrastive_imitation(z, none, torch.rand(3), none),
        info_nce(z),
        info_nce(z, none, None),
        in_batch_contrast(z[:1, None]),
        rank_imitation_hard(z[:, None], torch.rand(3, 1)),
        rank_imitation_hard(z[:, None][:, :0], none),
        rank_imitation_easy(z[:, None], none, torch.rand(3, 1), none),
        rank_imitation_easy(none * z[:, None], none, none, none),
        feature_imitation(torch.ones(3, 1, 1), cosine_matrix(z[:, None, None])),
        info_nce(z[:0], none[:0]),
    ):
        assert loss.item() == 0.0
        loss.backward()
    # 0 negatives but others: the others alone
    assert contrastive_imitation(z, none, torch.ones(3), none, others=torch.ones(3, 2)).item() == pytest.approx(
        info_nce(z, torch.ones(3, 2)).item()
    )


def test_half_precision_is_computed_in_float32(data):
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in data.items()}
    exact = {key: value.float() if value.is_floating_point() else value for key, value in half.items()}
    for name in NAMES:
        a = losses(half)[name](*(half[key] for key in ("z_p", "z_h", "z_e")))
        b = losses(exact)[name](*(exact[key] for key in ("z_p", "z_h", "z_e")))
        assert a.dtype == torch.float32
        assert a.item() == pytest.approx(
            b.item(), rel=2e-2 if name == "fi" else 1e-6
        )  # fi's features are made in half above


def test_bad_arguments(data):
    with pytest.raises(ValueError, match="temperature must be above 0, found 0"):
        info_nce(data["z_p"], data["z_h"], temperature=0)
    with pytest.raises(ValueError, match=r"mask \(5, 3\) does not fit a tensor \(5, 4\)"):
        info_nce(data["z_p"], data["z_h"], mask=data["easy_mask"])


# ------------------------------------------------------------------------------------------------------- weighted_total


def test_weighted_total():
    ci = torch.tensor(2.0, requires_grad=True)
    total = weighted_total({"ci": ci, "fi": lambda: torch.tensor(3.0)}, {"ci": 1.0, "fi": 0.5})
    assert {name: value.item() for name, value in total.items()} == {"ci": 2.0, "fi": 1.5}


def test_weight_zero_removes_exactly_its_term():
    def never():
        raise AssertionError("a term of weight 0 was computed")

    x = torch.tensor(2.0, requires_grad=True)
    total = weighted_total(
        {"ci": x, "ri": x * math.inf, "fi": x * math.nan, "cl": never}, {"ci": 1.0, "ri": 0.0, "fi": 0.0, "cl": 0}
    )
    assert list(total) == ["ci"]
    sum(total.values()).backward()
    assert x.grad.item() == 1.0


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        (
            ["ci"],
            {"ci": 1.0, "fi": 0.1},
            "'fi' has weight 0.1 but no term",
        ),  # the bug that made two ablations identical
        (["ci", "fi"], {"ci": 1.0}, "'fi' has no weight"),
        (["ci"], {"ci": -1.0}, "found -1.0"),
        (["ci"], {"ci": math.nan}, "found nan"),
    ],
)
def test_weighted_total_refuses(terms, weights, message):
    with pytest.raises(ValueError, match=message):
        weighted_total({name: torch.tensor(1.0) for name in terms}, weights)
