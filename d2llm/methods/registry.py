"""Finds a method by name, as what trains. What a config knows of it is in `d2llm.config.registry`."""

from __future__ import annotations

from d2llm.config.registry import declared
from d2llm.methods.base import Method
from d2llm.run.errors import ConfigError


def method(name: str) -> Method:
    """The method of that name. Raises ConfigError with the nearest known name."""
    chosen = declared(name)
    if not isinstance(chosen, Method):
        raise ConfigError(f"method {name!r}: its METHOD is no instance of d2llm.methods.base.Method")
    return chosen
