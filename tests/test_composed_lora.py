"""The composed LoRA layer against peft's own on the same parameters: outputs and gradients; and where it steps aside."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora.layer import Linear
from tiny import backbone

from d2llm.methods import Tuning
from d2llm.models.composed_lora import ComposedLinear


def layers(model: torch.nn.Module) -> list[ComposedLinear]:
    return [module for module in model.modules() if isinstance(module, ComposedLinear)]


def tuned(rank: int, dropout: float = 0.0):
    made = backbone("decoder")
    made.tune(Tuning(kind="lora", r=rank, alpha=8.0, dropout=dropout))
    torch.manual_seed(1)
    for layer in layers(made):
        torch.nn.init.normal_(layer.lora_B["default"].weight)  # starts at zero, which would hide the product
    return made.train()


def test_outputs_and_gradients_are_pefts(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, mask = torch.randint(7, 30, (5, 9)), torch.ones(5, 9, dtype=torch.long)
    weights = torch.randn(5, 9, 32)
    found = {}
    for name in ("composed", "peft"):
        made = tuned(rank=16)
        if name == "peft":
            monkeypatch.setattr(ComposedLinear, "forward", Linear.forward)
        assert all((layer._composable(torch.zeros(1, 32)) == "default") for layer in layers(made))
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


def test_it_steps_aside_where_it_does_not_pay_or_does_not_fit() -> None:
    x = torch.zeros(1, 32)
    assert layers(tuned(rank=1))[0]._composable(x) is None  # narrow products are cheaper
    assert layers(tuned(rank=16, dropout=0.1))[0]._composable(x) is None
    layer = layers(tuned(rank=16, dropout=0.1).eval())[0]
    assert layer._composable(x) == "default"  # dropout rests
    layer.enable_adapters(False)
    assert layer._composable(x) is None
    assert torch.equal(layer(x), layer.base_layer(x))
