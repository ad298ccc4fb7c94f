"""Comparisons from predictions: pairing, averages, the strongest baseline, agreement with the scores; their figures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_up_run import TASKS as TASKS_MADE_UP
from made_up_run import make, value
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats
from sklearn.metrics import average_precision_score
from training_records import write_collected

from d2llm.analysis import comparison, inference
from d2llm.analysis.verdicts import verdict
from d2llm.config.catalogue import entries
from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.reporting.collected import Collected, collected
from d2llm.reporting.drawing import figures
from d2llm.reporting.figures import leads as figure_leads
from d2llm.reporting.figures import main as figure_main
from d2llm.reporting.figures import sweep_nli as figure_sweep_nli
from d2llm.reporting.layout import tables
from d2llm.reporting.tables.ablation import TABLE
from d2llm.run.artifacts import read_csv, write_frame, write_json
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.paths import Paths
from d2llm.run.schemas import COMPARISONS, RUNTIME, STANDINGS, VERDICTS

METHODS = ["d2llm", "bge", "sgpt"]
KINDS = {"nli_a": "pair_classification", "nli_b": "pair_classification", "sim": "sts", "ir": "retrieval"}
TASKS = pd.DataFrame({"task_type": KINDS, "group": dict(zip(KINDS, ("nli", "nli", "sts", "ir"), strict=True))})
TITLES = dict(zip(KINDS, ("NLI-A", "NLI-B", "Sim", "IR"), strict=True))
SKILL = {"d2llm": 2.0, "bge": 0.5, "sgpt": 0.3}


@cache
def predictions(seeds: tuple[int, ...] = (1,), n: int = 120) -> pd.DataFrame:
    """Noisy scorers of known skill on three kinds of task. Not to be changed."""
    rows = []
    for task, kind in KINDS.items():
        truth = np.random.default_rng([1, *task.encode()])
        label = truth.integers(0, 2, n) if kind == "pair_classification" else truth.integers(0, 6, n)
        for place, method in enumerate(METHODS):
            for seed in seeds:
                rng = np.random.default_rng([2, place, seed, *task.encode()])
                if kind == "retrieval":  # of three kept documents the first is relevant, for every other query
                    for query in range(n):
                        for doc in range(3):
                            right = float(query % 2 == 0 and doc == 0)
                            score = SKILL[method] * right + rng.normal()
                            rows.append((method, seed, task, f"q{query}", f"d{doc}", score, right, 1))
                else:
                    score = SKILL[method] * label + rng.normal(size=n)
                    rows += [(method, seed, task, f"{i}", "", score[i], float(label[i]), 0) for i in range(n)]
    columns = ["method", "seed", "task", "query_id", "doc_id", "score", "label", "relevant"]
    frame = pd.DataFrame(rows, columns=columns).assign(tier="mini", variant="base", phenomenon="all")
    return frame.assign(cluster=frame["query_id"])


def scores_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Collected scores of predictions by scikit-learn, scipy and a plain loop."""
    rows = []
    for (method, seed, task), own in frame.groupby(["method", "seed", "task"]):
        kind = KINDS[task]
        if kind == "pair_classification":
            metric, value = "ap", average_precision_score(own["label"], own["score"])
        elif kind == "sts":
            metric, value = "spearman", stats.spearmanr(own["label"], own["score"])[0]
        else:
            metric, queries = "mrr_at_10", {}
            for query, _, label in sorted(zip(own["query_id"], -own["score"], own["label"], strict=True)):
                queries.setdefault(query, []).append(label)
            value = np.mean([1 / (order.index(1.0) + 1) if 1.0 in order else 0.0 for order in queries.values()])
        about = {"tier": "mini", "method": method, "variant": "base", "seed": seed, "split": "test", "task": task}
        about |= {"task_title": TITLES[task], "task_type": kind, "group": TASKS["group"][task]}
        about |= {"scorer": "cosine", "candidates": "", "value": float(value), "n": 120}
        for phenomenon, name in (("all", metric), ("hard", "auc" if kind == "pair_classification" else metric)):
            rows.append(about | {"phenomenon": phenomenon, "metric": name})
    return pd.DataFrame(rows)


