"""The committed reference run: its tables follow from its scores, and the README's numbers are its numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from d2llm.analysis.comparison import check
from d2llm.config.load import load
from d2llm.config.values import plain
from d2llm.reporting.collected import collected
from d2llm.reporting.context import context
from d2llm.reporting.layout import formats as layout
from d2llm.reporting.layout.tables import TABLES
from d2llm.run.artifacts import read_csv, read_json
from d2llm.run.paths import Paths
from d2llm.run.schemas import COMPARISONS

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference" / "mini"
COLUMNS = {
    "nli_indomain": "ap", "nli_shifted": "ap", "question_match": "spearman", "role_swap": "spearman", "sts_graded": "spearman",
    "ir_claim": "mrr_at_10", "ir_keyword": "mrr_at_10", "ir_question": "mrr_at_10",
}  # fmt: skip


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    return pd.read_csv(REFERENCE / "scores.csv", keep_default_na=False)


def comparisons() -> pd.DataFrame:
    return read_csv(REFERENCE / "comparisons.csv", COMPARISONS)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_follow_from_the_scores(name: str, scores: pd.DataFrame) -> None:
    config = load([REFERENCE / "config.yaml"])
    kept = collected(Paths(REFERENCE), {"comparisons", "ablations", "trainings", "curves", "card_json"})
    table = TABLES[name].build(replace(kept, scores=scores), context(config), config)
    for extension, render in (("csv", layout.to_csv), ("md", layout.to_markdown), ("tex", layout.to_latex)):
        assert render(table) == (REFERENCE / "tables" / f"{name}.{extension}").read_text(encoding="utf-8")


def test_what_lies_above_the_range_of_the_seeds(scores: pd.DataFrame) -> None:
    """The README names the ablations (a seed each) that score higher than each of the configured method's trainings, and where."""
    whole = scores[(scores["phenomenon"] == "all") & (scores["method"] == "d2llm")]
    shown = whole[[COLUMNS[task] == metric for task, metric in zip(whole["task"], whole["metric"], strict=True)]]
    columns = shown["task"].where(shown["group"] == "nli", shown["group"])
    means = shown.groupby([shown["variant"], shown["seed"], columns])["value"].mean().unstack()
    most, swept = means.loc["base"].max(), ("alpha=", "beta=1", "beta=0.", "gamma=0.", "gamma=1")
    above = {
        (variant, column)
        for (variant, _), row in means.iterrows()
        for column in row.index[row > most]
        if variant != "base" and not variant.startswith(swept)
    }
    everywhere = ("nli_indomain", "nli_shifted", "sts", "ir")
    assert above == {("unweighted_ci", column) for column in everywhere} | {
        *((variant, "nli_shifted") for variant in ("plain_contrast", "no_in_batch")), ("cosine", "sts"), ("cosine", "ir"),
    }  # fmt: skip


def test_readme_says_what_the_method_gets_wrong_and_what_was_tuned(scores: pd.DataFrame) -> None:
    where = (scores["task"] == "nli_shifted") & (scores["metric"] == "auc") & (scores["variant"] == "base")
    auc = scores[where].groupby(["phenomenon", "method"])["value"].mean().unstack().drop(columns=["teacher", "bm25"])
    others, text = auc.drop(columns="d2llm"), (ROOT / "README.md").read_text(encoding="utf-8")
    swapped, mixed, same = (auc.loc[name, "d2llm"] for name in ("order swapped", "events mixed", "paraphrase"))
    assert f"swapped (an AUC of {swapped:.2f}; Udever {auc.loc['order swapped', 'udever']:.2f})" in text
    assert f"mixed ({mixed:.2f}; LLaRA {auc.loc['events mixed', 'llara']:.2f})" in text
    known = others.loc["paraphrase"]
    assert f"({same:.3f}; {known.min():.3f} to {known.max():.3f})" in text and same < known.min()
    won = ["hypernym", "more specific", "denial generalised", "detail added", "detail dropped", "role swap"]
    assert (auc.loc[won, "d2llm"] > others.loc[won].max(axis=1)).all()
    grid = load([REFERENCE / "config.yaml"]).tuning.grids["d2llm"]
    assert not {"alpha", "beta"} & set(grid) and len(grid["gamma"]) == 2 and "(γ is, with two values)" in text


