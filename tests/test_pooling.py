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
PLAIN = [("mean", {}), ("weighted_mean", {}), ("last_token", {}), ("last_token", {"k": 3}), ("cls", {})]
LEARNED = [("cls_mlp", {}), ("tokens", {"size": 5}), ("pma", {"heads": 3}), ("pma", {"heads": 3, "init": "mean"})]
LEARNED += [("multi_pma", {"vectors": 2, "size": 5, "heads": 3})]
STATES = ("states", {"count": 3})
both_sides = pytest.mark.parametrize("side", ["left", "right"])


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


def naive(name, pooling, text):
    """The pooling of one text without padding, by its definition."""
    tokens = list(text)
    if name == "mean":
        return sum(tokens) / len(tokens)
    if name == "weighted_mean":
        return sum((i + 1) * token for i, token in enumerate(tokens)) / sum(range(1, len(tokens) + 1))
    if name == "last_token":
        return sum(tokens[-pooling.k :]) / min(pooling.k, len(tokens))
    if name == "states":
        return torch.cat([*tokens[:3], torch.zeros(D * (3 - len(tokens[:3])))])
    if name == "tokens":
        vectors = [pooling.project.weight @ token for token in tokens]
        return torch.cat([vector / vector.norm() for vector in vectors])
    return tokens[0] if name == "cls" else torch.tanh(pooling.dense.weight @ tokens[0] + pooling.dense.bias)


@both_sides
@pytest.mark.parametrize(("name", "settings"), [*PLAIN, *LEARNED[:2], STATES])
def test_matches_its_definition(name, settings, side):
    pooling, (texts, hidden, mask) = build_pooling(name, D, **settings), padded(side, math.nan)
    for layer in (part for part in pooling.modules() if isinstance(part, nn.Linear)):  # made with BERT's weights
        assert 0.01 < layer.weight.std() < 0.03 and (layer.bias is None or not layer.bias.any())
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
    for row, text in zip(pooling(hidden, mask), texts, strict=True):
        expected = naive(name, pooling, text)
        if name == "tokens":  # where the others are not
            padding = torch.zeros(5 * (T - len(text)))
            expected = torch.cat([expected, padding] if side == "right" else [padding, expected])
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)
    assert pooling.width(D, T) == {"tokens": T * 5, "states": 3 * D}.get(name, D)


def test_weighted_mean_of_a_long_half_precision_text():
    # 1…600 and their sum 180,300 are beyond float16: a constant text must still give the constant
    vectors = build_pooling("weighted_mean", 2)(torch.full((1, 600, 2), 0.5, dtype=torch.float16), torch.ones(1, 600))
    assert vectors.dtype == torch.float32 and vectors.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("junk", [math.inf, math.nan])
@both_sides
@pytest.mark.parametrize(("name", "settings"), [*PLAIN, *LEARNED, STATES])
def test_padding_contributes_nothing(name, settings, side, junk):
    pooling = build_pooling(name, D, **settings)
    results, gradients = [], []
    for value in (0.0, junk):
        _, hidden, mask = padded(side, value)
        results.append(pooling(hidden.requires_grad_(), mask.bool()))
        gradients += torch.autograd.grad(results[-1].pow(3).sum(), hidden)
        assert not gradients[-1][mask == 0].any()
    assert torch.equal(*results) and torch.equal(*gradients)


@pytest.mark.parametrize(("name", "settings"), [*PLAIN, *LEARNED, STATES])
def test_a_text_without_tokens_is_finite(name, settings):
    _, hidden, mask = padded()
    mask[2] = 0
    vectors = build_pooling(name, D, **settings)(hidden.requires_grad_(), mask)
    vectors.square().sum().backward()
    assert vectors.isfinite().all() and hidden.grad.isfinite().all() and not hidden.grad[2].any()


# ------------------------------------------------------------------------------------------------------------------ PMA
def scrambled(**settings):
    """A PMA whose every parameter, biases and norms included, is random, in float64."""
    pma = PMA(D, **settings).double()
    with torch.no_grad():
        for parameter in pma.parameters():
            parameter.normal_(0, 0.5)
    return pma


