"""peft's LoRA layer with the product of its two matrices formed first, where that is cheaper: small layers, many
tokens.

Same parameters, same function, up to rounding; only the order of the multiplications differs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import Tensor

# Entries of the largest matrix that is composed: the graph keeps a copy of each, which large models have no room for.
LARGEST = 1 << 20


class ComposedLinear(Linear):
    """x·(W + s·BA)ᵀ + b in one product, instead of x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ in three, while training on the CPU.

    For T tokens, n inputs, m outputs and rank r, composing costs r·n·m multiplications and spares T·r·(n + m), so it
    pays for T > n·m / (n + m). Whatever is special (dropout, several or merged or disabled adapters, other LoRA
    variants) goes peft's own way.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parts = None if args or kwargs else self._composable(x)
        return super().forward(x, *args, **kwargs) if parts is None else _Composed.apply(x, *parts)

    def _composable(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, float] | None:
        """W, b, A, B and s of the one adapter that can be composed, or None. It is asked in every pass, so each module
        is looked up once.
        """
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1 or x.device.type != "cpu":
            return None
        name, downs = self.active_adapters[0], self.lora_A
        if name not in downs or name in self.lora_variant or self.fan_in_fan_out or self.lora_bias.get(name):
            return None
        if self.training and getattr(self.lora_dropout[name], "p", 0.0) > 0:
            return None
        base: Any = self.base_layer  # of two sizes, linear; peft declares any module
        ends: tuple[Any, Any] = (downs[name], self.lora_B[name])
        weight, bias, down, up = base.weight, base.bias, ends[0].weight, ends[1].weight
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        if trained or not weight.dtype == down.dtype == x.dtype or torch.is_autocast_enabled("cpu"):
            return None
        outputs, inputs = weight.shape
        pays = x.numel() // inputs * (outputs + inputs) > outputs * inputs
        return (weight, bias, down, up, self.scaling[name]) if pays and outputs * inputs <= LARGEST else None


class _Composed(torch.autograd.Function):
    """The layer, with the gradients of its two adapter matrices by narrow products; W and b are constants."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        whole = torch.addmm(weight, up, down, alpha=scale)
        ctx.save_for_backward(x, whole, down, up)
        ctx.scale = scale
        return F.linear(x, whole, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, whole, down, up = ctx.saved_tensors
        to_x = gradient @ whole if ctx.needs_input_grad[0] else None
        flat, rows = gradient.flatten(0, -2), x.flatten(0, -2)
        scaled = flat @ up * ctx.scale
        to_down = scaled.T @ rows if ctx.needs_input_grad[3] else None
        to_up = flat.T @ (rows @ down.T) * ctx.scale if ctx.needs_input_grad[4] else None
        return to_x, None, None, to_down, to_up, None
