"""The committed reference run: its tables follow from its scores, and what the pages say of it is what a tool writes from
it. Which method or ablation wins is asserted nowhere.
"""

from __future__ import annotations

import re
import shutil
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
from d2llm.run.artifacts import read_csv
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
    kept = collected(Paths(REFERENCE), {"comparisons", "ablations", "contrasts", "trainings", "curves", "card_json"})
    spec = import_module(entries("table")[name].module).TABLE
    table = spec.build(replace(kept, scores=scores), context(config), config)
    for extension, render in (("csv", layout.to_csv), ("md", layout.to_markdown), ("tex", layout.to_latex)):
        assert render(table) == (REFERENCE / "tables" / f"{name}.{extension}").read_text(encoding="utf-8")


def test_pages_say_what_the_tool_writes(tool) -> None:
    assert tool.outdated() == [], "run `python tools/readme_results.py`"


def test_real_text_stands_before_generated_and_either_may_be_missing(tool, tmp_path: Path) -> None:
    for tier in ("mini", "zh"):
        shutil.copytree(REFERENCE, tmp_path / tier)
        text = tool.first_page(tool.kept(tmp_path))
        assert text.count("![") == (1 if tier == "mini" else 2)
    assert text.index("results/reference/zh/") < text.index("results/reference/mini/")
    # The same scores in both: the paper's claims get the same answers, D2LLM's number stands beside the paper's.
    for line in tool.claimed(tool.kept(tmp_path)).splitlines()[2:]:
        claim, zh, mini = line.strip("| ").split(" | ")
        assert zh == mini and "holds" in zh
    scores = pd.read_csv(tmp_path / "zh/scores.csv", keep_default_na=False).replace({"NLI-A": "OCNLI (sample of 9)"})
    scores.to_csv(tmp_path / "zh/scores.csv", index=False)
    own = scores.query("method == 'd2llm' and variant == 'base' and metric == 'accuracy' and phenomenon == 'all'")
    mean = own[own["task_title"].str.startswith("OCNLI")]["value"].mean()
    shutil.rmtree(tmp_path / "mini")
    pages = {mark: text for (_, mark), text in tool.blocks(tmp_path).items()}
    assert f"| OCNLI | ACC | 0.789 | {mean:.3f} |" in pages["real"] and set(pages) == {"headlines", "claims", "real"}


def test_direction_and_contrasts_are_told(tool) -> None:
    run = tool.Reference.read(REFERENCE)
    row = run.scores.iloc[0].to_dict() | {"task_title": "N", "phenomenon": "direction", "metric": "forward"}
    scores = pd.DataFrame([row | {"method": name, "value": x} for name, x in (("bge", 0.5), ("d2llm", 0.875))])
    assert list(tool.direction(replace(run, scores=scores)))[0].endswith(": D2LLM 0.88 and BGE 0.50.")
    lead = (
        run.comparisons[run.comparisons["task"] == "average"]
        .iloc[[0]]
        .assign(method="d2llm", difference=0.02, low=0.01)
    )
    [text] = tool.contrasts(replace(run, contrasts=lead.assign(baseline="bge", high=0.03, p_holm=0.01)))
    assert text.startswith("**D2LLM above BGE?** ") and text.endswith("average +0.020 [+0.010, +0.030] (holds).")


@pytest.mark.parametrize(("sign", "verdict", "word"), [(1, "holds", "ahead of"), (-1, "refuted", "behind")])
def test_what_is_told_follows_the_numbers(sign: int, verdict: str, word: str, tool) -> None:
    run = tool.Reference.read(REFERENCE)
    points = list(tool.leads(replace(run, comparisons=run.comparisons.assign(difference=sign * 0.0213, p_holm=0.001))))
    assert [point.split(".**")[0] for point in points] == [
        f"**{kind}: {verdict}" for kind in ("NLI", "STS", "Retrieval")
    ]
    assert all(f"D2LLM is {word} the strongest baseline" in point and "by 0.0213" in point for point in points)
    lower = run.ablations.assign(difference=sign * run.ablations["difference"].abs(), p_holm=0.001)
    point, _ = tool.ablations(replace(run, ablations=lower))
    assert f"Significantly {'higher' if sign > 0 else 'lower'}: none" in point


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
    kept = load([REFERENCE / "config.yaml"])  # how differences are judged has changed since
    assert kept == config.model_copy(update={"statistics": kept.statistics})
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


def test_no_file_names_a_place_of_the_machine_it_was_made_on() -> None:
    """Executed pages most of all: a warning in one names the file it comes from."""
    places = re.compile(r"(?<![\w./:-])/(?:home|root|tmp|work|usr|opt|mnt|Users)/")
    kinds = (".csv", ".md", ".json", ".yaml", ".ipynb", ".tex", ".svg")
    read = [path for path in REFERENCE.rglob("*") if path.suffix in kinds]
    assert len(read) > 40
    assert {path.name: match[0] for path in read if (match := places.search(path.read_text(encoding="utf-8")))} == {}
