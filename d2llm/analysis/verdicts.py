"""The one rule by which a claim about a difference holds, is refuted or is not shown. Pure."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["holds", "refuted", "not shown"]


def verdict(
    difference: float, low: float, high: float, p: float | None, level: float, threshold: float = 0.0
) -> Verdict:
    """Of the claim that a difference is above `threshold`, from its interval [low, high] at `level` and its corrected p.

    Above or below zero is judged by p, which is corrected for all that was asked; where p is None, and at any other
    threshold, by the interval: the claim holds if all of it is above, is refuted if all of it is below. Whatever is
    neither is not shown, which says nothing about how small the difference is: the interval does.
    """
    if threshold == 0.0 and p is not None:
        decided = difference != 0 and p < 1 - level
        return "not shown" if not decided else "holds" if difference > 0 else "refuted"
    if low > threshold:
        return "holds"
    return "refuted" if high < threshold else "not shown"
