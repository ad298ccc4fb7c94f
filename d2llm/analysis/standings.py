"""Every pair of methods on every kind of task: better, worse, equivalent or undecided; ranks, and who is tied for
first. And means over runs that one lucky training does not move (Agarwal et al. 2021, as rliable defines them). Pure.

Where `comparison` asks one question (the strongest baseline), this asks all at once: the intervals of a kind's pairs
hold together, with the confidence of one, so that any verdicts, ranks and ties read off them do as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from d2llm.analysis.verdicts import standing
from d2llm.run.schemas import STANDINGS, VERDICTS


class Pairs(NamedTuple):
    """Of all pairs (i, j), i < j: i's lead, its simultaneous interval, and its p-value corrected for all pairs."""

    difference: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


class Scores(NamedTuple):
    """A kind of task: `runs` (m, t, s), scores by method, task and training; `drawn` (m, r), a method's mean over tasks
    and trainings on every resample of the examples.
    """

    group: str
    metric: str
    methods: Sequence[str]
    runs: np.ndarray
    drawn: np.ndarray


def simultaneous(rng: np.random.Generator, observed: np.ndarray, drawn: np.ndarray, level: float) -> Pairs:
    """Intervals that hold for all pairs at once: the level's quantile of the largest standardised error (Tukey's range,
    by bootstrap). observed (m, s): means of every training; drawn (m, r) on resamples of the examples.

    The luck of trainings is a t distribution with (m − 1)(s − 1) degrees of freedom: a pair's own variance, or where
    that is smaller the mean one, as three trainings that happen to agree do not show that a fourth will.
    """
    (methods, seeds), count = observed.shape, drawn.shape[1]
    one, two = np.array(list(combinations(range(methods), 2))).T
    differences = observed[one] - observed[two]
    luck = np.zeros(len(one))
    errors = drawn[one] - drawn[two]
    errors -= errors.mean(1, keepdims=True)
    if seeds > 1:
        own = differences.var(1, ddof=1)
        luck = np.maximum(own, own.mean()) / seeds
        freedom = (methods - 1) * (seeds - 1)
        normal = rng.normal(size=drawn.shape) / np.sqrt(rng.chisquare(freedom, count) / freedom)
        errors += (normal[one] - normal[two]) * np.sqrt(luck / 2)[:, None]
    scale = errors.std(1)
    scale[scale == 0] = 1.0  # a method beside its own copy: no error, no difference
    largest = (np.abs(errors) / scale[:, None]).max(0)
    difference = differences.mean(1)
    width = np.quantile(largest, level) * scale * (errors.std(1) > 0)
    beyond = (largest[None, :] >= (np.abs(difference) / scale)[:, None]).sum(1)
    return Pairs(difference, difference - width, difference + width, (beyond + 1) / (count + 1))


def interquartile_mean(runs: np.ndarray) -> np.ndarray:
    """The mean of the middle half of all scores (…, t, s) of a method: a quarter is cut off at either end."""
    values = np.sort(runs.reshape(*runs.shape[:-2], -1), axis=-1)
    cut = values.shape[-1] // 4
    return values[..., cut : values.shape[-1] - cut].mean(-1)


def improvement(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """The chance that a training of the first scores higher than one of the second, ties counted half, mean over tasks:
    (…, t, s) each.
    """
    apart = one[..., :, None] - two[..., None, :]
    return ((apart > 0) + 0.5 * (apart == 0)).mean(axis=(-3, -2, -1))


def resampled_runs(rng: np.random.Generator, runs: np.ndarray, draws: int) -> np.ndarray:
    """(draws, t, s): trainings of (t, s) drawn anew within every task (rliable's stratified bootstrap)."""
    return np.take_along_axis(runs[None], rng.integers(0, runs.shape[1], (draws, *runs.shape)), axis=2)


def rank_intervals(verdicts: dict[tuple[int, int], str], methods: int) -> list[tuple[int, int]]:
    """Best and worst rank each method may have: below all that are better, above all that are worse than it."""
    better = np.zeros((methods, methods), dtype=bool)
    for (one, two), word in verdicts.items():
        better[one, two], better[two, one] = word == "better", word == "worse"
    return [(1 + int(better[:, n].sum()), methods - int(better[n].sum())) for n in range(methods)]


def judge(
    scores: Scores, level: float, margin: float, seed: int, draws: int = 2000
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rows of `verdicts.csv`, rows of `standings.csv`) of a kind of task. Of one training a method nothing is decided."""
    rng = np.random.default_rng([seed, 2, *scores.group.encode()])
    pairs = simultaneous(rng, scores.runs.mean(1), scores.drawn, level)
    places, seeds = list(combinations(range(len(scores.methods)), 2)), scores.runs.shape[2]
    verdicts: dict[tuple[int, int], str] = {}
    rows, edges = [], [(1 - level) / 2, (1 + level) / 2]
    for place, (one, two) in enumerate(places):
        numbers = {key: float(values[place]) for key, values in pairs._asdict().items()}
        word = standing(numbers["low"], numbers["high"], margin) if seeds > 1 else "undecided"
        verdicts[one, two] = word
        left, right = scores.runs[one], scores.runs[two]
        again = improvement(resampled_runs(rng, left, draws), resampled_runs(rng, right, draws))
        low, high = np.quantile(again, edges)
        own = {"improvement": float(improvement(left, right)), "improvement_low": low, "improvement_high": high}
        names = {"method": scores.methods[one], "baseline": scores.methods[two], "verdict": word, "seeds": seeds}
        rows.append({"group": scores.group, "metric": scores.metric, **numbers, **own, **names})
    ranks, table = rank_intervals(verdicts, len(scores.methods)), []
    for place, name in enumerate(scores.methods):
        runs = scores.runs[place]
        low, high = np.quantile(interquartile_mean(resampled_runs(rng, runs, draws)), edges)
        own = {"value": runs.mean(), "iqm": float(interquartile_mean(runs)), "iqm_low": low, "iqm_high": high}
        own |= {"rank_low": ranks[place][0], "rank_high": ranks[place][1], "first": ranks[place][0] == 1}
        table.append({"group": scores.group, "metric": scores.metric, "method": name, "seeds": seeds, **own})
    return pd.DataFrame(rows, columns=list(VERDICTS)), pd.DataFrame(table, columns=list(STANDINGS))