@pytest.mark.parametrize("heads", [1, 3, 12])
@pytest.mark.parametrize("scale", ["model", "head"])
@both_sides
def test_pma_matches_torch_multihead_attention(heads, scale, side):
    """Same weights, then the residual, norms and output of the paper around it; torch divides by a head's root."""
    pma = scrambled(heads=heads, scale=scale)
    attention = nn.MultiheadAttention(D, heads, batch_first=True, dtype=torch.float64)
    factor = heads**-0.5 if scale == "model" else 1.0
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([factor * pma.query.weight, pma.key.weight, pma.value.weight]))
        attention.in_proj_bias.copy_(torch.cat([factor * pma.query.bias, pma.key.bias, pma.value.bias]))
        attention.out_proj.weight.copy_(torch.eye(D))
        attention.out_proj.bias.zero_()
    _, hidden, mask = padded(side)
    hidden, seed = hidden.double(), pma.seed.expand(len(LENGTHS), 1, D)
    pooled, shares = attention(seed, hidden, hidden, key_padding_mask=mask == 0, average_attn_weights=False)
    torch.testing.assert_close(pma.attention(hidden, mask), shares[:, :, 0].transpose(1, 2), rtol=1e-10, atol=1e-10)
    out = nn.functional.layer_norm((pma.seed + pooled)[:, 0], (D,), pma.norm0.weight, pma.norm0.bias)
    out = out + torch.relu(nn.functional.linear(out, pma.output.weight, pma.output.bias))
    out = nn.functional.layer_norm(out, (D,), pma.norm1.weight, pma.norm1.bias)
    torch.testing.assert_close(pma(hidden, mask), out, rtol=1e-10, atol=1e-10)


def test_several_seeds_are_as_many_poolings_by_one_attention():
    """Each vector is that of a PMA with one of the seeds and the same weights, projected, of unit length."""
    several = build_pooling("multi_pma", D, vectors=2, size=5, heads=3)
    with torch.no_grad():
        for parameter in several.parameters():
            parameter.normal_(0, 0.5)
    _, hidden, mask = padded("left", math.nan)
    for i, vectors in enumerate(several(hidden, mask).split(5, dim=1)):
        single = PMA(D, heads=3, scale="head")
        weights = {
            name: value for name, value in several.state_dict().items() if name not in ("seeds", "project.weight")
        }
        single.load_state_dict(weights | {"seed": several.seeds[i]})
        expected = nn.functional.normalize(single(hidden, mask) @ several.project.weight.T, dim=-1)
        torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-5)
    assert several.width(D, T) == 10 and several.token_size == 5


@pytest.mark.parametrize("init", ["random", "mean"])
def test_pma_gradient_reaches_every_parameter(init):
    pma, (_, hidden, mask) = PMA(D, heads=3, init=init), padded()
    vectors = pma(hidden, mask)
    (vectors * torch.randn_like(vectors)).sum().backward()
    # Some gradients are zero by right: a key bias shifts all scores of a head alike, and with a zero seed W_q has
    # nothing to act on (b_q learns).
    dead = {name for name, parameter in pma.named_parameters() if parameter.grad.abs().max() < 1e-6}
    assert dead <= {"key.bias"} | ({"query.weight", "key.weight"} if init == "mean" else set())


def test_pma_of_a_text_without_tokens_is_the_seed_alone():
    """Nothing is attended to, the value bias included (the release multiplies the attention by the mask)."""
    pma = scrambled(heads=3)
    out = pma.norm0(pma.seed)
    vectors = pma(torch.full((1, T, D), math.nan, dtype=torch.float64), torch.zeros(1, T))
    torch.testing.assert_close(vectors[0], pma.norm1(out + torch.relu(pma.output(out))))


@pytest.mark.parametrize("heads", [1, 8])
def test_pma_mean_init_starts_as_the_normed_mean(heads):
    hidden, mask = torch.randn(50, 9, 64) + torch.randn(50, 1, 64), (torch.rand(50, 9) < 0.7).long()
    mask[:, 0] = 1
    mean = nn.functional.layer_norm(build_pooling("mean", 64)(hidden, mask), (64,))
    vectors = [PMA(64, heads=heads, init=init)(hidden, mask) for init in ("mean", "random")]
    alike = [nn.functional.cosine_similarity(vector, mean) for vector in vectors]
    assert alike[0].min() > 0.99 and alike[1].abs().mean() < 0.5
    # Not scaled to unit length: a layer norm's, √64.
    torch.testing.assert_close(vectors[1].norm(dim=1), torch.full((50,), 8.0), rtol=1e-2, atol=0)


def test_pma_takes_half_precision_states():
    pma, (_, hidden, mask) = PMA(D, heads=3), padded()
    vectors = pma(hidden.bfloat16(), mask)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, pma(hidden.bfloat16().float(), mask))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pma", {"heads": 5}, "heads must divide the hidden size 12, found 5; choose a divisor, e.g. 6"),
        ("pma", {"heads": 3, "scale": "width"}, "found 'width'"),
        ("pma", {"heads": 3, "init": "zero"}, "found 'zero'"),
        ("last_token", {"k": 0}, "at least 1, found 0"),
        ("tokens", {"size": 0}, "size must be at least 1"),
        ("last", {}, "unknown 'last'.*nearest: last_token"),
        ("mean", {"k": 2}, "mean.*'k'"),
    ],
)
def test_refuses(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_pooling(name, D, **settings)
