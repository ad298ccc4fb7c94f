"""The normal form of a text, by which two texts count as one wherever the suite compares texts, and which texts are
right for a query by it.

Mining, in-batch negatives, leaks and their removal, pairs judged twice: all ask here. Texts are stored and fed to
models as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from unicodedata import normalize

from d2llm.models.text import IGNORABLE

INVISIBLE = re.compile(f"[{IGNORABLE}]")
# Full-width ASCII, as in Chinese punctuation. NFKC narrows it too, but takes four times as long over a passage that has
# any.
WIDE = re.compile("[\uff01-\uff5e]")


@lru_cache(maxsize=1 << 16)
def normal_form(text: str) -> str:
    """Without invisible characters, by Unicode's NFKC and full case folding, each run of white space one blank, none at
    the ends.

    Composed and decomposed characters become one, as do full and half width, ligatures and letters, upper and lower
    case. Punctuation stays, and so do a blank between two characters, accents, and simplified beside traditional
    characters.

    >>> normal_form("  Ｈｅｌｌｏ，\\u3000 Ｗorld\\u200b")
    'hello, world'
    """
    if text.isascii():
        return " ".join(text.lower().split())
    narrow = WIDE.sub(lambda letter: chr(ord(letter[0]) - 0xFEE0), INVISIBLE.sub("", text))
    # Folding case takes some characters apart again.
    return " ".join(normalize("NFKC", normalize("NFKC", narrow).casefold()).split())


def distinct(texts: Iterable[str]) -> list[str]:
    """The first spelling of every text, in their order."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(normal_form(text), text)
    return list(first.values())


def right_forms(rows: Iterable[tuple[str, str, Iterable[str]]]) -> dict[str, set[str]]:
    """By the normal form of every query: the forms of all texts that are right for it, and its own. None of them is a
    negative of it.

    Rows are those of one training set: query, positive and the texts that the set marks as right for the query. A
    direction is kept: that b is right for a does not make a right for b.
    """
    right: dict[str, set[str]] = {}
    for query, positive, marked in rows:
        form = normal_form(query)
        right.setdefault(form, {form}).update(map(normal_form, [positive, *marked]))
    return right
