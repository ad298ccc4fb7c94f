"""The poolings against naive loops and torch's own multi-head attention, with padding on either side and junk in it."""

import math

import pytest
import torch
from torch import nn

from d2llm.models.parts import build_pooling
from d2llm.models.poolings.pma import PMA
from d2llm.run.errors import ConfigError

D, T = 12, 7
LENGTHS = [7, 1, 4, 2]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(3)


def padded(side="right", junk=0.0):
    """Four texts of LENGTHS tokens: (states without padding, hidden (4, 7, D), mask (4, 7))."""
    texts = [torch.randn(length, D, generator=torch.Generator().manual_seed(length)) for length in LENGTHS]
    hidden, mask = torch.full((len(texts), T, D), junk), torch.zeros(len(texts), T, dtype=torch.long)
    for i, text in enumerate(texts):
        span = slice(0, len(text)) if side == "right" else slice(T - len(text), T)
        hidden[i, span], mask[i, span] = text, 1
    return texts, hidden, mask


def naive(name, text, k):
    """The pooling of one text without padding, by its definition."""
    tokens = text.double()
    if name == "mean":
        return tokens.sum(0) / len(tokens)
    if name == "weighted_mean":
        return sum((i + 1) * token for i, token in enumerate(tokens)) / sum(range(1, len(tokens) + 1))
    if name == "last_token":
        last = list(tokens)[-k:]
        return sum(last) / len(last)
    return tokens[0]  # cls


