"""peft's LoRA layer with the product of its two matrices formed first, where that is cheaper: small layers, not so low ranks.

Same parameters, same function, up to rounding; only the order of the multiplications differs.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import Tensor

# How much slower a narrow product runs, per multiplication, than a square one (measured on CPU at width 128, rank 16).
NARROW = 2.0


class ComposedLinear(Linear):
    """x·(W + s·BA)ᵀ + b in one product, instead of x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ in three, while training on the CPU.

    Composing adds the gradient of the full matrix (T·n·m multiplications for T tokens, n inputs, m outputs) and saves
    the narrow products (3·T·r·(n + m)), so it pays for n·m < 3·NARROW·r·(n + m). Whatever is special (dropout, several
    or merged or disabled adapters, other LoRA variants) goes peft's own way.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._composable(x)
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        product = self.lora_B[name].weight @ self.lora_A[name].weight
        return F.linear(x, self.base_layer.weight + self.scaling[name] * product, self.base_layer.bias)

    def _composable(self, x: Tensor) -> str | None:
        """The one adapter that can be composed, or None."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1 or x.device.type != "cpu":
            return None
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.fan_in_fan_out or self.lora_bias.get(name):
            return None
        if self.training and getattr(self.lora_dropout[name], "p", 0.0) > 0:
            return None
        weight, rank = self.base_layer.weight, self.r[name]
        if weight.dtype != self.lora_A[name].weight.dtype or weight.dtype != x.dtype:
            return None
        outputs, inputs = weight.shape
        return name if outputs * inputs < 3 * NARROW * rank * (outputs + inputs) else None
