"""Ablations and sweeps: a variant is compared like a baseline, Table 4 and the sweep figures show what was scored."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from made_up_run import make, value
from test_comparison import compared, predictions, scores_of

from d2llm.analysis import comparison, statistics
from d2llm.config.schema import Config
from d2llm.reporting.collected import Collected, collected
from d2llm.reporting.context import context
from d2llm.reporting.drawing import figures
from d2llm.reporting.figures import sweep_nli as figure_sweep_nli
from d2llm.reporting.layout import tables
from d2llm.reporting.layout.tables import TABLES
from d2llm.run.artifacts import read_csv, write_frame
from d2llm.run.paths import Paths


def ablated(tmp_path: Path, **changes: object) -> Config:
    """D2LLM with two variants, of which one has the predictions of BGE: differences are known from elsewhere."""
    variants = {
        "other": {"method": "d2llm", "title": "Other", "group": "Parts", "settings": {"alpha": 0.5}},
        "itself": {"method": "d2llm", "settings": {"alpha": 1.0}},
    }
    settings = {"methods": {"d2llm": {}}, "references": [], "variants": variants, "statistics": {"resamples": 500}}
    config = Config(results=str(tmp_path), **(settings | changes))
    found = predictions()
    other = found[found["method"] == "bge"].assign(method="d2llm", variant="other")
    write_frame(Paths.of(config).predictions, pd.concat([found, other], ignore_index=True))
    whole = scores_of(found)
    more = whole[whole["method"] == "bge"].assign(method="d2llm", variant="other")
    write_frame(Paths.of(config).scores, pd.concat([whole, more], ignore_index=True))
    return config


def test_a_variant_is_compared_like_a_baseline(tmp_path: Path) -> None:
    config = ablated(tmp_path)
    comparison.run_ablations(config)
    found = read_csv(Paths.of(config).ablations, comparison.COLUMNS)
    # NLI by task, other kinds by their average or only task; what is D2LLM itself is not compared.
    assert sorted(zip(found["group"], found["task"], found["baseline"], strict=True)) == [
        ("ir", "ir", "other"), ("nli", "nli_a", "other"), ("nli", "nli_b", "other"), ("sts", "sim", "other"),
    ]  # fmt: skip
    against = compared(predictions())
    against = against[against["baseline"] == "bge"].set_index("task")["difference"]
    for row in found.itertuples():
        assert row.difference == pytest.approx(against[row.task])
    assert found["p_holm"].to_numpy() == pytest.approx(statistics.holm(found["p"]))
    assert set(found["method"]) == {"base"}


def test_without_variants_there_is_nothing_to_compare(tmp_path: Path) -> None:
    config = ablated(tmp_path, include=[])
    comparison.run_ablations(config)
    assert len(read_csv(Paths.of(config).ablations, comparison.COLUMNS)) == 0
    table = TABLES["ablation"].build(collected(Paths.of(config), ["scores", "ablations"]), context(config), config)
    assert table.rows == () and "no variant" in table.caption


def test_the_ablation_table_shows_scores_and_what_is_significant(tmp_path: Path) -> None:
    config = ablated(tmp_path)
    comparison.run_ablations(config)
    paths = Paths.of(config)
    marked = read_csv(paths.ablations, comparison.COLUMNS)
    marked["p_holm"] = marked["task"].map({"nli_a": 0.01, "nli_b": 0.9, "sim": 0.01, "ir": 0.2})
    marked["difference"] = marked["task"].map({"nli_a": 0.2, "nli_b": 0.2, "sim": -0.2, "ir": -0.2})
    marked.to_csv(paths.ablations, index=False)
    table = TABLES["ablation"].build(collected(paths, ["scores", "ablations"]), context(config), config)
    assert [row.title for row in table.rows] == ["D2LLM, seed 1", "Parts: Other (alpha 0.5)", "itself (alpha 1)"]
    assert [column.task for column in table.columns] == ["nli_a", "nli_b", "sim", "ir"]
    # D2LLM above its variant: the variant is down.
    assert [cell.lead for cell in table.rows[1].cells] == ["down", "", "up", ""]
    scores = collected(paths, ["scores"]).scores
    scores = scores[(scores["phenomenon"] == "all") & (scores["method"] == "d2llm")]
    for row, variant in zip(table.rows, ("base", "other", "base"), strict=True):
        own = scores[scores["variant"] == variant].set_index(["task", "metric"])["value"]
        assert [cell.mean for cell in row.cells] == [
            pytest.approx(own[column.task, column.metric]) for column in table.columns
        ]


def test_variants_of_other_methods_are_compared_with_these(tmp_path: Path) -> None:
    variants = {
        "other": {"method": "d2llm", "settings": {"alpha": 0.5}},
        "colder": {"method": "bge", "settings": {"temperature": 0.01}},
    }
    config = ablated(tmp_path, methods={"bge": {}, "d2llm": {}}, variants=variants)
    paths = Paths.of(config)
    # The variant of BGE has the predictions of D2LLM.
    for path in (paths.predictions, paths.scores):
        frame = pd.read_parquet(path)
        own = frame[(frame["method"] == "d2llm") & (frame["variant"] == "base")]
        write_frame(path, pd.concat([frame, own.assign(method="bge", variant="colder")], ignore_index=True))
    comparison.run_ablations(config)
    found = read_csv(paths.ablations, comparison.COLUMNS)
    assert set(zip(found["method"], found["baseline"], strict=True)) == {("base", "other"), ("bge", "colder")}
    against = compared(predictions())
    against = against[against["baseline"] == "bge"].set_index("task")["difference"]
    for row in found.itertuples():  # one way for D2LLM, the other way for BGE
        assert row.difference == pytest.approx(against[row.task] * (1 if row.method == "base" else -1))
    # Corrected over both together.
    assert len(found) == 8 and found["p_holm"].to_numpy() == pytest.approx(statistics.holm(found["p"]))


def test_variants_of_other_methods_stand_below_these(tmp_path: Path) -> None:
    variants = {
        "colder": {"method": "bge", "group": "Losses", "title": "colder", "settings": {"temperature": 0.01}},
        "no_rank": {"method": "d2llm", "group": "Losses", "settings": {"alpha": 0.0}},
        "wide": {"method": "bge", "group": "Training", "settings": {"hard_negatives": 3}},
    }
    config = make(tmp_path, seeds=(1, 2), variants=variants)
    paths = Paths.of(config)
    row = dict.fromkeys(comparison.COLUMNS, 0) | {"group": "nli", "metric": "ap", "strongest": False, "p_holm": 0.01}
    marked = [("base", "no_rank", "nli_a", 0.1), ("bge", "colder", "nli_a", -0.1), ("bge", "wide", "nli_b", 0.1)]
    rows = [
        row | dict(zip(("method", "baseline", "task", "difference"), values, strict=True))
        for values in [*marked, ("sgpt", "colder", "nli_b", 0.1)]  # of another method, by the same name
    ]
    pd.DataFrame(rows).to_csv(paths.ablations, index=False)
    tables.run(config, "ablation")
    shown = read_csv(paths.table("ablation", "csv"), {"method": "str", "task": "str", "mean": "float", "lead": "str"})
    on = shown[shown["task"] == "nli_b"].set_index("method")
    assert list(on.index) == ["base_all", "base", "no_rank", "bge_base_all", "bge_base", "colder", "wide"]
    base = value("bge", 1, 1, 1)
    assert on["mean"].tolist()[4:] == pytest.approx([base, base + 0.01, base + 0.03])
    text = paths.table("ablation", "md").read_text(encoding="utf-8")
    names = [line.split(" | ")[0].strip("| *") for line in text.splitlines() if line.startswith("| ")][2:]
    assert names == [
        "D2LLM, 2 seeds", "D2LLM, seed 1", "Losses: no\\_rank (alpha 0)",
        "BGE, 2 seeds", "BGE, seed 1", "Losses: colder (temperature 0.01)", "Training: wide (hard\\_negatives 3)",
    ]  # fmt: skip
    leads = {(row.method, row.task): row.lead for row in shown.itertuples() if row.lead}
    assert leads == {("no_rank", "nli_a"): "down", ("colder", "nli_a"): "up", ("wide", "nli_b"): "down"}
    assert "Each method as configured" in text and "below its method as configured, seed 1" in text


def test_a_run_without_d2llm_shows_the_variants_it_has(tmp_path: Path) -> None:
    variants = {"colder": {"method": "bge", "settings": {"temperature": 0.01}}}
    config = make(tmp_path, methods=("bge", "sgpt"), variants=variants)
    pd.DataFrame(columns=list(comparison.COLUMNS)).to_csv(Paths.of(config).ablations, index=False)
    tables.run(config, "ablation")
    text = Paths.of(config).table("ablation", "md").read_text(encoding="utf-8")
    assert "BGE as configured (set apart)" in text and "\n| colder (temperature 0.01) | 0." in text


def test_sweeps_draw_every_point_where_it_is(tmp_path: Path) -> None:
    config = ablated(tmp_path, sweeps={"d2llm": {"alpha": [0.5, 1.0]}})
    assert config.points()["d2llm", "other"] == ("d2llm", "alpha=0.5")
    scores = collected(Paths.of(config), ["scores"]).scores.replace({"variant": {"other": "alpha=0.5"}})
    figure = figure_sweep_nli.draw(figures.Data(Collected(scores=scores), context(config), config))
    (axis,) = figure.axes
    own = scores[(scores["method"] == "d2llm") & (scores["phenomenon"] == "all") & (scores["metric"] == "ap")]
    values = own.set_index(["task_title", "variant"])["value"]
    lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"NLI-A", "NLI-B"}
    for title, line in lines.items():
        assert list(line.get_ydata()) == pytest.approx([values[title, "alpha=0.5"], values[title, "base"]])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.5", "1"]
    # What is configured is filled.
    filled = [line for line in axis.lines if line.get_label().startswith("_")]
    assert {line.get_xdata()[0] for line in filled} == {1} and len(filled) == 2
