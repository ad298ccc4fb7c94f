"""Equal tuning budgets: grids of one size, trials that share what they can, the best on development data adopted."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_workflow import fresh, refused, scheduled  # noqa: F401 - fresh is a fixture
from tiny_run import tiny_config

from d2llm.analysis.hyperparameters import adopt, at_edge, choose, judged, markdown, run
from d2llm.config.load import load
from d2llm.config.schema import Run
from d2llm.run.errors import ConfigError

MINI = Path(__file__).parent.parent / "config" / "mini.yaml"


def test_every_combination_is_a_trial_and_the_centre_is_the_run_itself(tmp_path: Path) -> None:
    """But with a seed that is not trained; keys reach into sections."""
    grids = {
        "sgpt": {"learning_rate": [0.001, 1e-2], "temperature": [0.05, 0.5]},
        "d2llm": {"tuning.r": [2, 4], "temperature": [0.25, 0.5]},
    }
    center = {"sgpt": {"learning_rate": 0.01}}
    config = tiny_config(tmp_path, methods=center, tuning={"seed": 1, "grids": grids})
    low, high = "learning_rate=0.001+temperature=", "learning_rate=0.01+temperature="
    names = {method: [t.run.variant for t in config.trials() if t.run.method == method] for method in grids}
    assert names["sgpt"] == [f"{low}0.05", f"{low}0.5", "base", f"{high}0.5"]
    recipes = [config.recipe("sgpt", variant) for variant in names["sgpt"]]
    assert [r.learning_rate for r in recipes] == [0.001, 0.001, 0.01, 0.01]
    assert [r.temperature for r in recipes] == [0.05, 0.5, 0.05, 0.5]
    tunings = [config.recipe("d2llm", variant).tuning for variant in names["d2llm"]]
    assert [(tuning.r, tuning.alpha) for tuning in tunings] == [(2, 2.0), (2, 2.0), (4, 2.0), (4, 2.0)]
    assert config.runs() == tiny_config(tmp_path).runs()  # trials are no part of the main comparison
    other = tiny_config(tmp_path, methods=center, tuning={"seed": 7, "grids": grids})
    assert [t.run for t in other.trials() if t.run.method == "sgpt"][2] == Run("sgpt", f"{high}0.05", 7)


RATE = "learning_rate"


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ({"sgpt": {RATE: [1e-3, 1e-2]}, "bge": {RATE: [1e-3]}}, "as many trials as the others; found sgpt 2, bge 1"),
        ({"sgptt": {RATE: [1e-3]}}, "tuning.grids.sgptt: expected one of the methods"),
        ({"sgpt": {"lerning_rate": [1e-3]}}, "nearest valid key: tuning.grids.sgpt.learning_rate"),
        ({"sgpt": {RATE: [-1.0]}}, "tuning.grids.sgpt.learning_rate: expected greater than 0"),
        ({"sgpt": {RATE: [0.0012345671, 0.0012345674]}}, "tuning.grids.sgpt: a value twice"),
        ({"sgpt": {RATE: []}}, "tuning.grids.sgpt.learning_rate"),
    ],
)
def test_unfair_or_impossible_grids_are_refused(grids: dict, message: str) -> None:
    values = yaml.safe_load(MINI.read_text(encoding="utf-8"))
    with pytest.raises(ConfigError, match=message) as error:
        load([], values | {"tuning": {"seed": 1, "grids": grids}})
    assert "\n" not in str(error.value)


def test_the_mini_tier_gives_every_method_the_same_number_of_trials() -> None:
    config = load([MINI])
    counts = {method: len(config.grid(method)) for method in config.methods}
    assert len(set(counts.values())) == 1 and min(counts.values()) >= 3
    # What the main run uses is a point of the grid it was chosen from.
    for method in config.methods:
        assert sum(trial.run == Run(method, "base", 1) for trial in config.trials()) == 1, method
    for name in ("simcse", "colbert"):  # the examples of more methods
        assert len(load([MINI, MINI.parent / f"{name}.yaml"]).grid(name)) == counts["bge"]


SCORES = pd.DataFrame(
    [("dev", "a", "pair_classification", "all", "ap", 0.6), ("dev", "b", "pair_classification", "all", "ap", 0.8),
     ("dev", "a", "pair_classification", "all", "accuracy", 0.1), ("dev", "c", "sts", "all", "spearman", 0.4),
     ("dev", "a", "pair_classification", "negation", "ap", 0.1), ("dev", "c", "sts", "all", "pearson", 0.1),
     ("dev", "d", "retrieval", "all", "mrr_at_10", 0.9)],
    columns=["split", "task", "task_type", "phenomenon", "metric", "value"],
)  # fmt: skip


def test_a_trial_is_judged_on_dev_by_kinds_of_task_alike() -> None:
    expected = {"pair_classification": 0.7, "sts": 0.4, "retrieval": 0.9, "mean": 2.0 / 3}
    assert judged(SCORES) == pytest.approx(expected)
    with pytest.raises(ValueError, match="split dev, found test"):
        judged(SCORES.assign(split="test"))


def test_the_best_mean_of_each_method_is_chosen_and_an_edge_is_said() -> None:
    axes = {"rate": [1, 2, 3], "gamma": [0, 1]}
    assert [at_edge(axes, {"rate": rate, "gamma": 0}) for rate in (1, 2, 3)] == ["rate", "", "rate"]
    trials = pd.DataFrame(
        {"method": ["a", "a", "b", "b"], "mean": [0.2, 0.5, 0.9, 0.9], "pair_classification": 0.5, "seconds": 3.2,
         "setting": ["r 1", "r 2", "r 1", "r 2"], "edge": ["", "r", "", ""]}
    )  # fmt: skip
    chosen = choose(trials)
    assert chosen["chosen"].tolist() == [False, True, True, False]
    assert markdown(chosen).splitlines()[2:4] == [
        "| a | r 1 | 0.500 | 0.200 | 3 |",
        "| a | **r 2** (edge of r) | 0.500 | 0.500 | 3 |",
    ]


TIER = """seeds: [1]
methods:
  sgpt:   # biases
    learning_rate: 1.0e-2   # why
    warmup: 0.1
  bge:
    learning_rate: 3
