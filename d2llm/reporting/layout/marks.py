"""Which of several scores is best and which the runner-up, judged as they are printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from d2llm.reporting.style import DECIMALS

Mark = Literal["", "best", "second"]


def marks(scores: Mapping[str, float]) -> dict[str, Mark]:
    """The mark of every name; higher is better.

    Scores that print alike are ties and share their mark: all of the best are "best", and the runner-up is whatever
    prints next below. A lone score, or scores that are all equal, get no mark: there is nothing to tell apart.

    >>> marks({"a": 0.91, "b": 0.95, "c": 0.95, "d": 0.91001})
    {'a': 'second', 'b': 'best', 'c': 'best', 'd': 'second'}
    """
    printed = {name: round(score, DECIMALS) for name, score in scores.items()}
    levels = sorted(set(printed.values()), reverse=True)
    if len(levels) < 2:
        return dict.fromkeys(scores, "")
    words: dict[float, Mark] = {levels[0]: "best", levels[1]: "second"}
    return {name: words.get(value, "") for name, value in printed.items()}
