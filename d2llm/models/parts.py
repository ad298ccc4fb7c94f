"""Finds the parts of a student by name: poolings are files of `poolings/`, scorers of `scorers/`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from d2llm.run.errors import ConfigError

if TYPE_CHECKING:
    from d2llm.models.poolings.base import Pooling
    from d2llm.models.scorers.base import Scorer

Kind = Literal["pooling", "scorer"]


@cache
def names(kind: Kind) -> list[str]:
    """The parts of a kind, by the alphabet."""
    package = importlib.import_module(f"d2llm.models.{kind}s")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "base")


def module(kind: Kind, name: str) -> str:
    """The module of a part. Raises ConfigError for an unknown name."""
    known = names(kind)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.0)[0]
        raise ConfigError(f"{kind}: unknown {name!r}, expected one of {', '.join(known)} (nearest: {near})")
    return f"d2llm.models.{kind}s.{name}"


def build_pooling(name: str, hidden_size: int, /, **settings: Any) -> Pooling:
    """The pooling of that name for states of `hidden_size` numbers. Raises ConfigError for an unknown name or
    setting.
    """
    return _build("pooling", name, hidden_size, settings)


def build_scorer(name: str, size: int, /, **settings: Any) -> Scorer:
    """The scorer of that name for vectors of `size` numbers. Raises ConfigError for an unknown name or setting."""
    return _build("scorer", name, size, settings)


def _build(kind: Kind, name: str, size: int, settings: dict[str, Any]) -> Any:
    part = getattr(importlib.import_module(module(kind, name)), kind.upper())
    try:
        return part(size, **settings) if part.sized else part(**settings)
    except TypeError as error:
        raise ConfigError(f"{kind} {name}: {error}") from error