def compared(frame: pd.DataFrame, seed: int = 1, **more: object) -> pd.DataFrame:
    seeds = sorted(frame["seed"].unique().tolist())
    read = lambda task: frame[frame["task"] == task]  # noqa: E731
    return comparison.compare(read, TASKS, METHODS, seeds, 400, 0.95, seed, **more)


def test_values_are_the_metrics_and_leads_are_found_where_there_are_some() -> None:
    frame = predictions()
    table, scores = compared(frame), scores_of(frame)
    comparison.check(table, scores)  # by other libraries
    assert len(table) == 2 * (4 + 1)  # tasks, and the average of the two NLI tasks
    average = table[(table["task"] == "average") & (table["baseline"] == "bge")].iloc[0]
    parts = table[(table["group"] == "nli") & (table["task"] != "average") & (table["baseline"] == "bge")]
    assert average["difference"] == pytest.approx(parts["difference"].mean())
    assert (table["low"] < table["difference"]).all() and (table["difference"] < table["high"]).all()
    assert table[["p_holm", "detectable", "sd_seeds"]].isna().all(axis=None)  # one training
    nli = table[table["task"] == "average"]
    assert (nli["p"] < 0.05).all() and (nli["difference"] > 0).all()
    # The share of the baseline's error that is gone.
    ap = scores.query("group == 'nli' and phenomenon == 'all'").groupby("method")["value"].mean()
    gone = nli.set_index("baseline")["effect"]
    assert gone["bge"] == pytest.approx((ap["d2llm"] - ap["bge"]) / (1 - ap["bge"]))
    assert (nli["effect_low"] < nli["effect"]).all() and (nli["effect"] < nli["effect_high"]).all()
    own = scores.query("phenomenon == 'all' and task == 'sim' and method != 'd2llm'").set_index("method")["value"]
    assert table.query("task == 'sim' and strongest")["baseline"].tolist() == [own.idxmax()]
    # A method does not differ from itself.
    twin = frame[frame["method"] == "d2llm"].assign(method="bge")
    same = compared(pd.concat([frame[frame["method"] != "bge"], twin])).query("baseline == 'bge'")
    assert (same[["difference", "low", "high"]] == 0).all(axis=None) and (same["p"] == 1).all()


def test_several_seeds_are_averaged_and_resampled() -> None:
    many = predictions(seeds=(1, 2, 3))
    table = compared(many)
    comparison.check(table, scores_of(many))
    assert (table["seeds"] == 3).all()
    assert table["p_holm"].to_numpy() == pytest.approx(inference.holm(table["p"]))
    # Only what is asked is tested: here the strongest baseline on each kind of task, whose average is not beside parts.
    asked = compared(many, asked=lambda rows: rows["strongest"] & comparison.whole_kind(rows))
    tested = asked[asked["p_holm"].notna()]
    assert sorted(tested["task"]) == ["average", "ir", "sim"] and tested["strongest"].all()
    assert tested["p_holm"].to_numpy() == pytest.approx(inference.holm(tested["p"]))
    # A third of the rows, so less is asked of each.
    assert (tested["detectable"] < table.loc[tested.index, "detectable"]).all()
    # A lead of two seeds in three is not certain: its interval is far wider than over examples alone.
    lucky = many.copy()
    chosen = (lucky["method"] == "sgpt") & (lucky["seed"] > 1) & (lucky["task"] == "nli_a")
    lucky.loc[chosen, "score"] = lucky.loc[chosen, "label"]
    row = compared(lucky).query("task == 'nli_a' and baseline == 'sgpt'").iloc[0]
    alone = compared(lucky[lucky["seed"] == 2]).query("task == 'nli_a' and baseline == 'sgpt'").iloc[0]
    assert row["high"] - row["low"] > 5 * (alone["high"] - alone["low"])


def test_clusters_widen_the_interval_and_the_seed_alone_decides_it() -> None:
    frame = predictions()
    cluster = frame["cluster"].where(frame["task"] != "nli_a", frame["query_id"].str[-1])
    tables = [compared(frame.assign(cluster=cluster)), compared(frame)]
    wide, narrow = (table.query("task == 'nli_a' and baseline == 'bge'").iloc[0] for table in tables)
    assert wide["difference"] == narrow["difference"]
    assert (wide["low"], wide["high"]) != (narrow["low"], narrow["high"])
    pd.testing.assert_frame_equal(compared(frame), tables[1])
    assert not tables[1]["low"].equals(compared(frame, seed=2)["low"])