CASES = [("mean", {}), ("weighted_mean", {}), ("last_token", {}), ("last_token", {"k": 3}), ("cls", {})]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tanh_layer_is_over_the_first_token(side):
    torch.manual_seed(0)
    pooling = build_pooling("cls_mlp", D)
    weight, bias = pooling.dense.weight.detach(), pooling.dense.bias.detach()
    assert 0.01 < weight.std() < 0.03 and not bias.any()
    bias.normal_()
    texts, hidden, mask = padded(side, math.nan)
    expected = torch.stack([torch.tanh(weight @ text[0] + bias) for text in texts])
    torch.testing.assert_close(pooling(hidden, mask), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_kept_apart(side):
    pooling = build_pooling("tokens", D, size=5)
    weight = pooling.project.weight.detach()
    assert weight.shape == (5, D) and 0.01 < weight.std() < 0.03 and pooling.project.bias is None
    texts, hidden, mask = padded(side, math.nan)
    found = pooling(hidden, mask).view(len(texts), T, 5)
    for row, text, length in zip(found, texts, LENGTHS, strict=True):
        expected = torch.zeros(T, 5)
        for place in range(length):
            vector = weight @ text[place]
            expected[place if side == "right" else T - length + place] = vector / vector.norm()
        torch.testing.assert_close(row, expected)
    assert pooling.width(D, T) == T * 5 and build_pooling("mean", D).width(D, T) == D
    with pytest.raises(ConfigError, match="size must be at least 1"):
        build_pooling("tokens", D, size=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_matches_its_definition(name, settings, side):
    texts, hidden, mask = padded(side)
    found = build_pooling(name, D, **settings)(hidden, mask)
    for row, text in zip(found, texts, strict=True):
        torch.testing.assert_close(row.double(), naive(name, text, settings.get("k", 1)), rtol=1e-5, atol=1e-6)


def test_weighted_mean_by_hand():
    # tokens 1, 2, 6 with weights 1, 2, 3: (1 + 4 + 18)/6 = 23/6
    hidden = torch.tensor([[[1.0], [2.0], [6.0], [100.0]]])
    found = build_pooling("weighted_mean", 1)(hidden, torch.tensor([[1, 1, 1, 0]]))
    assert found.item() == pytest.approx(23 / 6)


def test_weighted_mean_of_a_long_half_precision_text():
    # 1…600 and their sum 180,300 are beyond float16: a constant text must still give the constant
    hidden, mask = torch.full((1, 600, 2), 0.5, dtype=torch.float16), torch.ones(1, 600)
    found = build_pooling("weighted_mean", 2)(hidden, mask)
    assert found.dtype == torch.float32 and found.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("junk", [1e4, math.inf, math.nan])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [*CASES, ("pma", {"heads": 3}), ("pma", {"heads": 3, "init": "mean"}), ("tokens", {"size": 5})],
)
def test_padding_contributes_nothing(name, settings, side, junk):
    pooling = build_pooling(name, D, **settings)
    results, gradients = [], []
    for value in (0.0, junk):
        _, hidden, mask = padded(side, value)
        hidden.requires_grad_()
        out = pooling(hidden, mask.bool())
        (gradient,) = torch.autograd.grad(out.pow(3).sum(), hidden)
        assert not gradient[mask == 0].any()
        results.append(out)
        gradients.append(gradient)
    assert torch.equal(*results) and torch.equal(*gradients)


@pytest.mark.parametrize(("name", "settings"), [*CASES, ("pma", {"heads": 3}), ("tokens", {"size": 5})])
def test_a_text_without_tokens_is_finite(name, settings):
    _, hidden, mask = padded()
    mask[2] = 0
    pooling, hidden = build_pooling(name, D, **settings), hidden.requires_grad_()
    out = pooling(hidden, mask)
    assert out.isfinite().all()
    out.square().sum().backward()
    assert hidden.grad.isfinite().all() and not hidden.grad[2].any()


# ------------------------------------------------------------------------------------------------------------------ PMA


def scrambled(**settings):
    """A PMA whose every parameter, biases and norms included, is random, in float64."""
    pma = PMA(D, **settings).double()
    with torch.no_grad():
        for parameter in pma.parameters():
            parameter.normal_(0, 0.5)
    return pma


@pytest.mark.parametrize("heads", [1, 3, 12])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pma_matches_torch_multihead_attention(heads, side):
    """scale="head" is torch's attention: same weights, then the residual, norms and output of the paper around it."""
    pma = scrambled(heads=heads, scale="head")
    attention = nn.MultiheadAttention(D, heads, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([pma.query.weight, pma.key.weight, pma.value.weight]))
        attention.in_proj_bias.copy_(torch.cat([pma.query.bias, pma.key.bias, pma.value.bias]))
        attention.out_proj.weight.copy_(torch.eye(D))
        attention.out_proj.bias.zero_()
    _, hidden, mask = padded(side)
    hidden = hidden.double()
    seed = pma.seed.expand(len(hidden), 1, D)
    pooled, _ = attention(seed, hidden, hidden, key_padding_mask=mask == 0)
    out = nn.functional.layer_norm((pma.seed + pooled)[:, 0], (D,), pma.norm0.weight, pma.norm0.bias)
    out = out + torch.relu(nn.functional.linear(out, pma.output.weight, pma.output.bias))
    out = nn.functional.layer_norm(out, (D,), pma.norm1.weight, pma.norm1.bias)
    torch.testing.assert_close(pma(hidden, mask), out, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", ["model", "head"])
def test_pma_matches_a_loop_over_heads_and_tokens(scale):
    heads, width = 3, D // 3
    pma = scrambled(heads=heads, scale=scale)
    texts, hidden, mask = padded()
    found = pma(hidden.double(), mask)
    for row, text in zip(found, texts, strict=True):
        query = pma.query(pma.seed)
        keys, values = pma.key(text.double()), pma.value(text.double())
        pooled = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            scores = [(query[part] @ key[part]).item() / math.sqrt(D if scale == "model" else width) for key in keys]
            total = sum(math.exp(s) for s in scores)
            pooled.append(sum(math.exp(s) / total * value[part] for s, value in zip(scores, values, strict=True)))
        out = pma.norm0(pma.seed + torch.cat(pooled))
        torch.testing.assert_close(row, pma.norm1(out + torch.relu(pma.output(out))), rtol=1e-10, atol=1e-10)


def test_pma_by_hand():
    """d = 2, one head; zero query, so both tokens weigh 1/2; identity value; zero seed and output.

    Mean of (1, 5) and (3, 1) is (2, 3); layer norm of it: mean 2.5, deviation 0.5 → (−1, 1); + ReLU(0); normed again
    the same.
    """
    pma = PMA(2, heads=1, init="mean").double()
    with torch.no_grad():
        pma.output.weight.zero_()
    found = pma(torch.tensor([[[1.0, 5.0], [3.0, 1.0]]]).double(), torch.ones(1, 2))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0]]).double(), rtol=0, atol=1e-4)  # the norms' epsilon


