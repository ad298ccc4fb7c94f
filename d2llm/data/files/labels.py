"""What a label means: which spellings are one label, and which labels mean yes or no. Reading files and dropping rows
is elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from d2llm.config.data import NO

WHOLE = re.compile(r"([+-]?[0-9]+)\.0+")


def label_key(value: Any) -> str:
    """One spelling of a label, whatever type and blanks its file gives it: True, 1, 1.0, "1" and " 1.0 " are one label;
    case and width count.

    A list or an object gives its Python form, which no config names.
    """
    value = value.item() if hasattr(value, "item") and not hasattr(value, "__len__") else value
    if isinstance(value, bool):
        return str(int(value))
    text = str(value).strip()
    if whole := WHOLE.fullmatch(text):
        text = whole.group(1)
    return {"true": "1", "false": "0"}.get(text.lower(), text)


def meanings(yes: Sequence[Any], no: Sequence[Any] | None) -> Mapping[str, bool]:
    """Every named label by its spelling, and whether it means yes; `no` None: 0. Raises ValueError for a label that
    means both.
    """
    positive = {label_key(value) for value in yes}
    negative = {label_key(value) for value in (NO if no is None else no)}
    if both := positive & negative:
        raise ValueError(f"labels that mean yes or no, not both; {min(both)!r} is in yes and in no (null: 0)")
    return dict.fromkeys(sorted(positive), True) | dict.fromkeys(sorted(negative), False)