def test_predictions_that_do_not_fit_are_refused() -> None:
    frame = predictions()
    table, scores = compared(frame), scores_of(frame)
    bge = scores["method"] == "bge"
    wrong = scores.assign(value=scores["value"] + 0.01 * (bge & (scores["task"] == "sim")))
    with pytest.raises(ArtifactError, match="spearman of bge on sim is .* in the scores and .* by its predictions"):
        comparison.check(table, wrong)
    with pytest.raises(ArtifactError, match="ap of bge on nli_a is nan in the scores"):
        comparison.check(table, scores[~(bge & (scores["task"] == "nli_a"))])
    one = (frame["method"] == "sgpt") & (frame["task"] == "sim") & (frame["query_id"] == "7")
    for bad in (frame[~one], frame.assign(label=frame["label"] + one)):
        with pytest.raises(ArtifactError, match="predictions of sgpt, seed 1, on sim are of other examples"):
            compared(bad)
    with pytest.raises(ArtifactError, match="no predictions of bge, seed 1, on ir"):
        compared(frame[~((frame["method"] == "bge") & (frame["task"] == "ir"))])


@pytest.fixture
def finished(tmp_path: Path) -> Config:
    """A tier whose scores and predictions are collected and compared, with run times of methods that only search."""
    settings = {"methods": {name: {} for name in METHODS}, "references": [], "statistics": {"resamples": 500}}
    config, frame = Config(results=str(tmp_path), **settings), predictions()
    write_frame(Paths.of(config).predictions, frame)
    write_frame(Paths.of(config).scores, scores_of(frame))
    write_collected(config)
    write_json(Paths.of(config).about, {})
    comparison.run(config)
    about = {"phase": "search", "per": "query", "batch": 1, "corpus": 50, "threads": 1, "device": "CPU", "q1": 1e-3}
    about |= {"q3": 3e-3, "repeats": 3, "extrapolated": False, "bytes_per_passage": 64.0, "embedding_bytes": 32.0}
    rows = [about | {"method": name, "median": 2e-3 + place / 1e4} for place, name in enumerate(METHODS)]
    pd.DataFrame(rows, columns=list(RUNTIME)).to_csv(Paths.of(config).runtime, index=False)
    return config


def table_of(config: Config) -> pd.DataFrame:
    return read_csv(Paths.of(config).comparisons, COMPARISONS)


def test_there_are_always_enough_resamples_to_find_something(finished: Config) -> None:
    comparison.run(Config(**(finished.model_dump() | {"statistics": {"resamples": 100}})))
    assert (table_of(finished)["p"] < 0.05).any()
    verdicts = read_csv(Paths.of(finished).verdicts, VERDICTS)
    assert len(verdicts) == 3 * 3 and set(verdicts["verdict"]) == {"undecided"}  # three pairs, kinds; one training
    ranks = read_csv(Paths.of(finished).standings, STANDINGS)
    best = table_of(finished).query("task == 'average'")["value"].iloc[0]
    assert ranks.query("group == 'nli' and method == 'd2llm'")["value"].tolist() == [pytest.approx(best)]
    assert comparison.least(20, 0.95) == 880  # 2 · 20 differences / 0.05, and a tenth


def test_without_the_subject_there_is_nothing_to_compare(finished: Config) -> None:
    config = Config(results=finished.results, methods={"bge": {}, "sgpt": {}}, references=[])
    comparison.run(config)
    assert len(table_of(config)) == 0
    for name in ("main", "leads", "phenomena"):  # say so instead of failing after a day of training
        figures.run(config, name)


def test_another_subject_is_compared_with_all_others(finished: Config) -> None:
    usual = table_of(finished)
    config = Config(**(finished.model_dump() | {"statistics": {"resamples": 500, "subject": "bge"}}))
    comparison.run(config)
    table = table_of(config)
    assert set(table["method"]) == {"bge"} and set(table["baseline"]) == set(METHODS) - {"bge"}
    # The same difference from its other side.
    one, other = (
        side[side["baseline"] == name].set_index(["group", "task"])["difference"]
        for side, name in ((usual, "bge"), (table, "d2llm"))
    )
    pd.testing.assert_series_equal(one, -other)
    figures.run(config, "leads")
    assert "right of 0 BGE is better" in Paths.of(config).figure("leads", "svg").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------ ablations and sweeps
