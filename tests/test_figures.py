"""Figures by phenomenon, of agreement with the teacher, of the architecture: drawn is what data and settings say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from fontTools.ttLib import TTFont
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from scipy import stats

from d2llm.analysis import agreement
from d2llm.config.schema import Config
from d2llm.config.sections import ASYMMETRIC_ZH, SYMMETRIC_ZH
from d2llm.reporting.collected import Collected, collected
from d2llm.reporting.drawing import figures, fonts
from d2llm.reporting.figures import agreement as figure_agreement
from d2llm.reporting.figures import architecture as figure_architecture
from d2llm.reporting.figures import labels as figure_labels
from d2llm.reporting.figures import phenomena as figure_phenomena
from d2llm.reporting.figures import phenomena_ir as figure_phenomena_ir
from d2llm.reporting.figures import phenomena_sts as figure_phenomena_sts
from d2llm.run.artifacts import write_frame
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.paths import Paths

METHODS = ["d2llm", "bge"]


@pytest.fixture(autouse=True)
def styled() -> Iterator[None]:
    matplotlib.use("Agg")
    with pyplot.style.context(figures.STYLE):
        yield
    pyplot.close("all")


def data_of(
    scores: pd.DataFrame | None = None, predictions: pd.DataFrame | None = None, **settings: object
) -> figures.Data:
    config = Config(**{"methods": {name: {} for name in METHODS}, "references": ["teacher"]} | settings)
    return figures.Data(Collected(scores=scores, predictions=predictions), figures.context(config), config)


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_a_settled_figure_stays_where_it_is_in_every_format() -> None:
    """Layouts differ between processes in their last bits, which would change the names of clip paths in SVG."""
    figure = figure_phenomena.draw(data_of(scores()))
    figures.settle(figure)
    places = [axes.get_position(original=True).bounds for axes in figure.axes]
    assert len(places) > 1 and all(abs(side - round(side, 6)) < 1e-15 for place in places for side in place)
    figure.axes[0].title.set_fontsize(30)  # which a layout would make room for
    figure.set_dpi(220)
    figure.draw_without_rendering()
    assert not isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)  # as the style sheet asks for
    assert [axes.get_position(original=True).bounds for axes in figure.axes] == places


# ------------------------------------------------------------------------------------------------------- by phenomenon
def scores() -> pd.DataFrame:
    """Two seeds of every method on a task of each kind, with the metrics metrics.py gives each breakdown."""
    rng = np.random.default_rng(1)
    kinds = {
        ("nli_a", "pair_classification", "nli"): ("ap", "auc"),
        ("match", "sts", "sts"): ("ap", "auc"),
        ("graded", "sts", "sts"): ("pearson", "spearman"),
        ("search", "retrieval", "ir"): ("mrr_at_10", "recall_at_10"),
    }
    rows = [
        (*kind, method, seed, phenomenon, metric, rng.uniform(0.31, 1.0), 7 if phenomenon == "hard" else 9)
        for kind, metrics in kinds.items()
        for method, seed in product([*METHODS, "teacher"], (1, 2))
        for phenomenon, metric in product(("all", "easy", "hard"), metrics)
    ]
    columns = ["task", "task_type", "group", "method", "seed", "phenomenon", "metric", "value", "n"]
    return pd.DataFrame(rows, columns=columns).assign(variant="base", split="test", task_title=lambda f: f["task"])


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        (figure_phenomena, {"nli_a": "auc"}),
        (figure_phenomena_sts, {"match": "auc", "graded": "spearman"}),
        (figure_phenomena_ir, {"search": "mrr_at_10"}),
    ],
)
def test_a_cell_is_its_methods_mean_over_seeds_on_that_phenomenon(module: object, shown: dict[str, str]) -> None:
    given = scores()
    figure = module.draw(data_of(given))
    figure.canvas.draw()
    maps = [axis for axis in figure.axes if axis.get_title(loc="left")]
    assert [axis.get_title(loc="left") for axis in maps] == list(shown)
    titles = {"BGE": "bge", "D2LLM": "d2llm", "Teacher": "teacher"}
    for axis, (task, metric) in zip(maps, shown.items(), strict=True):
        own = given[(given["task"] == task) & (given["metric"] == metric)]
        means = own.groupby(["phenomenon", "method"])["value"].mean().unstack()
        columns = [titles[label.get_text()] for label in maps[-1].get_xticklabels()]
        rows = [label.get_text().split(" (")[0] for label in axis.get_yticklabels()]
        assert sorted(rows) == ["easy", "hard"] and columns == ["bge", "d2llm", "teacher"]
        drawn = axis.images[0].get_array()
        assert np.asarray(drawn) == pytest.approx(means.loc[rows, columns].to_numpy())
        # Easiest for the methods first; the teacher has no say in that.
        assert means.loc[rows, METHODS].mean(axis=1).is_monotonic_decreasing


def test_colours_reach_from_chance_or_below_the_lowest_score_to_perfect() -> None:
    given = scores()
    given.loc[(given["task"] == "search") & (given["metric"] == "mrr_at_10"), "value"] = 0.77
    assert figure_phenomena_ir.draw(data_of(given)).axes[0].images[0].get_clim() == (0.7, 1.0)
    sts = figure_phenomena_sts.draw(data_of(given))
    assert [axis.images[0].get_clim() for axis in sts.axes[:2]] == [(0.5, 1.0), (0.0, 1.0)]
    with pytest.raises(ConfigError, match="collected file 'curves' without asking for it; name it in READS"):
        _ = data_of(given).curves


# -------------------------------------------------------------------------------------------------------------- labels
def test_a_series_of_labels_is_what_differs_in_them_alone() -> None:
    shares = {"quarter": 0.25, "half": 0.5}
    variants = {name: {"method": "d2llm", "settings": {"labels": {"share": share}}} for name, share in shares.items()}
    alone = {"ci_weighting": "none", "alpha": 0.0, "beta": 0.0, "gamma": 0.0}
    variants |= {
        f"plain{share}": {
            "method": "d2llm",
            "title": f"plain, {share} of them",
            "settings": alone | {"labels": {"share": share}},
        }
        for share in (0.25, 0.5, 0.75)
    }
    variants["noisy"] = {"method": "d2llm", "settings": {"labels": {"noise": 0.5}}}
    all_scores = scores()
    own = all_scores[(all_scores["method"] == "d2llm") & (all_scores["seed"] == 1)]
    more = [own.assign(variant=name, value=own["value"] + 0.1 * place) for place, name in enumerate(variants)]
    data = data_of(pd.concat([all_scores, *more]), variants=variants, seeds=[1, 2], training={"pack": 4})
    report = {"nli": {"queries": 40}, "search": {"queries": 12}}
    figure = figure_labels.draw(replace(data, collected=replace(data.collected, about={"negatives": report})))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["NLI: AP", "STS: Spearman", "Retrieval: MRR@10"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    ap = own.loc[(own["task"] == "nli_a") & (own["metric"] == "ap") & (own["phenomenon"] == "all"), "value"].item()
    assert list(lines) == ["D2LLM", "D2LLM, plain"]  # of the noisy one there is no series
    # Packs of four, rounded up in every set: of 10 and 3 packs.
    assert lines["D2LLM"].get_xdata().tolist() == [4 * (3 + 1), 4 * (5 + 2), 4 * 13]
    assert lines["D2LLM"].get_ydata().tolist() == pytest.approx([ap, ap + 0.1, ap])
    assert lines["D2LLM, plain"].get_xdata().tolist() == [16, 28, 4 * (8 + 3)]
    assert lines["D2LLM, plain"].get_ydata().tolist() == pytest.approx([ap + 0.2, ap + 0.3, ap + 0.4])
    assert "differ in their labels alone" in words(figure_labels.draw(data_of(all_scores)))


# ----------------------------------------------------------------------------------------------------------- agreement
def predictions() -> pd.DataFrame:
    """Pairs with ties and a retrieval task where teacher and methods returned different passages of each query."""
    rng = np.random.default_rng(3)
    rows = []
    for method, seeds in (("d2llm", (1, 2)), ("bge", (1, 2)), ("teacher", (1,))):
        for seed in seeds:
            rows += [(method, seed, "graded", f"{i}", "", float(rng.integers(0, 12))) for i in range(40)]
            for query in range(6):
                kept = rng.choice(12, size=9, replace=False)
                rows += [(method, seed, "search", f"q{query}", f"d{doc}", float(rng.integers(0, 9))) for doc in kept]
    # A query on which the teacher says the same of everything, and one that shares two passages only, have no order.
    rows += [(method, 1, "search", "flat", f"d{d}", 0.5) for method in ("d2llm", "teacher") for d in range(5)]
    rows += [(method, 1, "search", "few", f"d{d}", float(d)) for method in ("d2llm", "teacher") for d in range(2)]
    columns = ["method", "seed", "task", "query_id", "doc_id", "score"]
    return pd.DataFrame(rows, columns=columns).assign(variant="base")


def expected(given: pd.DataFrame, method: str, task: str) -> float:
    """By scipy, query by query."""
    teacher, own = (given[(given["method"] == name) & (given["task"] == task)] for name in ("teacher", method))
    both = own.merge(teacher[["query_id", "doc_id", "score"]], on=["query_id", "doc_id"], suffixes=("", "_teacher"))
    units = both["query_id"].where(both["doc_id"] != "", "")
    both = both[~units.isin(["flat", "few"])]
    rhos = both.groupby([both["seed"], units]).apply(
        lambda part: stats.spearmanr(part["score"], part["score_teacher"])[0]
    )
    return rhos.groupby("seed").mean().mean()


def test_agreement_is_scipys_correlation_and_shows_every_shared_example() -> None:
    given = predictions()
    shared = agreement.paired(given)
    table = agreement.spearman(shared)
    assert sorted(table.index) == sorted(METHODS) and sorted(table.columns) == ["graded", "search"]
    *above, below = figure_agreement.draw(data_of(scores(), given)).axes
    counts = shared[(shared["method"] == "d2llm") & (shared["seed"] == 1)]["task"].value_counts()
    by_title = {axis.get_title(loc="left").split(" ")[0]: axis for axis in above}
    for title, task in (("STS", "graded"), ("Retrieval", "search")):
        assert by_title[title].collections[0].get_array().sum() == counts[task]
    drawn = {(line.get_marker(), round(line.get_ydata()[0])): line.get_xdata()[0] for line in below.lines}
    for (marker, method), (place, task) in product((("D", "d2llm"), ("o", "bge")), enumerate(("graded", "search"))):
        value = pytest.approx(expected(given, method, task), abs=1e-9)
        assert table.loc[method, task] == value and drawn[marker, place] == value


def test_figures_get_no_predictions_of_variants(tmp_path: Path) -> None:
    given = predictions()
    other = given[given["method"] == "d2llm"].assign(variant="ablation", score=0.0)
    paths = Paths(tmp_path)
    write_frame(paths.predictions, pd.concat([other, given], ignore_index=True))
    read = collected(paths, ["predictions"]).predictions
    assert len(read) == len(given) and read["score"].tolist() == given["score"].tolist()
    write_frame(paths.predictions, other)
    with pytest.raises(ArtifactError, match="predictions.parquet: no rows of variant base"):
        collected(paths, ["predictions"])


# -------------------------------------------------------------------------------------------------------- architecture
# The Chinese of the default prompts and answers.
PROMPTED = "".join(sorted({c for c in SYMMETRIC_ZH + ASYMMETRIC_ZH + "是不能" if ord(c) >= fonts.FIRST_CHINESE}))


def architecture(recipe: dict[str, object] | None = None, **settings: object) -> Figure:
    return figure_architecture.draw(data_of(methods={"bge": {}, "d2llm": recipe or {}}, **settings))


def test_the_architecture_shows_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, PROMPTED)
    recipe = {
        "alpha": 0.7, "beta": 0.03, "gamma": 0.0, "ci": 2.5, "in_batch": "none", "tuning": {"r": 24},
        "pooling": {"heads": 6}, "interaction": {"hidden": 320, "activation": "squared_relu"},
    }  # fmt: skip
    models = {"teacher": {"layers": 9, "hidden_size": 192, "heads": 12, "grown_from": None}}
    text = words(architecture(recipe, models=models | {"decoder": {"layers": 5, "hidden_size": 96, "heads": 3}}))
    for part in (
        "9 layers, width 192, 12 heads", "5 layers, width 96", "PMA, 6 heads\n→ width 96", "192 → 320, ReLU²",
        "LoRA of rank 24", "CI\nweight 2.5", "α = 0.7", "β = 0.03", "FI\noff", "是 / 不是 (or 能 / 不能)", "#P：[text a]",
    ):  # fmt: skip
        assert part in text
    assert "CL" not in text


def test_the_architecture_knows_the_width_of_a_checkpoint_once_it_is_there() -> None:
    models = {"teacher": {"source": "org/model"}, "decoder": {"source": "org/model", "layers": 4}}
    data = data_of(methods={"d2llm": {"interaction": {"hidden": 384}}}, models=models)
    known = replace(data, collected=Collected(about={"widths": {"teacher": 640, "decoder": 576}}))
    for one, part in ((data, "2d → 384"), (known, "1152 → 384")):
        assert part in words(figure_architecture.draw(one))


# --------------------------------------------------------------------------------------------------------------- fonts
def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, characters: str) -> None:
    """The machine's only Chinese font: DejaVu Sans under another name, which claims to know these characters."""
    from matplotlib.font_manager import FontEntry, findfont, fontManager

    font = TTFont(findfont("DejaVu Sans"))
    for table in font["cmap"].tables:
        if table.isUnicode():
            table.cmap.update({ord(character): table.cmap[ord("A")] for character in characters})
    for record in font["name"].names:
        if record.nameID in (1, 4, 6, 16):
            record.string = "SimHei"
    font.save(folder / "other.ttf")
    entry = FontEntry(fname=str(folder / "other.ttf"), name="SimHei", style="normal", weight=400)
    others = [known for known in fontManager.ttflist if known.name not in fonts.CHINESE]
    monkeypatch.setattr(fontManager, "ttflist", [*others, entry])
    fontManager._findfont_cached.cache_clear()


def test_a_font_of_the_machine_serves_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, PROMPTED)
    assert fonts.families("yes") == ["DejaVu Sans"]
    assert fonts.families("是 or 不是") == ["DejaVu Sans", "SimHei"]
    assert fonts.families("龘") is None
    # The architecture needs no results, and embeds it.
    figures.run(Config(results=str(tmp_path), methods={"d2llm": {}}), "architecture")
    assert b"SimHei" in (tmp_path / "mini" / "figures" / "architecture.pdf").read_bytes()


def test_chinese_that_no_font_has_is_shown_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "CHINESE", ())
    text = words(architecture(teacher={"symmetric": {"template": "龘{a}龘{b}龘", "yes": "龘", "no": "不"}}))
    assert "龘" not in text and "yes / no" in text and "[text a]" in text
