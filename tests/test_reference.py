"""The committed reference run: its tables follow from its scores, and what the pages say of it is what a tool writes from
it. Which method or ablation wins is asserted nowhere.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from d2llm.analysis.comparison import check
from d2llm.config.catalogue import entries
from d2llm.config.load import load
from d2llm.config.values import plain
from d2llm.reporting.collected import collected
from d2llm.reporting.context import context
from d2llm.reporting.layout import formats as layout
from d2llm.run.artifacts import read_csv, read_json
from d2llm.run.paths import Paths
from d2llm.run.schemas import COMPARISONS

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "results" / "reference" / "mini"
PAIRS = {"nli_indomain": "ap", "nli_shifted": "ap"}
SIMILARITY = dict.fromkeys(("question_match", "role_swap", "sts_graded"), "spearman")
COLUMNS = PAIRS | SIMILARITY | dict.fromkeys(("ir_claim", "ir_keyword", "ir_question"), "mrr_at_10")


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    return pd.read_csv(REFERENCE / "scores.csv", keep_default_na=False)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    return import_module("readme_results")


@pytest.mark.parametrize("name", sorted(entries("table")))
def test_tables_follow_from_the_scores(name: str, scores: pd.DataFrame) -> None:
    config = load([REFERENCE / "config.yaml"])
    kept = collected(Paths(REFERENCE), {"comparisons", "ablations", "trainings", "curves", "card_json"})
    spec = import_module(entries("table")[name].module).TABLE
    table = spec.build(replace(kept, scores=scores), context(config), config)
    for extension, render in (("csv", layout.to_csv), ("md", layout.to_markdown), ("tex", layout.to_latex)):
        assert render(table) == (REFERENCE / "tables" / f"{name}.{extension}").read_text(encoding="utf-8")


def test_pages_say_what_the_tool_writes(tool) -> None:
    assert tool.outdated() == [], "run `python tools/readme_results.py`"


def test_leads_are_told_as_they_are(tool) -> None:
    run = tool.Reference.read(REFERENCE)
    for sign, verdict, word in ((1, "holds", "ahead of"), (-1, "does not hold", "behind")):
        changed = run.comparisons.assign(difference=sign * 0.0213, p_holm=0.001)
        points = list(tool.leads(replace(run, comparisons=changed)))
        assert [point.split(".**")[0] for point in points] == [
            f"**{kind}: {verdict}" for kind in ("NLI", "STS", "Retrieval")
        ]
        assert all(f"D2LLM is {word} the strongest baseline" in point and "by 0.0213" in point for point in points)


def test_ablations_are_told_as_they_are(tool, scores: pd.DataFrame) -> None:
    """Which differ significantly, whichever way; and which lie above each of the method's own trainings."""
    run = tool.Reference.read(REFERENCE)
    titles = {variant.title: name for name, variant in run.config.variants.items()}
    own = {name: run.config.points()["d2llm", name][1] for name in titles.values()}

    def named(text: str, start: str) -> dict[str, int]:
        """Variants of a list, with how many columns each is named for."""
        part = text.split(start)[1].split(". ")[0]
        items = [item.rsplit(" (", 1) for item in part.split("; ") if item != "none"]
        return {titles[title]: scores.count(",") + 1 for title, scores in items}

    for sign in (1, -1):
        ablations = run.ablations.assign(difference=sign * run.ablations["difference"])
        point, above = tool.ablations(replace(run, ablations=ablations))
        clear = ablations[(ablations["p_holm"] < 0.05) & ablations["baseline"].isin(own.values())]
        for word, rows in (("higher", clear[clear["difference"] < 0]), ("lower", clear[clear["difference"] > 0])):
            counts = rows["baseline"].value_counts().to_dict()
            assert named(point, f"Significantly {word}: ") == {
                name: counts[own[name]] for name in own if own[name] in counts
            }
    whole = scores[(scores["phenomenon"] == "all") & (scores["method"] == "d2llm")]
    shown = whole[[COLUMNS[task] == metric for task, metric in zip(whole["task"], whole["metric"], strict=True)]]
    columns = shown["task"].where(shown["group"] == "nli", shown["group"])
    means = shown.groupby([shown["variant"], shown["seed"], columns])["value"].mean().unstack()
    beyond = (means > means.loc["base"].max()).groupby(level="variant").any().sum(axis=1)
    assert named(above, "as configured: ") == {name: beyond[own[name]] for name in own if beyond[own[name]]}