OTHER = {"method": "d2llm", "title": "Other", "group": "Parts", "settings": {"alpha": 0.5}}
COLDER = {"method": "bge", "settings": {"temperature": 0.01}}


def ablated(tmp_path: Path, **changes: object) -> Config:
    """D2LLM with two variants, of which one has the predictions of BGE: differences are known from elsewhere. A variant
    `colder` of BGE has those of D2LLM."""
    variants = {"other": OTHER, "itself": {"method": "d2llm", "settings": {"alpha": 1.0}}}
    settings = {"methods": {"d2llm": {}}, "references": [], "variants": variants, "statistics": {"resamples": 500}}
    config = Config(results=str(tmp_path), **(settings | changes))
    frame = predictions(tuple(config.seeds))
    paths = Paths.of(config)
    for path, whole in ((paths.predictions, frame), (paths.scores, scores_of(frame))):
        other = whole[whole["method"] == "bge"].assign(method="d2llm", variant="other")
        colder = whole[whole["method"] == "d2llm"].assign(method="bge", variant="colder")
        write_frame(path, pd.concat([whole, other, colder], ignore_index=True))
    return config


def ablations(config: Config) -> pd.DataFrame:
    comparison.run_ablations(config)
    return read_csv(Paths.of(config).ablations, COMPARISONS)


@cache
def leads_of_bge(seeds: tuple[int, ...] = (1,)) -> pd.Series:
    table = compared(predictions(seeds))
    return table[table["baseline"] == "bge"].set_index("task")["difference"]


def test_a_variant_is_compared_like_a_baseline(tmp_path: Path) -> None:
    config = ablated(tmp_path)
    rows = ablations(config)
    # NLI by task, other kinds by their average or only task; what is D2LLM itself is not compared.
    compared_on = sorted(zip(rows["group"], rows["task"], strict=True))
    assert compared_on == [("ir", "ir"), ("nli", "nli_a"), ("nli", "nli_b"), ("sts", "sim")]
    assert set(rows["method"]) == {"base"} and set(rows["baseline"]) == {"other"}
    assert rows.set_index("task")["difference"].to_dict() == pytest.approx(leads_of_bge()[rows["task"]].to_dict())
    assert rows["p_holm"].isna().all()  # one training


def test_variants_of_other_methods_are_compared_with_these(tmp_path: Path) -> None:
    config = ablated(tmp_path / "none", include=[])
    assert len(ablations(config)) == 0
    table = TABLE.build(collected(Paths.of(config), ["scores", "ablations"]), figures.context(config), config)
    assert table.rows == () and "no variant" in table.caption
    two = {"seeds": [1, 2], "variant_seeds": [1, 2]}
    config = ablated(tmp_path, methods={"bge": {}, "d2llm": {}}, variants={"other": OTHER, "colder": COLDER}, **two)
    rows, leads = ablations(config), leads_of_bge((1, 2))
    assert set(zip(rows["method"], rows["baseline"], strict=True)) == {("base", "other"), ("bge", "colder")}
    for row in rows.itertuples():  # one way for D2LLM, the other way for BGE
        assert row.difference == pytest.approx(leads[row.task] * (1 if row.method == "base" else -1))
    # Corrected over both together.
    assert len(rows) == 8 and rows["p_holm"].to_numpy() == pytest.approx(inference.holm(rows["p"]))


