"""Trainings and their curves, collected: every logged number in its place, damage told by name; their figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import training_records as made
from matplotlib import pyplot

from d2llm.config.schema import Config
from d2llm.evaluation import curves
from d2llm.reporting.collected import collected
from d2llm.reporting.drawing import figures
from d2llm.reporting.figures import dev as figure_dev
from d2llm.reporting.figures import losses as figure_losses
from d2llm.run.artifacts import read_csv, read_frame, read_json, write_json
from d2llm.run.errors import ArtifactError
from d2llm.run.paths import Paths
from d2llm.run.schemas import CURVES, RUNS


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = Config(results=str(tmp_path), methods={"bge": {}, "d2llm": {}}, seeds=[1, 2])
    made.write_collected(config)
    return config


def test_every_training_is_a_line_with_what_it_took(config: Config) -> None:
    table = read_csv(Paths.of(config).trainings, RUNS)
    assert list(table.columns) == list(RUNS)
    assert table.set_index(["method", "seed"]).loc[("d2llm", 2)].to_dict() == {
        "variant": "base", "kind": "decoder", "pooling": "pma (heads 4)", "scorer": "iem (hidden 16, scale 10)",
        "updates": 40, "queries": 640, "negatives_per_query": 4, "backbone_trained": 69632, "head_trained": 461441,
        "parameters": 958337, "seconds": 102.0, "pretext_seconds": 1.5, "peak_memory_mb": 802.0, "last_loss": 0.25,
    }  # fmt: skip
    runs = [(method, seed) for method in ("bge", "d2llm") for seed in (1, 2)]
    assert list(zip(table["method"], table["seed"], strict=True)) == runs


def test_curves_hold_every_term_and_score_and_nothing_else(config: Config) -> None:
    table = read_frame(Paths.of(config).curves, CURVES)
    expected = [
        (*run, record["stage"], record["step"], name, value)
        for run in config.runs()
        for record in made.records(run)
        for name, value in record.items()
        if name in {"ci", "fi", "info_nce", "lm", "mlm", "loss", *made.TASKS}
    ]
    assert [tuple(row) for row in table.itertuples(index=False)] == expected
    assert set(table["stage"]) == {"bge, own", "fine-tuning", "dev"}


def test_damage_is_told_by_name(config: Config) -> None:
    run = config.runs()[2]
    folder = Paths.of(config).run(*run)
    log, record = folder / "log.jsonl", folder / "provenance.json"
    good, summary = log.read_text(encoding="utf-8"), read_json(folder / "summary.json")

    def refused(message: str) -> None:
        with pytest.raises(ArtifactError, match=message):
            curves.trainings({run: folder})
            curves.curves({run: [log]}, {run: made.UPDATES})

    for text, message in (
        (good.replace('"step": 8,', "", 1), "log.jsonl: record 4 has no stage and step"),
        (good.replace('"fi": 0.001', '"fi": NaN', 1), "log.jsonl: record 1: fi is nan, expected a finite number"),
        (good + good.split("\n")[0], "log.jsonl: ci of fine-tuning, step 2, twice"),
        ("\n".join(good.split("\n")[:10]), "log.jsonl: fine-tuning ends at update 20, expected 40"),
    ):
        assert text != good
        log.write_text(text, encoding="utf-8")
        refused(message)
    log.unlink()
    refused("d2llm/base/seed1/log.jsonl: missing")
    for wrong, message in (
        ({"seed": 7}, r"summary.json: of run \('d2llm', 'base', 7\), expected \('d2llm', 'base', 1\)"),
        ({"parameters": {}}, "summary.json or provenance.json beside it: damaged .*backbone_trained"),
    ):
        write_json(folder / "summary.json", summary | wrong)
        refused(message)
    write_json(folder / "summary.json", summary)
    write_json(record, {})
    refused("damaged .*peak_memory_mb")


# ------------------------------------------------------------------------------------------------------------- figures
@pytest.fixture
def styled() -> Iterator[None]:
    matplotlib.use("Agg")
    with pyplot.style.context(figures.STYLE):
        yield
    pyplot.close("all")


def data_of(config: Config) -> figures.Data:
    """With three evaluated tasks and a variant, which no figure is to show."""
    kinds = [("nli_x", "nli", "pair_classification"), ("sts_x", "sts", "sts"), ("ir_x", "ir", "retrieval")]
    scores = pd.DataFrame(kinds, columns=["task", "group", "task_type"])
    own = collected(Paths.of(config), ("curves",)).curves
    both = pd.concat([own, own.assign(variant="hot", value=99.0)], ignore_index=True)
    return figures.Data(figures.Collected(scores=scores, curves=both), figures.context(config), config)


def band(axis: matplotlib.axes.Axes, place: int) -> tuple[float, float]:
    """Lowest and highest edge of a panel's band at its first step."""
    points = axis.collections[place].get_paths()[0].vertices
    first = points[points[:, 0] == points[:, 0].min(), 1]
    return float(first.min()), float(first.max())


