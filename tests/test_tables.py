"""Tables against small examples worked by hand: means, spreads, ties, marks, escaping, captions; no torch, no mteb."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_report import Page
from training_records import write_collected

from d2llm.config.catalogue import entries
from d2llm.config.schema import Config
from d2llm.reporting.collected import Collected
from d2llm.reporting.context import Context
from d2llm.reporting.layout import formats as layout
from d2llm.reporting.layout import tables
from d2llm.reporting.layout.formats import Cell, Column, Row, Table
from d2llm.reporting.layout.main_table import MainTable
from d2llm.reporting.layout.marks import marks
from d2llm.run.artifacts import write_frame
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.paths import Paths
from d2llm.run.schemas import STANDINGS

TITLES = {"teacher": "Teacher", "bm25": "BM25", "bge": "BGE & co", "sgpt": "SGPT", "d2llm": "D2LLM"}
SPEC = MainTable("sts", "Table 2. Similarity.", "sts", ("pearson", "spearman"))
CONTEXT = Context("mini", ["bge", "sgpt", "d2llm"], ["teacher", "bm25"], TITLES, averaged=frozenset({"sts"}))
# Pearson by seed on two tasks.
VALUES = {
    ("teacher", "a"): [0.99], ("teacher", "b"): [0.97], ("bm25", "a"): [0.30], ("bm25", "b"): [0.20],
    ("bge", "a"): [0.80, 0.90], ("bge", "b"): [0.60, 0.60], ("sgpt", "a"): [0.70, 0.72], ("sgpt", "b"): [0.60, 0.60],
    ("d2llm", "a"): [0.80, 0.84], ("d2llm", "b"): [0.50, 0.70],
}  # fmt: skip


def scores(*, seeds: int = 1) -> pd.DataFrame:
    """Two tasks, two metrics; spearman is pearson − 0.1. Worked out below."""
    rows = [
        {"method": method, "seed": seed, "task": task, "task_title": f"Set_{task}", "metric": metric, "value": score}
        for (method, task), row in VALUES.items()
        for seed, value in enumerate(row[:seeds], 1)
        for metric, score in (("pearson", value), ("spearman", value - 0.1))
    ]
    same = {"tier": "mini", "variant": "base", "split": "test", "task_type": "sts", "group": "sts", "n": 10}
    return pd.DataFrame(rows).assign(**same, scorer="cosine", candidates="", phenomenon="all")


def comparisons() -> pd.DataFrame:
    """D2LLM against two baselines on task a (significantly below the strongest), b and the average (not)."""
    rows = [
        ("a", "bge", True, -0.05, 0.01),
        ("a", "sgpt", False, 0.12, 0.01),
        ("b", "bge", True, 0.0, 0.9),
        ("b", "sgpt", False, 0.0, 0.04),
        ("average", "bge", True, 0.2, 0.06),
    ]
    frame = pd.DataFrame(rows, columns=["task", "baseline", "strongest", "difference", "p_holm"])
    numbers = {"value": 0.7, "low": -1.0, "high": 1.0, "p": 0.01, "seeds": 1, "n": 10}
    return frame.assign(group="sts", metric="spearman", method="d2llm", **numbers)


def build(scores: pd.DataFrame, comparisons: pd.DataFrame | None = None, context: Context = CONTEXT) -> layout.Table:
    return SPEC.build(Collected(scores=scores, comparisons=comparisons), context)


def test_marks_break_no_ties_and_judge_what_is_printed():
    assert marks({"a": 0.9, "b": 0.8, "c": 0.8, "d": 0.1}) == {"a": "best", "b": "second", "c": "second", "d": ""}
    assert marks({"a": 0.90001, "b": 0.90004, "c": 0.5}) == {"a": "best", "b": "best", "c": "second"}
    assert marks({"a": -0.2, "b": -0.1}) == {"a": "second", "b": "best"}
    assert marks({"a": 0.5, "b": 0.5}) == {"a": "", "b": ""}
    assert marks({"a": 0.5}) == {"a": ""} and marks({}) == {}


# How Markdown, LaTeX and CSV look, the reference's tables say (test_reference): these are of what they hold.
def test_spread_over_seeds_is_the_sample_standard_deviation():
    table = build(scores(seeds=2))
    rows = {row.key: row.cells for row in table.rows}
    bge, d2llm = rows["bge"], rows["d2llm"]
    assert (bge[0].mean, bge[0].sd, bge[0].seeds) == (pytest.approx(0.85), pytest.approx(0.1 / 2**0.5), 2)
    # The average is of tasks within a seed: (.80+.50)/2 = .65 and (.84+.70)/2 = .77.
    assert (d2llm[4].mean, d2llm[4].sd) == (pytest.approx(0.71), pytest.approx(0.12 / 2**0.5))
    assert rows["teacher"][0].sd is None  # one evaluation
    assert list(rows) == ["teacher", "bm25", "bge", "sgpt", "d2llm"]
    assert "mean ± standard deviation over 2 seeds" in table.caption
    assert "**0.8500** ± 0.0707" in layout.to_markdown(table)
    assert r"\textbf{0.8500} {\scriptsize$\pm$ 0.0707}" in layout.to_latex(table)


def test_texts_are_escaped_and_html_is_spanned():
    escaped = r"50\% \& a\_b \#1 \{x\} \$y\$ \textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert layout.tex("50% & a_b #1 {x} $y$ ~^\\") == escaped
    columns = (Column("a", "A&B", "ap", "AP"), Column("a", "A&B", "f1", "F1"), Column("c", "C", "ap", "AP"))
    rows = (
        Row("bm25", "BM25", "reference", (Cell(0.1), Cell(0.2), Cell(-0.3))),
        Row("d2llm", "<D>", "method", (Cell(0.5, 0.01, 2, "best", "up"), Cell(0.25, mark="second"), Cell(0.75))),
    )
    text = layout.to_html(Table("t", "Heading.", "Said ±.", columns, rows))
    page = Page(text)
    assert not page.open and page.rows[:2] == [["Method", "A&B", "C"], ["AP", "F1", "AP"]] and 'colspan="2"' in text
    assert page.rows[2:] == [["BM25", "0.1000", "0.2000", "-0.3000"], ["<D>", "0.5000↑ ± 0.0100", "0.2500", "0.7500"]]
    assert text.isascii() and "<strong>0.5000</strong>" in text and "<u>0.2500</u>" in text


def test_variants_breakdowns_and_other_tasks_stay_out():
    good = scores()
    noise = [
        good.assign(variant="ablation", value=1.0),
        good.assign(phenomenon="swap", value=1.0),
        good.assign(group="nli", task="n", value=1.0),
        good.assign(metric="auc", value=1.0),
        good[good.method == "bge"].assign(method="stranger", value=1.0),
    ]
    mixed = pd.concat([good, *noise], ignore_index=True).sample(frac=1.0, random_state=0)
    assert build(mixed) == build(good)


def test_a_single_task_has_no_average_and_no_task_no_rows():
    one = scores()
    assert [column.task for column in build(one[one.task == "a"]).columns] == ["a", "a"]
    assert "No task of this kind was evaluated." in layout.to_markdown(build(one[one.task == "c"]))


def test_a_missing_score_is_named():
    whole = scores(seeds=2)
    some = (whole.method == "sgpt") & (whole.task == "b") & (whole.metric == "spearman")
    for wrong in (some, some & (whole.seed == 2), whole.method == "sgpt"):
        with pytest.raises(ArtifactError, match="no .* of method sgpt on task"):
            build(whole[~wrong])


def test_only_significant_differences_from_the_strongest_baseline_are_marked():
    table = build(scores(), comparisons())
    cells = [(row.key, *pair) for row in table.rows for pair in zip(table.columns, row.cells, strict=True)]
    leads = {(key, column.task, column.metric): cell.lead for key, column, cell in cells if cell.lead}
    assert leads == {("d2llm", "a", "spearman"): "down"}
    about = {"group": "sts", "rank_high": 3, "seeds": 2}
    names = (("bge", 2, False), ("sgpt", 1, True), ("d2llm", 1, True))
    ranks = pd.DataFrame([about | {"method": name, "rank_low": low, "first": tied} for name, low, tied in names])
    caption = SPEC.build(Collected(scores=scores(), standings=ranks), CONTEXT).caption
    assert "shown to be better than SGPT and D2LLM." in caption and "BGE & co 2 to 3, SGPT 1 to 3" in caption
    assert "SGPT is signif" in build(scores(), comparisons(), replace(CONTEXT, subject="SGPT")).caption
    assert "| **0.7000**↓ |" in layout.to_markdown(table)
    assert r"\textbf{0.7000}$\downarrow$" in layout.to_latex(table)


def test_every_form_of_every_table_is_written(tmp_path: Path):
    config = Config(results=str(tmp_path), methods={"d2llm": {}, "bge": {}})
    paths, values = Paths.of(config), scores()
    write_frame(paths.scores, values[values.method != "sgpt"])
    comparisons().to_csv(paths.comparisons, index=False)
    pd.DataFrame(columns=list(STANDINGS)).to_csv(paths.standings, index=False)
    for empty in (paths.ablations, paths.contrasts):
        comparisons().head(0).to_csv(empty, index=False)
    write_collected(config)
    for name in entries("table"):
        tables.run(config, name)
    files = [paths.table(name, extension) for name in entries("table") for extension in ("csv", "md", "tex", "html")]
    assert len(files) == 24 and all(file.stat().st_size > 0 for file in files)
    text = paths.table("sts", "md").read_text(encoding="utf-8")
    # Whatever the order in the configuration, D2LLM comes last; titles are the methods' own.
    assert text.index("| *Teacher (cross-encoder)* |") < text.index("| BGE") < text.index("| D2LLM")
    with pytest.raises(ConfigError, match="no table named 'nope'; known: nli, sts, ir"):
        tables.run(config, "nope")
