"""A whole run in miniature: `config/tiny.yaml`, whose every stage takes a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2llm.config.load import load, read
from d2llm.config.schema import Config
from d2llm.config.values import merged

SETTINGS = read(Path(__file__).resolve().parent.parent / "config" / "tiny.yaml")
# A base model, as it has two of.
BASE: dict[str, Any] = SETTINGS["models"]["decoder"]


def tiny_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The settings, with changes laid over them section by section."""
    return merged(SETTINGS | {"results": str(folder)}, changes)


def tiny_config(folder: Path, **changes: Any) -> Config:
    """The same as a validated config."""
    return load([], tiny_settings(folder, **changes))


def changed(config: Config, **changes: Any) -> Config:
    """A config of the same results folder with some settings changed."""
    return tiny_config(Path(config.results), **changes)
