"""Base class of every configuration section. Kept apart from `d2llm.config.schema` so that sections can be declared
anywhere.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

__all__ = ["Names", "Pair", "Section", "has"]


class Section(BaseModel):
    """A frozen part of the configuration: unknown keys are refused, values are not converted (an int may be a
    float).
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def has(value: Any, key: str) -> bool:
    """Whether a section, or what is to become one, sets a key: which member of a union it is, is told by that."""
    return key in value if isinstance(value, dict) else hasattr(value, key)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# YAML knows lists only; sections hold tuples, so that they stay frozen and hashable.
Pair = Annotated[tuple[float, float], BeforeValidator(_as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