def test_variants_of_other_methods_stand_below_these(tmp_path: Path) -> None:
    variants = {
        "colder": COLDER | {"group": "Losses", "title": "colder"},
        "no_rank": {"method": "d2llm", "group": "Losses", "settings": {"alpha": 0.0}},
        "wide": {"method": "bge", "group": "Training", "settings": {"hard_negatives": 3}},
    }
    config = make(tmp_path, seeds=(1, 2), variants=variants)
    paths = Paths.of(config)
    row = dict.fromkeys(COMPARISONS, 0) | {"group": "nli", "metric": "ap", "strongest": False}
    marked = [
        ("base", "no_rank", "nli_a", 0.1, 0.01),
        ("bge", "colder", "nli_a", -0.1, 0.01),
        ("bge", "wide", "nli_b", 0.1, 0.01),
        ("bge", "wide", "nli_a", 0.1, 0.2),  # not significant
        ("sgpt", "colder", "nli_b", 0.1, 0.01),  # of another method, by the same name
    ]
    names = ("method", "baseline", "task", "difference", "p_holm")
    rows = [row | dict(zip(names, values, strict=True)) for values in marked]
    pd.DataFrame(rows).to_csv(paths.ablations, index=False)
    tables.run(config, "ablation")
    shown = read_csv(paths.table("ablation", "csv"), {"method": "str", "task": "str", "mean": "float", "lead": "str"})
    on = shown[shown["task"] == "nli_b"].set_index("method")
    assert list(on.index) == ["base_all", "base", "no_rank", "bge_base_all", "bge_base", "colder", "wide"]
    base = value("bge", 1, 1, 1)
    assert on["mean"].tolist()[4:] == pytest.approx([base, base + 0.01, base + 0.03])
    text = paths.table("ablation", "md").read_text(encoding="utf-8")
    titles = [line.split(" | ")[0].strip("| *") for line in text.splitlines() if line.startswith("| ")][2:]
    assert titles == [
        "D2LLM, 2 seeds", "D2LLM, seed 1", "Losses: no\\_rank (alpha 0)",
        "BGE, 2 seeds", "BGE, seed 1", "Losses: colder (temperature 0.01)", "Training: wide (hard\\_negatives 3)",
    ]  # fmt: skip
    leads = {(row.method, row.task): row.lead for row in shown.itertuples() if row.lead}
    assert leads == {("no_rank", "nli_a"): "down", ("colder", "nli_a"): "up", ("wide", "nli_b"): "down"}
    config = make(tmp_path / "without", methods=("bge", "sgpt"), variants={"colder": COLDER})
    pd.DataFrame(columns=list(COMPARISONS)).to_csv(Paths.of(config).ablations, index=False)
    tables.run(config, "ablation")
    assert "BGE as configured (set apart)" in Paths.of(config).table("ablation", "md").read_text(encoding="utf-8")


def test_sweeps_draw_every_point_where_it_is(tmp_path: Path) -> None:
    config = ablated(tmp_path, sweeps={"d2llm": {"alpha": [0.5, 1.0]}})
    assert config.points()["d2llm", "other"] == ("d2llm", "alpha=0.5")
    scores = collected(Paths.of(config), ["scores"]).scores.replace({"variant": {"other": "alpha=0.5"}})
    figure = figure_sweep_nli.draw(figures.Data(Collected(scores=scores), figures.context(config), config))
    (axis,) = figure.axes
    own = scores.query("method == 'd2llm' and phenomenon == 'all' and metric == 'ap'")
    values = own.set_index(["task_title", "variant"])["value"]
    lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"NLI-A", "NLI-B"}
    for title, line in lines.items():
        assert list(line.get_ydata()) == pytest.approx([values[title, "alpha=0.5"], values[title, "base"]])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.5", "1"]
    # What is configured is filled.
    filled = [line for line in axis.lines if line.get_label().startswith("_")]
    assert {line.get_xdata()[0] for line in filled} == {1} and len(filled) == 2