@pytest.mark.parametrize("init", ["random", "mean"])
def test_pma_gradient_reaches_every_parameter(init):
    pma = PMA(D, heads=3, init=init)
    _, hidden, mask = padded()
    out = pma(hidden, mask)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in pma.named_parameters():
        assert parameter.grad is not None, name
        # Two gradients are zero by right: a key bias shifts all scores of a head alike, and with a zero seed W_q has
        # nothing to act on (b_q learns).
        if name == "key.bias" or (init == "mean" and name in ("query.weight", "key.weight")):
            continue
        assert parameter.grad.abs().max() > 1e-6, name


def test_pma_of_a_text_without_tokens_is_the_seed_alone():
    """Nothing is attended to, the value bias included (the release multiplies the attention by the mask)."""
    pma = scrambled(heads=3)
    out = pma.norm0(pma.seed)
    expected = pma.norm1(out + torch.relu(pma.output(out)))
    found = pma(torch.full((1, T, D), math.nan, dtype=torch.float64), torch.zeros(1, T))
    torch.testing.assert_close(found[0], expected)


def test_pma_gradcheck():
    pma = scrambled(heads=2)
    _, hidden, mask = padded()
    assert torch.autograd.gradcheck(lambda x: pma(x, mask[2:]), (hidden[2:].double().requires_grad_(),))


def test_pma_ignores_the_order_of_tokens_but_not_their_number():
    pma = scrambled(heads=3)
    hidden, mask = torch.randn(2, T, D).double(), torch.ones(2, T)
    torch.testing.assert_close(pma(hidden[:, torch.randperm(T)], mask), pma(hidden, mask))
    mask[:, -1] = 0
    assert not torch.allclose(pma(hidden, mask), pma(hidden, torch.ones(2, T)))


@pytest.mark.parametrize("heads", [1, 8])
def test_pma_mean_init_starts_as_the_normed_mean(heads):
    size = 64
    pma = PMA(size, heads=heads, init="mean")
    hidden, mask = torch.randn(50, 9, size) + torch.randn(50, 1, size), (torch.rand(50, 9) < 0.7).long()
    mask[:, 0] = 1
    mean = nn.functional.layer_norm(build_pooling("mean", size)(hidden, mask), (size,))
    cosine = nn.functional.cosine_similarity(pma(hidden, mask), mean)
    assert cosine.min() > 0.99
    random = nn.functional.cosine_similarity(PMA(size, heads=heads)(hidden, mask), mean)
    assert random.abs().mean() < 0.5


def test_pma_output_is_not_l2_normalised():
    pma = PMA(64, heads=4)
    norms = pma(torch.randn(10, 5, 64), torch.ones(10, 5)).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((10,), 8.0), rtol=1e-2, atol=0)  # layer norm: √64


def test_pma_takes_half_precision_states():
    pma = PMA(D, heads=3)
    _, hidden, mask = padded()
    out = pma(hidden.bfloat16(), mask)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, pma(hidden.bfloat16().float(), mask))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pma", {"heads": 5}, "heads must divide the hidden size 12, found 5; choose a divisor, e.g. 6"),
        ("pma", {"heads": 0}, "found 0"),
        ("pma", {"heads": 3, "scale": "width"}, "found 'width'"),
        ("pma", {"heads": 3, "init": "zero"}, "found 'zero'"),
        ("last_token", {"k": 0}, "at least 1, found 0"),
        ("last", {}, "unknown 'last'.*nearest: last_token"),
        ("mean", {"k": 2}, "mean.*'k'"),
    ],
)
def test_refuses(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_pooling(name, D, **settings)
