"""Bootstrap metrics against scikit-learn and scipy on the resample written out; intervals by coverage; power and Holm by
hand.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score

from d2llm.analysis import inference, statistics
from d2llm.cli.plan.detect import text


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 40), st.booleans())
def test_weighted_metrics_are_those_of_the_resample_written_out(seed: int, n: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    score = rng.normal(size=n).round(0 if ties else 9)
    label, target = rng.integers(0, 2, n), rng.integers(0, 6, n).astype(float)
    counts = statistics.resamples(rng, np.arange(n), 5)
    scores = np.stack([target, score])  # several at once; the first has ties
    ap = statistics.average_precision(scores, label, counts)[1]
    rho = statistics.spearman(scores, target, counts)[1]
    average = statistics.mean(scores, None, counts)[1]
    for row, drawn in enumerate(counts.T):
        index = np.repeat(np.arange(n), drawn)
        assert average[row] == pytest.approx(score[index].mean())
        expected = average_precision_score(label[index], score[index]) if label[index].any() else 0
        assert ap[row] == pytest.approx(expected)
        if len(set(score[index])) > 1 and len(set(target[index])) > 1:
            assert rho[row] == pytest.approx(stats.spearmanr(score[index], target[index])[0])
        else:
            assert np.isnan(rho[row])


def test_resamples_keep_their_size_and_are_uniform() -> None:
    counts = statistics.resamples(np.random.default_rng(0), np.arange(10), 20_000)
    assert (counts.sum(0) == 10).all()
    assert counts.mean(1) == pytest.approx(np.ones(10), abs=0.03)
    # Clusters are drawn whole.
    counts = statistics.resamples(np.random.default_rng(0), np.array([0, 0, 1, 2, 2, 2]), 500)
    assert (counts[0] == counts[1]).all() and (counts[3] == counts[5]).all()
    assert (counts[[0, 2, 3]].sum(0) == 3).all()


@pytest.mark.parametrize("size", [2, 3, 5])
def test_intervals_cover_what_they_claim_over_seeds(size: int) -> None:
    """Runs of mean 0.2 that differ by seed: the interval from `size` of them holds 0.2 nineteen times of twenty."""
    rng = np.random.default_rng(6)
    held, rejected = [], []
    for _ in range(1000):
        per_seed = rng.normal(0.2, 1.0, size)
        drawn = per_seed.mean() + inference.seed_luck(rng, per_seed, 1000)
        interval = inference.interval(float(per_seed.mean()), drawn)
        held.append(interval.low <= 0.2 <= interval.high)
        shifted = inference.interval(float(per_seed.mean() - 0.2), drawn - 0.2)
        rejected.append(shifted.p < 0.05)
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)
    assert np.mean(rejected) == pytest.approx(0.05, abs=0.025)


def test_interval_by_hand() -> None:
    interval = inference.interval(0.5, np.array([-1.0, *range(1, 99)], dtype=float), level=0.9)
    assert (interval.difference, interval.p) == (0.5, pytest.approx(2 * 2 / 100))
    assert (interval.low, interval.high) == pytest.approx(np.quantile([-1, *range(1, 99)], [0.05, 0.95]))
    assert inference.interval(0.0, np.array([np.nan])).p == 1.0
    assert inference.interval(0.0, np.zeros(9)).p == 1.0
    # The luck of one seed is not known.
    assert (inference.seed_luck(np.random.default_rng(0), np.array([0.3]), 5) == 0).all()


def test_intervals_cover_what_they_claim_and_p_is_uniform_where_nothing_differs() -> None:
    """Of two noisy scorers on the same examples, whose true difference is 0.2."""
    rng = np.random.default_rng(3)
    held, p = [], []
    for _ in range(400):
        shared = rng.normal(size=150)
        first, second = shared + rng.normal(0.2, 1, 150), shared + rng.normal(0.0, 1, 150)
        counts = statistics.resamples(rng, np.arange(150), 400)
        drawn = np.subtract(*statistics.mean(np.stack([first, second]), None, counts))
        interval = inference.interval(float((first - second).mean()), drawn)
        held.append(interval.low <= 0.2 <= interval.high)
        p.append(inference.interval(interval.difference - 0.2, drawn - 0.2).p)
    assert 0.92 <= np.mean(held) <= 0.98
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.035)
    assert stats.kstest(p, "uniform").statistic < 0.1


def test_holm_by_hand() -> None:
    # 0.01·4, 0.02·3, 0.03·2 (raised to the one before), 0.5·1
    assert inference.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert inference.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert len(inference.holm([])) == 0
    # What is not tested does not count.
    assert inference.holm([np.nan, 0.02, 0.5]) == pytest.approx([np.nan, 0.04, 0.5], nan_ok=True)


def test_a_detectable_difference_is_detected_as_often_as_it_says() -> None:
    """By simulation, with luck of examples and of five trainings; a normal distribution's textbook number without."""
    assert inference.detectable(0.01, 0.0, 5, 0.05) == pytest.approx(0.01 * (1.95996 + 0.84162), rel=1e-4)
    assert np.isnan(inference.detectable(0.01, np.nan, 1, 0.05))
    rng, size = np.random.default_rng(5), inference.detectable(0.5, 1.0, 5, 0.05)
    detected = []
    for _ in range(600):
        per_seed = rng.normal(size + rng.normal(0, 0.5), 1.0, 5)
        drawn = per_seed.mean() + rng.normal(0, 0.5, 600) + inference.seed_luck(rng, per_seed, 600)
        detected.append(inference.interval(float(per_seed.mean()), drawn).p < 0.05)
    assert np.mean(detected) == pytest.approx(0.8, abs=0.05)


def test_plan_says_what_it_takes_to_see_a_difference() -> None:
    """Where trainings do not differ, four times the examples halve it; where examples do not, more trainings alone help."""
    same = {"seeds": 3, "baseline": "bge"}
    rows = [{"group": "ir", "se_examples": 0.01, "sd_seeds": 0.0, "n": 100} | same,
            {"group": "nli", "se_examples": 0.0, "sd_seeds": 0.01, "n": 700} | same]  # fmt: skip
    edge = 0.01 * (stats.norm.isf(0.0125) + stats.norm.isf(0.2))
    _, ir, nli, _ = text(pd.DataFrame(rows), edge / 2 + 1e-5, 0.95).splitlines()
    assert f"{edge:.4f} with 3 trainings and 100 examples" in ir and ir.endswith("with 400 examples")
    assert "trainings of each" in nli and "700 examples, as they are" in nli and not nli.endswith("examples")