def test_readme_shows_the_reference_scores(scores: pd.DataFrame) -> None:
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- results -->")[1].split("<!-- /results -->")[0]
    rows = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("| ")][2:]
    titles = {title: name for name, title in context(load([REFERENCE / "config.yaml"])).titles.items()}
    whole = scores[(scores["phenomenon"] == "all") & (scores["variant"] == "base")]
    values = whole.groupby(["method", "task", "metric"])["value"].mean()  # over seeds
    assert len(rows) == whole["method"].nunique()
    for row in rows:
        method = titles[row[0].strip("*")]
        shown = [cell.strip("*") for cell in row[1:]]
        assert shown == [f"{values[method, task, metric]:.3f}" for task, metric in COLUMNS.items()]


def test_comparisons_are_of_these_scores(scores: pd.DataFrame) -> None:
    check(comparisons(), scores)
    baselines = scores["method"].nunique() - 3  # without D2LLM and the two reference rows
    assert len(comparisons()) == baselines * (scores["task"].nunique() + scores["group"].nunique())
    assert set(comparisons()["seeds"]) == {5}


def test_the_reference_is_the_full_study(scores: pd.DataFrame) -> None:
    config = load([ROOT / "config" / "mini.yaml", ROOT / "config" / "study.yaml"])
    assert load([REFERENCE / "config.yaml"]) == config
    trained = scores[~scores["method"].isin(config.references)]
    found = set(trained[["method", "variant", "seed"]].itertuples(index=False, name=None))
    assert found == set(map(tuple, config.runs()))


def test_the_settings_of_the_run_are_those_that_tuning_chose() -> None:
    """config/mini.yaml, the reference run and the record of the trials agree, and the documentation shows that record."""
    trials = pd.read_csv(REFERENCE / "tuning" / "trials.csv")
    assert trials.groupby("method").size().nunique() == 1
    chosen = trials[trials["chosen"]].set_index("method")["setting"].to_dict()
    for config in (load([ROOT / "config" / "mini.yaml"]), load([REFERENCE / "config.yaml"])):
        assert set(chosen) == set(config.methods)
        for method in config.methods:
            points = [settings for settings in config.grid(method).values() if said(settings) == chosen[method]]
            assert len(points) == 1
            recipe = config.recipe(method).model_dump()
            assert {key: recipe[key] for key in points[0]} == points[0], method
    text = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    shown = text.split("<!-- trials -->")[1].split("<!-- /trials -->")[0].strip()
    assert shown == Paths(REFERENCE).trials_md.read_text(encoding="utf-8").strip()


def said(settings: dict) -> str:
    return ", ".join(f"{key} {plain(value)}" for key, value in settings.items())


def test_every_record_says_what_made_it() -> None:
    records = read_json(REFERENCE / "provenance.json")
    assert len(records) > 20
    for record in records.values():
        assert {
            "stage",
            "settings",
            "code",
            "inputs",
            "threads",
            "started",
            "seconds",
            "peak_memory_mb",
        } <= record.keys()


def test_no_file_names_a_place_of_the_machine_it_was_made_on() -> None:
    """Executed pages most of all: a warning in one names the file it comes from."""
    places = re.compile(r"(?<![\w./:-])/(?:home|root|tmp|work|usr|opt|mnt|Users)/")
    read = [path for path in REFERENCE.rglob("*") if path.suffix in (".csv", ".md", ".json", ".yaml", ".ipynb", ".tex", ".svg")]  # fmt: skip
    assert len(read) > 80
    found = {path.name: match[0] for path in read if (match := places.search(path.read_text(encoding="utf-8")))}
    assert not found
