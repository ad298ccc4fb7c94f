"""Verdicts on pairs of methods, by simulation: rate of errors, power, copies; robust means as rliable has them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from d2llm.analysis import standings
from d2llm.analysis.verdicts import standing

TRUTH = np.array([0.80, 0.80, 0.80, 0.75, 0.75])


def test_verdicts_err_and_decide_as_often_as_they_say() -> None:
    """Of five methods three are alike: those that do not differ are called different in one study of twenty, the true
    differences are within all intervals together as often as these claim, and .05 is seen.
    """
    rng, wrong, inside, seen = np.random.default_rng(1), [], [], []
    for _ in range(120):
        study = TRUTH + rng.normal(0, 0.004, 5)  # the examples' luck, then the trainings', of which one method has more
        observed = study[:, None] + rng.normal(0, [[0.012], [0.006], [0.006], [0.006], [0.006]], (5, 3))
        drawn = observed.mean(1, keepdims=True) + rng.normal(0, 0.004, (5, 1000))
        pairs = standings.simultaneous(rng, observed, drawn, 0.95)
        one, two = np.triu_indices(5, 1)
        truth = TRUTH[one] - TRUTH[two]
        words = [standing(low, high, 1e-9) for low, high in zip(pairs.low, pairs.high, strict=True)]
        wrong.append(any(word != "undecided" for word, gap in zip(words, truth, strict=True) if gap == 0))
        inside.append(((pairs.low <= truth) & (truth <= pairs.high)).all())
        seen += [word == "better" for word, gap in zip(words, truth, strict=True) if gap > 0]
        assert ((pairs.p < 0.05) == (np.array(words) != "undecided")).mean() > 0.9
    assert np.mean(wrong) <= 0.08 and np.mean(inside) >= 0.91 and np.mean(seen) > 0.8


def test_a_method_beside_its_own_copy_is_never_better() -> None:
    rng = np.random.default_rng(2)
    runs = rng.normal(0.8, 0.01, (3, 2, 4))
    runs[1] = runs[0]
    runs[2] -= 0.2
    drawn = runs.mean((1, 2))[:, None] + rng.normal(0, 0.002, (1, 800))  # and what all share is in no difference
    scores = standings.Scores("nli", "ap", ["mine", "copy", "worse"], runs, drawn)
    verdicts, table = standings.judge(scores, 0.95, 0.05, seed=1, draws=50)
    words = verdicts.set_index(["method", "baseline"])["verdict"].to_dict()
    assert words == {("mine", "copy"): "equivalent", ("mine", "worse"): "better", ("copy", "worse"): "better"}
    assert table.set_index("method")[["rank_low", "rank_high"]].to_numpy().tolist() == [[1, 2], [1, 2], [3, 3]]
    assert table["first"].tolist() == [True, True, False]
    assert verdicts["improvement"].tolist() == [pytest.approx(0.5, abs=0.2), 1.0, 1.0]
    # One training of each decides nothing, however far apart.
    alone, table = standings.judge(scores._replace(runs=runs[:, :, :1]), 0.95, 0.05, seed=1, draws=10)
    assert set(alone["verdict"]) == {"undecided"} and table["first"].all() and set(table["rank_high"]) == {3}


def test_a_verdict_by_hand() -> None:
    cases = {(0.02, 0.05): "better", (-0.05, -0.02): "worse", (-0.02, 0.05): "undecided", (0.001, 0.009): "equivalent"}
    assert {edges: standing(*edges, 0.01) for edges in cases} == cases


def test_robust_means_are_those_of_rliable() -> None:
    """By hand, and by the calls of scipy that rliable makes (its metrics.py): a trimmed mean, and Mann-Whitney's U."""
    one, two = np.array([[0.1, 0.5, 0.9], [0.2, 0.4, 0.6]]), np.array([[0.0, 0.5, 1.0], [0.1, 0.3, 0.7]])
    # Six scores, one cut at either end: (.2 + .4 + .5 + .6) / 4.
    assert standings.interquartile_mean(one) == pytest.approx(0.425)
    assert standings.interquartile_mean(two) == pytest.approx(stats.trim_mean(two, 0.25, axis=None))
    # Of nine pairs 4 and a tie; and 5: (4.5 / 9 + 5 / 9) / 2.
    assert standings.improvement(one, two) == pytest.approx((4.5 / 9 + 5 / 9) / 2)
    u = [stats.mannwhitneyu(x, y).statistic / 9 for x, y in zip(one, two, strict=True)]
    assert standings.improvement(one, two) == pytest.approx(np.mean(u))
    assert standings.rank_intervals({(0, 1): "better", (0, 2): "undecided", (1, 2): "worse"}, 3) == [
        (1, 2),
        (3, 3),
        (1, 2),
    ]