def test_losses_are_running_means_over_seeds(config: Config, styled: None) -> None:
    figure = figure_losses.draw(data_of(config))
    left, right = figure.axes
    assert [axis.get_title(loc="left") for axis in (left, right)] == ["BGE", "D2LLM"]  # the subject last
    lines = {line.get_label(): line for line in right.lines}
    assert set(lines) == {"CI", "FI", "sum"}
    steps = list(range(2, made.UPDATES + 1, 2))
    assert lines["CI"].get_xdata().tolist() == steps
    values = [(made.ci(1, step) + made.ci(2, step)) / 2 for step in steps]
    expected = [np.mean(values[max(0, i - 4) : i + 5]) for i in range(len(values))]  # nine, fewer at the ends
    np.testing.assert_allclose(lines["CI"].get_ydata(), expected)
    np.testing.assert_allclose(lines["sum"].get_ydata(), np.array(expected) + 0.001)
    first = np.mean(values[:5])
    assert band(right, 0) == pytest.approx((first - 0.005, first + 0.005))
    # BGE: one term, so no sum of it; its own stage of 50 updates ends at 0, with two terms and their sum.
    own = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in left.lines}
    assert {name for name in own if not name.startswith("_")} == {"lm", "mlm", "sum", "InfoNCE"}
    assert own["sum"] == ([0], [7.0]) and own["InfoNCE"][0] == steps


def test_dev_curves_are_means_over_tasks_and_seeds(config: Config, styled: None) -> None:
    data = data_of(config)
    scores, own = data.collected.scores, data.collected.curves
    figure = figure_dev.draw(data)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["NLI: AP", "STS: Spearman", "Retrieval: MRR@10"]
    for axis, task in zip(figure.axes, made.TASKS, strict=True):
        assert [line.get_label() for line in axis.lines] == ["BGE", "D2LLM"]
        for line in axis.lines:
            assert line.get_xdata().tolist() == [20, 40]
            np.testing.assert_allclose(line.get_ydata(), [made.TASKS[task] + x / 1000 + 0.015 for x in (20, 40)])
        assert band(axis, 0) == pytest.approx((made.TASKS[task] + 0.03, made.TASKS[task] + 0.04))
    # Two tasks of a kind are averaged; one that is not evaluated is left out, as is a step at which one has no value.
    more = pd.DataFrame([{"task": "nli_y", "group": "nli", "task_type": "pair_classification"}])
    first = own[own["name"] == "nli_x"]
    extra = first.assign(name="not evaluated", value=50.0)
    second = first[first["step"] == 40].assign(name="nli_y", value=0.1)
    files = figures.Collected(scores=pd.concat([scores, more]), curves=pd.concat([own, second, extra]))
    both = replace(data, collected=files)
    for line in figure_dev.draw(both).axes[0].lines:
        assert line.get_xdata().tolist() == [40]
        np.testing.assert_allclose(line.get_ydata(), [(0.5 + 0.04 + 0.015 + 0.1) / 2])
    none = replace(data, collected=replace(data.collected, curves=own[own["stage"] != "dev"]))
    assert "No development scores" in figure_dev.draw(none).texts[0].get_text()
