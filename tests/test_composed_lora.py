"""The composed LoRA layer against peft's own on the same parameters: outputs and gradients; and where it steps aside."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora.layer import Linear
from tiny import backbone

from d2llm.config.recipes import TunedWeights
from d2llm.models.fast import composed_lora
from d2llm.models.fast.composed_lora import ComposedLinear


def layers(model: torch.nn.Module) -> list[ComposedLinear]:
    return [module for module in model.modules() if isinstance(module, ComposedLinear)]


def tuned(rank: int, dropout: float = 0.0):
    made = backbone("decoder")
    made.tune(TunedWeights(kind="lora", r=rank, alpha=8.0, dropout=dropout))
    torch.manual_seed(1)
    for layer in layers(made):
        torch.nn.init.normal_(layer.lora_B["default"].weight)  # starts at zero, which would hide the product
        if layer.base_layer.bias is not None:
            torch.nn.init.normal_(layer.base_layer.bias)  # the same
    return made.train()


def test_outputs_and_gradients_are_pefts(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask = torch.randint(7, 30, (5, 9)), torch.ones(5, 9, dtype=torch.long)
    weights = torch.randn(5, 9, 32)
    found = {}
    for name in ("composed", "peft"):
        made = tuned(rank=16)
        if name == "peft":
            monkeypatch.setattr(ComposedLinear, "forward", Linear.forward)
        assert all(layer._composable(torch.zeros(45, 32)) for layer in layers(made))
        states = made(ids, mask)
        # Not the squares: the last layer norm keeps their sum.
        (states * weights).sum().backward()
        gradients = {key: p.grad for key, p in made.named_parameters() if p.grad is not None}
        found[name] = (states.detach(), gradients)
    torch.testing.assert_close(found["composed"][0], found["peft"][0], rtol=1e-4, atol=1e-5)
    ours, theirs = found["composed"][1], found["peft"][1]
    assert set(ours) == set(theirs) and len(ours) == 2 * 14
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for key in ours:  # some are zero but for rounding: a shift of all keys moves no attention
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5 * largest)


def test_it_steps_aside_where_it_does_not_pay_or_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(40, 32)
    first = layers(tuned(rank=16))[0]
    assert first._composable(x)
    assert first._composable(x[:16]) is None  # 16 tokens spare as much as composing a matrix of 32 by 32 costs
    assert first._composable(x.double()) is None
    first.base_layer.weight.requires_grad_(True)
    assert first._composable(x) is None  # peft's own way gives that a gradient
    assert layers(tuned(rank=16, dropout=0.1))[0]._composable(x) is None
    layer = layers(tuned(rank=16, dropout=0.1).eval())[0]
    assert layer._composable(x)  # dropout rests
    monkeypatch.setattr(composed_lora, "LARGEST", 1000)
    assert layer._composable(x) is None  # the graph would keep a copy of a large matrix
    monkeypatch.undo()
    layer.enable_adapters(False)
    assert layer._composable(x) is None
    assert torch.equal(layer(x), layer.base_layer(x))


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    x, weight, bias, down, up = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 5), (4, 5), (4,), (2, 5), (4, 2))
    )
    for value in (x, down, up):
        value.requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda x, a, b: composed_lora._Composed.apply(x, weight, bias, a, b, 0.7), (x, down, up)
    )
