"""The composed LoRA layer against peft's own on the same parameters, and where it steps aside."""

from __future__ import annotations

import pytest
import tiny
import torch
from peft.tuners.lora.layer import Linear

from d2llm.config.recipes import TunedWeights
from d2llm.models.fast import composed_lora
from d2llm.models.fast.composed_lora import ComposedLinear


def layers(model: torch.nn.Module) -> list[ComposedLinear]:
    return [module for module in model.modules() if isinstance(module, ComposedLinear)]


def tuned(dropout: float = 0.0):
    backbone = tiny.backbone("decoder")
    backbone.tune(TunedWeights(kind="lora", r=16, alpha=8.0, dropout=dropout))
    torch.manual_seed(1)
    for layer in layers(backbone):  # both start at zero, which would hide the product
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        torch.nn.init.normal_(layer.base_layer.bias)
    return backbone.train()


def test_outputs_and_gradients_are_pefts(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask = torch.randint(7, 30, (5, 9)), torch.ones(5, 9, dtype=torch.long)
    weights = torch.randn(5, 9, 32)  # not the squares: the last layer norm keeps their sum

    def outputs() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        backbone = tuned()
        assert all(layer._composable(torch.zeros(45, 32)) for layer in layers(backbone))
        states = backbone(ids, mask)
        (states * weights).sum().backward()
        return states.detach(), {key: p.grad for key, p in backbone.named_parameters() if p.grad is not None}

    states, ours = outputs()
    monkeypatch.setattr(ComposedLinear, "forward", Linear.forward)
    expected, theirs = outputs()
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-5)
    assert set(ours) == set(theirs) and len(ours) == 2 * 14
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for key in ours:  # some are zero but for rounding: a shift of all keys moves no attention
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5 * largest)


def test_it_steps_aside_where_it_does_not_pay_or_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, layer = torch.zeros(40, 32), layers(tuned())[0]
    assert layer._composable(x)
    assert layer._composable(x[:16]) is None  # 16 tokens spare as much as composing a matrix of 32 by 32 costs
    assert layer._composable(x.double()) is None
    layer.base_layer.weight.requires_grad_(True)
    assert layer._composable(x) is None  # peft's own way gives that a gradient
    layer = layers(tuned(dropout=0.1))[0]
    assert layer._composable(x) is None
    assert layer.eval()._composable(x)  # dropout rests
    with monkeypatch.context() as patch:
        patch.setattr(composed_lora, "LARGEST", 1000)
        assert layer._composable(x) is None  # the graph would keep a copy of a large matrix
    layer.enable_adapters(False)
    assert layer._composable(x) is None and torch.equal(layer(x), layer.base_layer(x))


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    x, weight, bias, down, up = (torch.randn(*s).double() for s in ((2, 3, 5), (4, 5), (4,), (2, 5), (4, 2)))
    inputs = tuple(value.requires_grad_(True) for value in (x, down, up))
    compose = lambda x, a, b: composed_lora._Composed.apply(x, weight, bias, a, b, 0.7)  # noqa: E731
    assert torch.autograd.gradcheck(compose, inputs)
