"""Nested settings as plain values: laid over one another, spelled out, named."""

import json
from collections.abc import Mapping
from typing import Any

from d2llm.config.section import Section


def plain(value: Any) -> str:
    """A grid's value as part of a name, the same for equal numbers."""
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value).lower()


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`{"tuning.r": 4}` as `{"tuning": {"r": 4}}`."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        out = merged(out, value)
    return out


def canonical(value: Any) -> str:
    """Settings as one line of JSON, the same for equal settings."""
    if isinstance(value, Section):
        value = value.model_dump(mode="json")
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


# A section with one of these keys, laid over one without it, is of another kind and takes its place: a set of mteb's
# over one of files, a table of the hub over a file.
KINDS = ("mteb", "repo")


def merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`extra` laid over `base`, section by section. An empty section in `extra` adds nothing and removes nothing."""
    result = dict(base)
    for name, value in extra.items():
        below = result.get(name)
        if not isinstance(below, Mapping) or not isinstance(value, Mapping):
            result[name] = value
        elif any(kind in value and kind not in below for kind in KINDS):
            result[name] = dict(value)
        else:
            result[name] = merged(below, value)
    return result
