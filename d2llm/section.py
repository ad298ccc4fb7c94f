"""Base class of every configuration section. Kept apart from `d2llm.config` so that sections can be declared anywhere."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

__all__ = ["Names", "Pair", "Section"]


class Section(BaseModel):
    """A frozen part of the configuration: unknown keys are refused, values are not converted (an int may be a float)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# YAML knows lists only; sections hold tuples, so that they stay frozen and hashable.
Pair = Annotated[tuple[float, float], BeforeValidator(_as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
