"""What counts as a text at all: something in it can be seen. One rule for files, command lines and evaluation sets."""

from __future__ import annotations

import re
from typing import Any

# Half of a pair that stands for one character: JSON can write it alone, and so comes what is no UTF-8 on a command
# line; no file of ours can hold it.
HALF = re.compile("[\ud800-\udfff]")
# What Unicode calls default ignorable, as a class of characters: zero-width marks, fillers, variation selectors, byte
# order marks, tags.
IGNORABLE = (
    "\\xad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b-\\u200f\\u202a-\\u202e\\u2060-\\u206f\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0"
    "\\ufff0-\\ufff8\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a\\U000e0000-\\U000e0fff"
)
# Neither white space, nor a control character, nor ignorable, nor an annotation mark, nor the empty Braille cell.
VISIBLE = re.compile(f"[^\\s\\x00-\\x1f\\x7f-\\x9f\\u2800\\ufff9-\\ufffb{IGNORABLE}]")


def is_blank(text: str) -> bool:
    """Whether a text shows nothing.

    >>> [is_blank(text) for text in ("", " \\u200b\\ufeff", "\\u200bword", "\\U0001f600")]
    [True, True, False, False]
    """
    return VISIBLE.search(text) is None


def is_text(value: Any) -> bool:
    """Whether a value is a text that shows something and that UTF-8 can hold."""
    return isinstance(value, str) and not is_blank(value) and not HALF.search(value)