def test_what_is_hard_swept_and_slow_is_told_as_it_is(tool) -> None:
    run = tool.Reference.read(REFERENCE)
    for value, ahead in ((2.0, True), (-1.0, False)):
        ours = (run.scores["method"] == "d2llm") & (run.scores["metric"] == "auc")
        points = list(
            tool.phenomena(replace(run, scores=run.scores.assign(value=run.scores["value"].mask(ours, value))))
        )
        count = run.scores.loc[(run.scores["task"] == "nli_shifted") & ours, "phenomenon"].nunique()
        assert len(points) == 2 and f"every baseline on {count if ahead else 0} of {count} phenomena" in points[1]
        assert f"behind the best on {0 if ahead else count}, " in points[1] and f"({value:.2f}; " in points[1]
    best = run.scores.assign(value=run.scores["value"].mask(run.scores["variant"] == "beta=10", 3.0))
    (point,) = tool.sweeps(replace(run, scores=best))
    assert "`beta` (configured: 0.1, not tuned) NLI-A at 10 (3.000), NLI-B at 10 (3.000)" in point
    (point,) = tool.runtimes(
        replace(run, runtime=run.runtime.assign(median=0.0625, bytes_per_passage=1280, embedding_bytes=512))
    )
    assert "scoring a pair takes D2LLM 62.5 ms, Teacher 62.5 ms and" in point and "takes 2.5 times the bytes" in point


def test_the_page_shows_the_reference_scores(scores: pd.DataFrame) -> None:
    block = (
        (ROOT / "docs/results.md")
        .read_text(encoding="utf-8")
        .split("<!-- results -->")[1]
        .split("<!-- /results -->")[0]
    )
    rows = [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("| ")][2:]
    titles = {title: name for name, title in context(load([REFERENCE / "config.yaml"])).titles.items()}
    whole = scores[(scores["phenomenon"] == "all") & (scores["variant"] == "base")]
    values = whole.groupby(["method", "task", "metric"])["value"].mean()  # over seeds
    assert len(rows) == whole["method"].nunique()
    for method, *cells in rows:
        name = titles[method.strip("*†")]
        assert [cell.strip("*") for cell in cells] == [f"{values[name, task, of]:.3f}" for task, of in COLUMNS.items()]


def test_comparisons_are_of_these_scores(scores: pd.DataFrame) -> None:
    comparisons = read_csv(REFERENCE / "comparisons.csv", COMPARISONS)
    check(comparisons, scores)
    baselines = scores["method"].nunique() - 3  # without D2LLM and the two reference rows
    assert len(comparisons) == baselines * (scores["task"].nunique() + scores["group"].nunique())
    assert set(comparisons["seeds"]) == {5}


def test_the_reference_is_the_full_study(scores: pd.DataFrame) -> None:
    config = load([ROOT / "config" / "mini.yaml", ROOT / "config" / "study.yaml"])
    assert load([REFERENCE / "config.yaml"]) == config
    trained = scores[~scores["method"].isin(config.references)]
    runs = set(trained[["method", "variant", "seed"]].itertuples(index=False, name=None))
    assert runs == set(map(tuple, config.runs()))
    summed = pd.read_csv(REFERENCE / "runs.csv")
    assert set(summed[["method", "variant", "seed"]].itertuples(index=False, name=None)) == runs
    # Each thing once: figures in one format, no summaries that runs.csv repeats.
    figures = sorted(file.name for file in (REFERENCE / "figures").iterdir())
    assert figures == sorted(f"{name}.svg" for name in entries("figure")) and not (REFERENCE / "runs").exists()


def test_the_settings_of_the_run_are_those_that_tuning_chose() -> None:
    """config/mini.yaml, the reference run and the record of the trials agree."""
    trials = pd.read_csv(REFERENCE / "tuning" / "trials.csv")
    assert trials.groupby("method").size().nunique() == 1
    chosen = trials[trials["chosen"]].set_index("method")["setting"].to_dict()
    for config in (load([ROOT / "config" / "mini.yaml"]), load([REFERENCE / "config.yaml"])):
        assert set(chosen) == set(config.methods)
        for method in config.methods:
            points = {in_a_line(settings): settings for settings in config.grid(method).values()}
            recipe = config.recipe(method).model_dump()
            assert {key: recipe[key] for key in points[chosen[method]]} == points[chosen[method]], method


def in_a_line(settings: dict) -> str:
    return ", ".join(f"{key} {plain(value)}" for key, value in settings.items())


def test_every_record_says_what_made_it() -> None:
    records = read_json(REFERENCE / "provenance.json")
    known = {"stage", "settings", "code", "inputs", "threads", "started", "seconds", "peak_memory_mb"}
    assert len(records) > 20 and all(known <= record.keys() for record in records.values())


def test_no_file_names_a_place_of_the_machine_it_was_made_on() -> None:
    """Executed pages most of all: a warning in one names the file it comes from."""
    places = re.compile(r"(?<![\w./:-])/(?:home|root|tmp|work|usr|opt|mnt|Users)/")
    kinds = (".csv", ".md", ".json", ".yaml", ".ipynb", ".tex", ".svg")
    read = [path for path in REFERENCE.rglob("*") if path.suffix in kinds]
    assert len(read) > 40
    assert {path.name: match[0] for path in read if (match := places.search(path.read_text(encoding="utf-8")))} == {}