# ------------------------------------------------------------------------------------------------------------- figures
@pytest.mark.slow
def test_figures_need_collected_files_only_come_out_the_same_and_can_be_read_in_print(
    finished: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the width of a page, in which figures are drawn: nothing below 7 points, and no heading or note runs off."""
    code = (
        "import sys; from d2llm.config.schema import Config; from d2llm.reporting.drawing import figures;"
        f"config = Config(results={finished.results!r}, methods={dict.fromkeys(METHODS, {})!r}, references=[]);"
        f"[figures.run(config, name) for name in {list(entries('figure'))}];"
        "print([name for name in ('torch', 'mteb', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    paths = Paths.of(finished)
    files = [paths.figure(name, ext) for name in entries("figure") for ext in figures.FORMATS]
    first, render = {file: file.read_bytes() for file in files}, figures.render

    def checked(draw: Callable[[figures.Data], Figure], data: figures.Data, files: dict[str, Path]) -> None:
        with pyplot.style.context(figures.STYLE):
            figure = draw(data)
            figure.canvas.draw()
            assert figure.get_figwidth() <= 6.9
            texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
            assert not [text.get_text() for text in texts if text.get_fontsize() < 7], files["svg"]
            titles = [axes.title for axes in figure.axes] + [axes._left_title for axes in figure.axes]
            for text in (*figure.texts, *titles):
                box = text.get_window_extent()
                assert not text.get_text() or (box.x0 >= 0 and box.x1 <= figure.bbox.x1), text.get_text()
            pyplot.close(figure)
        render(draw, data, files)

    matplotlib.use("Agg")
    monkeypatch.setattr(figures, "render", checked)
    for name in entries("figure"):
        figures.run(finished, name)
    assert not [file for file in files if file.read_bytes() != first[file]]
    for file, content in first.items():
        assert content.startswith({".pdf": b"%PDF", ".svg": b"<?xml", ".png": b"\x89PNG"}[file.suffix])
        assert file.suffix != ".pdf" or b"/FontFile2" in content  # fonts are embedded, as TrueType


@pytest.fixture
def styled() -> Iterator[None]:
    matplotlib.use("Agg")
    with pyplot.style.context(figures.STYLE):
        yield
    pyplot.close("all")


def data_of(frame: pd.DataFrame, table: pd.DataFrame) -> figures.Data:
    config = Config(methods={name: {} for name in METHODS}, references=[])
    return figures.Data(Collected(scores=scores_of(frame), comparisons=table), figures.context(config), config)


def marks(axis: Axes) -> set[tuple[float, bool]]:
    """Where marks stand, and whether they are filled."""
    marked = [line for line in axis.lines if line.get_marker() not in ("None", None)]
    return {(round(float(line.get_xdata()[0]), 9), line.get_markerfacecolor() != "white") for line in marked}


def test_leads_are_drawn_where_they_are(styled: None) -> None:
    frame = predictions()
    table = compared(frame)
    table["p_holm"] = np.where(table["baseline"] == "bge", 0.01, 0.2)
    figure = figure_leads.draw(data_of(frame, table))
    for axis, group in zip(figure.axes, ("nli", "sts", "ir"), strict=True):
        own = list(table[table["group"] == group].itertuples())
        assert marks(axis) == {(round(row.difference, 9), row.baseline == "bge") for row in own}
        level = [line for line in axis.lines if line.get_marker() == "None" and len(set(line.get_ydata())) == 1]
        bars = {tuple(np.round(line.get_xdata(), 9)) for line in level}
        assert bars == {(round(row.low, 9), round(row.high, 9)) for row in own}


def test_every_score_is_drawn_in_its_panel(styled: None) -> None:
    frame = predictions(seeds=(1, 2))
    figure = figure_main.draw(data_of(frame, compared(frame)))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["NLI: AP", "STS: Spearman", "Retrieval: MRR@10"]
    means = scores_of(frame).query("phenomenon == 'all'").groupby(["group", "method", "task"])["value"].mean()
    rows = {"nli": ["NLI-A", "NLI-B", "Average"], "sts": ["Sim"], "ir": ["IR"]}
    for axis, (group, names) in zip(figure.axes, rows.items(), strict=True):
        assert {round(value, 9) for value in means[group]} <= {x for x, _ in marks(axis)}
        assert [label.get_text() for label in axis.get_yticklabels()] == names


# ------------------------------------------------------------------------------------- any row against any, verdicts
def test_any_rows_are_contrasted_over_the_seeds_they_share(tmp_path: Path) -> None:
    pairs = [["d2llm/other", "bge/colder"], ["d2llm", "teacher"], ["d2llm/other", "gone"]]
    named = {"methods": {"bge": {}, "d2llm": {}}, "variants": {"other": OTHER, "colder": COLDER}}
    with pytest.raises(ConfigError, match=r"statistics\.contrasts: expected a method.*found 'gone'"):
        load([], named | {"statistics": {"contrasts": pairs}})
    stated = named | {
        "seeds": [1, 2],
        "references": ["teacher"],
        "statistics": {"resamples": 500, "contrasts": pairs[:2]},
    }
    config = Config(results=str(tmp_path), **stated)
    paths, frame = Paths.of(config), predictions((1, 2))
    for path, whole in ((paths.predictions, frame), (paths.scores, scores_of(frame))):
        one = whole[whole["seed"] == 1]
        parts = [whole[whole["method"] != "sgpt"], one[one["method"] == "sgpt"].assign(method="teacher")]
        parts += [one[one["method"] == name].assign(method=of, variant=variant)
                  for name, of, variant in (("bge", "d2llm", "other"), ("d2llm", "bge", "colder"))]  # fmt: skip
        write_frame(path, pd.concat(parts, ignore_index=True))
    comparison.run_ablations(config)
    table = read_csv(paths.contrasts, COMPARISONS)
    rows = table.set_index(["method", "task"])
    corrected = inference.holm(table["p"].where(table["seeds"] > 1))
    assert len(table) == 8 and table["p_holm"].to_numpy() == pytest.approx(corrected, nan_ok=True)
    # Of one seed the variants are BGE and D2LLM themselves; the teacher's one evaluation stands beside both seeds.
    leads = leads_of_bge()
    value = scores_of(frame).query("phenomenon == 'all'").groupby(["method", "task", "seed"])["value"].mean()
    for task in KINDS:
        assert rows.loc[("d2llm/other", task), "difference"] == pytest.approx(-leads[task], abs=1e-6)
        expected = value["d2llm", task].mean() - value["sgpt", task, 1]
        assert rows.loc[("d2llm", task), "difference"] == pytest.approx(expected, abs=1e-6)
    assert rows.loc["d2llm/other", "seeds"].tolist() == [1] * 4 and rows.loc["d2llm", "seeds"].tolist() == [2] * 4
    tables.run(config, "contrasts")
    text = paths.table("contrasts", "md").read_text(encoding="utf-8")
    assert "| D2LLM, Other − BGE, colder |" in text and "| D2LLM − Teacher (cross-encoder) |" in text
    without = Config(results=str(tmp_path), **(stated | {"include": []}))
    comparison.run_ablations(without)
    assert set(read_csv(paths.contrasts, COMPARISONS)["method"]) == {"d2llm"}


@pytest.mark.parametrize(
    ("difference", "low", "high", "p", "threshold", "expected"),
    [
        (0.09, 0.07, 0.11, 0.001, 0.0, "holds"),
        (0.09, 0.07, 0.11, 0.2, 0.0, "not shown"),  # after correction
        (-0.09, -0.11, -0.07, 0.001, 0.0, "refuted"),
        (0.09, 0.07, 0.11, 0.001, 0.0645, "holds"),
        (0.09, 0.06, 0.12, 0.001, 0.0645, "not shown"),
        (0.02, 0.01, 0.03, 0.001, 0.0645, "refuted"),
        (0.09, 0.07, 0.11, None, 0.0, "holds"),
        (0.0, float("nan"), float("nan"), None, 0.0, "not shown"),
    ],
)
def test_the_rule_of_claims(difference, low, high, p, threshold, expected) -> None:
    assert verdict(difference, low, high, p, 0.95, threshold) == expected
    # A lead too small to matter is refuted with power, and of one training nothing is shown.
    assert verdict(0.001, -0.002, 0.004, 0.9, 0.95, margin=0.01) == "refuted"
    assert verdict(0.02, 0.01, 0.03, float("nan"), 0.95, seeds=1) == "not shown"


def test_nothing_is_cut_where_sets_are_many_and_titles_long(tmp_path: Path) -> None:
    more = [(f"s{n}", f"Similarity {n} (sample of 600)", "sts", "sts", ("pearson", "spearman")) for n in range(5)]
    config = make(tmp_path, tasks=[*TASKS_MADE_UP, *more])
    files = collected(Paths.of(config), ["scores", "comparisons"])
    data = figures.Data(files, figures.context(config), config)
    with pyplot.style.context(figures.STYLE):
        for module in (figure_main, figure_leads):
            figure = module.draw(data)
            figures.settle(figure)
            texts = [text for legend in figure.legends for text in legend.get_texts()]
            texts += [label for axis in figure.axes for label in axis.get_yticklabels()]
            for text in texts:
                box = text.get_window_extent()
                assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text.get_text()
            labels = {label.get_text() for axis in figure.axes for label in axis.get_yticklabels()}
            assert not any("sample of" in label for label in labels)
            assert "sample of that many" in figure.get_supxlabel().replace("\n", " ")
    assert figures.columns_of(["a" * 90, "b" * 90]) == 1 and figures.columns_of(["a"] * 8) == 8
    assert figures.columns_of(["a" * 21, "b" * 21, "c" * 21, "d" * 21, "e" * 21]) == 3