teacher:
    learning_rate: 5
"""


def test_adopting_changes_the_chosen_values_and_nothing_else() -> None:
    half = {"bge": {RATE: 0.5}}
    assert adopt(TIER, half | {"sgpt": {RATE: 0.03}}) == TIER.replace("1.0e-2", "0.03").replace("rate: 3", "rate: 0.5")
    before = "variants:\n  bge:\n    learning_rate: 9\n" + TIER
    assert adopt(before, half) == before.replace("rate: 3", "rate: 0.5")
    noted = adopt(TIER, half, "12 trials")
    assert noted.splitlines()[1:3] == ["methods:", "  # Tuned: 12 trials"]
    again = adopt(noted, half, "13 trials")
    assert again == noted.replace("12 trials", "13 trials") and yaml.safe_load(again) == yaml.safe_load(noted)
    for text, chosen, message in (
        (TIER.replace("learning_rate: 3", 'learning_rate: "joint x"'), half, "bge.learning_rate: not a plain value"),
        (TIER, {"sgpt": {"clip": 2.0}}, "sgpt.clip: no line of its own"),
        (TIER, {"llara": {RATE: 2.0}}, "llara: no line of its own"),
    ):
        with pytest.raises(ConfigError, match=f"methods.{message}"):
            adopt(text, chosen)


def test_every_method_needs_a_grid(tmp_path: Path, fresh: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="tuning.grids: no grid for d2llm, bge, retromae, llara, udever"):
        run(tiny_config(tmp_path, tuning={"grids": {"sgpt": {RATE: [0.1]}}}))
    line = refused(fresh, "--dry-run", "--config", "methods={simcse: {}}", "--", "tune")  # before any trial
    assert line == "error: tuning.grids: no grid for simcse; every method needs one, of equal size"


@pytest.mark.slow
def test_tune_trains_trials_on_shared_data_and_evaluates_them_on_dev_only(fresh: Path) -> None:  # noqa: F811
    jobs, config = scheduled(fresh, "tune"), load([MINI])
    assert jobs["evaluate_dev(sgpt)"] == jobs["train_sgpt(sgpt)"] == len(config.grid("sgpt"))
    assert sum(count for job, count in jobs.items() if job.startswith("evaluate_dev")) == len(config.trials())
    assert jobs["teacher"] == jobs["negatives"] == jobs["tune"] == 1
    assert not any(job.startswith(("evaluate(", "collect", "table")) for job in jobs)
