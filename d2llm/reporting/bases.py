"""Base models in words, for tables and figures: sizes of those made here, names of those taken from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.config.sections import BaseSettings

if TYPE_CHECKING:
    from d2llm.config.sections import PretrainedSettings


def size(model: BaseSettings | PretrainedSettings, between: str = " of ", heads: bool = False) -> str:
    """Layers and width, and attention heads if asked; or the name of a checkpoint, and how much of it is kept."""
    if isinstance(model, BaseSettings):
        description = f"{layers(model.layers)}{between}width {model.hidden_size}"
        return description + (f", {model.heads} heads" if heads else "")
    return name(model.source) + (f", lowest {layers(model.layers)}" if model.layers else "")


def layers(count: int) -> str:
    """A number of layers in words."""
    return f"{count} layer" + ("" if count == 1 else "s")


def name(source: str) -> str:
    """The last part of where a checkpoint comes from, without a file's ending."""
    return source.rstrip("/").rpartition("/")[2].removesuffix(".gguf")


def width(model: BaseSettings | PretrainedSettings, times: int = 1, known: int | None = None) -> str:
    """The width of its states, or of `times` of them side by side; of a checkpoint as far as it is `known`, else d."""
    states = model.hidden_size if isinstance(model, BaseSettings) else known
    if states is not None:
        return str(times * states)
    return "d" if times == 1 else f"{times}d"
