"""Tables against small examples worked by hand: means, spreads, ties, marks, escaping, captions; no torch, no mteb."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from training_records import write_collected

from d2llm.config.schema import Config
from d2llm.reporting.collected import Collected
from d2llm.reporting.context import Context
from d2llm.reporting.layout import formats as layout
from d2llm.reporting.layout import tables
from d2llm.reporting.layout.main_table import MainTable
from d2llm.reporting.layout.marks import marks
from d2llm.run.artifacts import write_frame
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.paths import Paths

TITLES = {"teacher": "Teacher", "bm25": "BM25", "bge": "BGE & co", "sgpt": "SGPT", "d2llm": "D2LLM"}
SPEC = MainTable("sts", "Table 2. Similarity.", "sts", ("pearson", "spearman"))


def frame(values: dict[tuple[str, int, str, str], float], **more) -> pd.DataFrame:
    """Collected scores from {(method, seed, task, metric): value}."""
    rows = [
        {
            "tier": "mini",
            "method": method,
            "variant": "base",
            "seed": seed,
            "split": "test",
            "task": task,
            "task_title": f"Set_{task}",
            "task_type": "sts",
            "group": "sts",
            "scorer": "cosine",
            "candidates": "",
            "phenomenon": "all",
            "metric": metric,
            "value": value,
            "n": 10,
            **more,
        }
        for (method, seed, task, metric), value in values.items()
    ]
    return pd.DataFrame(rows)


def scores(*, seeds: int = 1) -> pd.DataFrame:
    """Two tasks, two metrics; spearman is pearson − 0.1. Worked out below."""
    base = {
        ("teacher", "a"): [0.99],
        ("teacher", "b"): [0.97],
        ("bm25", "a"): [0.30],
        ("bm25", "b"): [0.20],
        ("bge", "a"): [0.80, 0.90],
        ("bge", "b"): [0.60, 0.60],
        ("sgpt", "a"): [0.70, 0.72],
        ("sgpt", "b"): [0.60, 0.60],
        ("d2llm", "a"): [0.80, 0.84],
        ("d2llm", "b"): [0.50, 0.70],
    }
    values = {}
    for (method, task), row in base.items():
        for seed, value in enumerate(row[:seeds], 1):
            values[method, seed, task, "pearson"] = value
            values[method, seed, task, "spearman"] = value - 0.1
    return frame(values)


CONTEXT = Context(
    "mini", ["bge", "sgpt", "d2llm"], ["teacher", "bm25"], TITLES, generated=True, averaged=frozenset({"sts"})
)


def build(scores: pd.DataFrame, comparisons: pd.DataFrame | None = None) -> layout.Table:
    return SPEC.build(Collected(scores=scores, comparisons=comparisons), CONTEXT)


def test_marks_break_no_ties_and_judge_what_is_printed():
    assert marks({"a": 0.9, "b": 0.8, "c": 0.8, "d": 0.1}) == {"a": "best", "b": "second", "c": "second", "d": ""}
    assert marks({"a": 0.90001, "b": 0.90004, "c": 0.5}) == {"a": "best", "b": "best", "c": "second"}
    assert marks({"a": -0.2, "b": -0.1}) == {"a": "second", "b": "best"}
    assert marks({"a": 0.5, "b": 0.5}) == {"a": "", "b": ""}
    assert marks({"a": 0.5}) == {"a": ""} and marks({}) == {}


def test_markdown_of_one_seed():
    text = layout.to_markdown(build(scores()))
    head, _, *lines = text.splitlines()
    assert lines == [
        "| Method | Set\\_a<br>Pearson | Set\\_a<br>Spearman | Set\\_b<br>Pearson | Set\\_b<br>Spearman "
        "| Average<br>Pearson | Average<br>Spearman |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| *Teacher* | 0.9900 | 0.8900 | 0.9700 | 0.8700 | 0.9800 | 0.8800 |",
        "| *BM25* | 0.3000 | 0.2000 | 0.2000 | 0.1000 | 0.2500 | 0.1500 |",
        # a: BGE and D2LLM tie for best; b: BGE and SGPT do; average: .70, .65, .65.
        "| BGE & co | **0.8000** | **0.7000** | **0.6000** | **0.5000** | **0.7000** | **0.6000** |",
        "| SGPT | <u>0.7000</u> | <u>0.6000</u> | **0.6000** | **0.5000** | <u>0.6500</u> | <u>0.5500</u> |",
        "| D2LLM | **0.8000** | **0.7000** | <u>0.5000</u> | <u>0.4000</u> | <u>0.6500</u> | <u>0.5500</u> |",
    ]
    assert head.startswith("**Table 2. Similarity.** Tier mini, test split, one seed.")
    for said in (
        "among the 3 trained methods",
        "not ranked",
        "mean of its two orders",
        "no evidence about the paper's",
    ):
        assert said in head


def test_spread_over_seeds_is_the_sample_standard_deviation():
    table = build(scores(seeds=2))
    rows = {row.key: row for row in table.rows}
    bge, d2llm = rows["bge"].cells, rows["d2llm"].cells
    assert (bge[0].mean, bge[0].sd, bge[0].seeds) == (pytest.approx(0.85), pytest.approx(0.1 / 2**0.5), 2)
    # The average is of tasks within a seed: (.80+.50)/2 = .65 and (.84+.70)/2 = .77.
    assert (d2llm[4].mean, d2llm[4].sd) == (pytest.approx(0.71), pytest.approx(0.12 / 2**0.5))
    assert rows["teacher"].cells[0].sd is None  # one evaluation
    assert [row.key for row in table.rows] == ["teacher", "bm25", "bge", "sgpt", "d2llm"]
    assert "mean ± standard deviation over 2 seeds" in table.caption
    assert "**0.8500** ± 0.0707" in layout.to_markdown(table)
    assert r"\textbf{0.8500} {\scriptsize$\pm$ 0.0707}" in layout.to_latex(table)


def test_latex_is_escaped_ruled_and_spanned():
    text = layout.to_latex(build(scores()))
    body = text[text.index(r"\toprule") :].splitlines()
    assert body == [
        r"\toprule",
        r" & \multicolumn{2}{c}{Set\_a} & \multicolumn{2}{c}{Set\_b} & \multicolumn{2}{c}{Average} \\",
        r"\cmidrule(lr){2-3} \cmidrule(lr){4-5} \cmidrule(lr){6-7}",
        r"Method & Pearson & Spearman & Pearson & Spearman & Pearson & Spearman \\",
        r"\midrule",
        r"Teacher & 0.9900 & 0.8900 & 0.9700 & 0.8700 & 0.9800 & 0.8800 \\",
        r"BM25 & 0.3000 & 0.2000 & 0.2000 & 0.1000 & 0.2500 & 0.1500 \\",
        r"\midrule",
        r"BGE \& co & \textbf{0.8000} & \textbf{0.7000} & \textbf{0.6000} & \textbf{0.5000} "
        r"& \textbf{0.7000} & \textbf{0.6000} \\",
        r"SGPT & \underline{0.7000} & \underline{0.6000} & \textbf{0.6000} & \textbf{0.5000} "
        r"& \underline{0.6500} & \underline{0.5500} \\",
        r"D2LLM & \textbf{0.8000} & \textbf{0.7000} & \underline{0.5000} & \underline{0.4000} "
        r"& \underline{0.6500} & \underline{0.5500} \\",
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table*}",
    ]
    assert layout.tex("50% & a_b #1 {x} $y$ ~^\\") == (
        r"50\% \& a\_b \#1 \{x\} \$y\$ \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )


def test_csv_is_tidy_and_holds_every_bit():
    table = build(scores(seeds=2))
    rows = list(csv.DictReader(io.StringIO(layout.to_csv(table))))
    assert len(rows) == 5 * 6
    cell = next(r for r in rows if (r["method"], r["task"], r["metric"]) == ("bge", "a", "pearson"))
    assert float(cell["mean"]) == table.rows[2].cells[0].mean and float(cell["sd"]) == table.rows[2].cells[0].sd
    assert (cell["block"], cell["seeds"], cell["mark"]) == ("method", "2", "best")
    assert {r["sd"] for r in rows if r["method"] == "teacher"} == {""}
    assert {r["mark"] for r in rows if r["block"] == "reference"} == {""}


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
    table = build(one[one.task == "a"])
    assert [column.task for column in table.columns] == ["a", "a"]
    empty = build(one[one.task == "c"])
    assert empty.rows == () and "No task of this kind was evaluated." in layout.to_markdown(empty)
    assert "tabular" not in layout.to_latex(empty)


def test_a_missing_score_is_named():
    whole = scores(seeds=2)
    for wrong in (
        (whole.method == "sgpt") & (whole.task == "b") & (whole.metric == "spearman"),
        (whole.method == "sgpt") & (whole.task == "b") & (whole.metric == "spearman") & (whole.seed == 2),
        whole.method == "sgpt",
    ):
        with pytest.raises(ArtifactError, match="no .* of method sgpt on task"):
            build(whole[~wrong])


def test_candidate_depth_is_stated():
    values = scores()
    values.loc[values.method == "teacher", "candidates"] = "BM25 30 + dense 30"
    values.loc[values.method != "teacher", "candidates"] = "all"
    caption = build(values).caption
    assert "Teacher: re-ranks the union of candidates BM25 30 + dense 30 per query." in caption
    assert caption.count("re-ranks") == 1


@pytest.fixture
def config(tmp_path):
    config = Config(results=str(tmp_path), methods={"d2llm": {}, "bge": {}})
    values = scores()
    write_frame(Paths.of(config).scores, values[values.method != "sgpt"])
    comparisons().to_csv(Paths.of(config).comparisons, index=False)
    comparisons().head(0).to_csv(Paths.of(config).ablations, index=False)
    write_collected(config)
    return config


def comparisons() -> pd.DataFrame:
    """D2LLM against two baselines on task a (significantly below the strongest), b and the average (not)."""
    rows = [
        ("a", "bge", True, -0.05, 0.01),
        ("a", "sgpt", False, 0.12, 0.01),
        ("b", "bge", True, 0.0, 0.9),
        ("b", "sgpt", False, 0.0, 0.04),
        ("average", "bge", True, 0.2, 0.06),
    ]
    return pd.DataFrame(
        [
            {"group": "sts", "task": task, "metric": "spearman", "method": "d2llm", "baseline": baseline, "strongest": strongest, "value": 0.7,
             "difference": difference, "low": -1.0, "high": 1.0, "p": 0.01, "p_holm": p, "seeds": 1, "n": 10}
            for task, baseline, strongest, difference, p in rows
        ]
    )  # fmt: skip


def test_only_significant_differences_from_the_strongest_baseline_are_marked():
    table = build(scores(), comparisons())
    leads = {
        (row.key, column.task, column.metric): cell.lead
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
        if cell.lead
    }
    assert leads == {("d2llm", "a", "spearman"): "down"}
    assert "95%, Holm's correction over 5 comparisons" in table.caption
    assert "D2LLM is significantly above or below the strongest baseline" in table.caption
    context = replace(CONTEXT, subject="SGPT")
    caption = SPEC.build(Collected(scores=scores(), comparisons=comparisons()), context).caption
    assert "SGPT is significantly above or below the strongest baseline" in caption and "D2LLM" not in caption
    assert "| **0.7000**↓ |" in layout.to_markdown(table)
    assert r"\textbf{0.7000}$\downarrow$" in layout.to_latex(table)
    up = comparisons().assign(difference=0.1)
    assert "↑" in layout.to_markdown(build(scores(), up))
    assert not build(scores()).caption.count("Holm")


def test_run_writes_every_form_of_every_table_without_torch_or_mteb(config):
    code = (
        "import sys; from d2llm.config.schema import Config; from d2llm.reporting import tables;"
        f"config = Config(results={config.results!r}, methods={{'d2llm': {{}}, 'bge': {{}}}});"
        "[tables.run(config, name) for name in tables.TABLES];"
        "print([name for name in ('torch', 'mteb', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    paths = Paths.of(config)
    for name in ("nli", "sts", "ir"):
        assert all(paths.table(name, extension).stat().st_size > 0 for extension in ("csv", "md", "tex", "html"))
    text = paths.table("sts", "md").read_text(encoding="utf-8")
    # Whatever the order in the configuration, D2LLM comes last; titles are the methods' own.
    assert text.index("| *Teacher (cross-encoder)* |") < text.index("| BGE") < text.index("| D2LLM")


def test_unknown_table_and_missing_scores_are_errors(config, tmp_path):
    with pytest.raises(ConfigError, match="no table named 'nope'; known: nli, sts, ir"):
        tables.run(config, "nope")
    with pytest.raises(ArtifactError, match="scores.parquet: missing"):
        tables.run(Config(results=str(tmp_path / "empty"), methods={"bge": {}}), "sts")
