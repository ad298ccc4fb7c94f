"""The rules by which a claim about a difference holds, is refuted or is not shown, and by which one of two methods is
better, worse or as good. Pure, and the only ones: all pages and tables judge by them.
"""

from __future__ import annotations

import math
from typing import Literal

Verdict = Literal["holds", "refuted", "not shown"]
Standing = Literal["better", "worse", "equivalent", "undecided"]


def verdict(
    difference: float,
    low: float,
    high: float,
    p: float | None,
    level: float,
    threshold: float = 0.0,
    margin: float = 0.0,
    seeds: int = 2,
) -> Verdict:
    """Of the claim that a difference is above `threshold`, from its interval [low, high] at `level` and its corrected
    p.

    Above or below zero is judged by p, which is corrected for all that was asked; where p is None or NaN, and at any
    other threshold, by the interval: the claim holds if all of it is above, is refuted if all of it is below. A lead is
    refuted with power as well: where all of the interval is below `margin`, what lead there may be does not matter.
    Of one training a side (`seeds`) nothing is shown, unless it was tested all the same. Whatever is neither is not
    shown, which says nothing about how small the difference is: the interval does, and the difference that would have
    been found (`inference.detectable`).
    """
    tested = p is not None and not math.isnan(p)
    if seeds < 2 and not tested:
        return "not shown"
    if p is not None and tested and threshold == 0.0:
        decided = difference != 0 and p < 1 - level
        if decided and difference > 0:
            return "holds"
        return "refuted" if decided or high < margin else "not shown"
    if low > threshold:
        return "holds"
    return "refuted" if high < max(threshold, margin) else "not shown"


def standing(low: float, high: float, margin: float) -> Standing:
    """Of the first of two methods, from the interval of its lead: equivalent where all of it is within `margin` on
    either side, however sure the difference; else better or worse where zero is outside it.
    """
    if -margin < low and high < margin:
        return "equivalent"
    return "better" if low > 0 else "worse" if high < 0 else "undecided"
