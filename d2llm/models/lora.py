"""LoRA (Hu et al. 2022) by peft on any transformers model: adapters put in; and the weights a tuned model is saved
with, its adapters and added rows merged in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from d2llm.config.recipes import TunedWeights
from d2llm.models.added_rows import NAME, added_rows
from d2llm.run.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def linear_projections(model: nn.Module) -> list[str]:
    """Names of the linear modules inside the layers (attention and feed-forward), the targets of LoRA."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and any(part.isdigit() for part in name.split("."))
    ]
    if not names:
        raise TrainingError(
            f"{type(model).__name__} has no linear projections to adapt with LoRA; name them in tuning.targets"
        )
    return names


def add_lora(model: PreTrainedModel, tuning: TunedWeights) -> PreTrainedModel:
    """The model with fresh adapters, which add nothing yet. Raises ConfigError where targets or first_layer fit no
    module.
    """
    from peft import LoraConfig, inject_adapter_in_model

    from d2llm.models.fast.composed_lora import ComposedLinear

    targets = linear_projections(model) if tuning.targets == "auto" else list(tuning.targets)
    if tuning.first_layer:
        named = linear_projections(model) if tuning.targets == "auto" else [name for name, _ in model.named_modules()]
        ends = tuple(targets)
        targets = [name for name in named if name.endswith(ends) and layer_of(name) >= tuning.first_layer]
        if not targets:
            raise ConfigError(f"tuning.first_layer: {tuning.first_layer}: the model has no layer as high")
    config = LoraConfig(
        r=tuning.r,
        lora_alpha=tuning.alpha,  # type: ignore[arg-type]  # peft divides by r; it says int, and takes fractions
        lora_dropout=tuning.dropout,
        bias="none",
        target_modules=targets,
        fan_in_fan_out=model.config.model_type == "gpt2",  # Conv1D keeps its matrix the other way round
    )
    config._register_custom_module({nn.Linear: ComposedLinear})
    try:
        return cast("PreTrainedModel", inject_adapter_in_model(config, model))
    except ValueError as error:
        raise ConfigError(f"tuning.targets {targets}: {str(error).splitlines()[0]}") from error


def layer_of(name: str) -> int:
    """The number of the layer a module belongs to, from 0; −1 outside all layers."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


def adapters(model: nn.Module) -> dict[str, Any]:
    """The modules that LoRA adapts, by name."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return {}  # spares others the import of peft
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merge_lora(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights under their original names, with added rows in their matrix and every LoRA product added to
    the one it adapts.

    Of the matrix no copy is made: its own rows of these tokens, which nothing looks up, are set to what they are now.
    """
    adapted, held = adapters(model), model.state_dict()
    for name, added in added_rows(model).items():
        added.merge(held[f"{name}.weight"])
        held = {key: value for key, value in held.items() if not key.startswith(f"{name}.{NAME}.")}
    state = {}
    for name, value in held.items():
        owner = next((prefix for prefix in _parents(name) if prefix in adapted), None)
        if owner is None:
            state[name] = value
        elif name.startswith(f"{owner}.base_layer."):
            if name == f"{owner}.base_layer.weight":
                delta = sum(adapted[owner].get_delta_weight(a) for a in adapted[owner].active_adapters)
                value = (value.float() + delta.detach().float()).to(value.dtype)
            state[name.replace(".base_layer.", ".", 1)] = value
    return state


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]
