"""Run times: what is measured on a tiny run, how the teacher's are extrapolated, what is refused; their figures."""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.text import Text
from task_folders import pair_task, sts_task

from d2llm.config.evaluation import RuntimeSettings
from d2llm.config.load import load
from d2llm.config.schema import Config
from d2llm.evaluation import runtime, runtime_table
from d2llm.reporting.collected import Collected
from d2llm.reporting.drawing import figures
from d2llm.reporting.figures import latency as figure_latency
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.paths import Paths
from d2llm.run.schemas import PHASES, RUNTIME

SIZES = [20, 60, 300]
METHODS = {"d2llm": {}, "bge": {}}


# ------------------------------------------------------------------------------------------------------------ measuring
@pytest.fixture(scope="module")
def measured(tiny_scores: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, pd.DataFrame]:
    """A tiny run with untrained students, in a folder of its own, and its table of run times."""
    from d2llm.config.recipes import MaxLengths
    from d2llm.models.backbone import Backbone
    from d2llm.models.student import Student, same_formats

    there, folder = Paths.of(tiny_scores), tmp_path_factory.mktemp("runtime")
    config = Config.model_validate(tiny_scores.model_dump() | {"results": str(folder), "methods": METHODS})
    paths = Paths.of(config)
    paths.root.mkdir()
    for part in ("data", "models", "teacher"):
        (paths.root / part).symlink_to(there.root / part)
    formats = same_formats(MaxLengths(query=48, passage=48, symmetric=48))
    for method, kind, scorer in (("d2llm", "decoder", ("iem", {"hidden": 16})), ("bge", "encoder", ("cosine", {}))):
        student = Student(Backbone.load(paths.base(kind), kind), ("mean", {}), scorer, formats, method=method)
        student.save(paths.run(method, "base", 1) / "model")
    runtime.run(config)
    return config, runtime_table.read(paths.runtime)


def test_every_phase_is_measured_once(measured: tuple[Config, pd.DataFrame]) -> None:
    config, table = measured
    batch = config.evaluation.batch_size
    expected = {("teacher", "score", batch, 0)} | {("teacher", "rerank", 16, size) for size in SIZES}
    expected |= {(name, "search", 1, size) for name in ("d2llm", "bge", "bm25", "teacher") for size in SIZES}
    for name in ("d2llm", "bge", "bm25"):
        expected |= {(name, "encode_query", 1, 0), (name, "encode_passage", batch, 0), (name, "score", batch, 0)}
    assert set(table[["method", "phase", "batch", "corpus"]].itertuples(index=False, name=None)) == expected
    assert len(table) == len(expected)
    assert (table["threads"] == config.threads).all() and (table["repeats"] == 3).all()
    assert (table["per"] == table["phase"].map(PHASES)).all()
    searches = table.query("phase == 'search'").drop_duplicates("method").set_index("method")
    sizes = searches[["bytes_per_passage", "embedding_bytes"]]
    assert sizes.loc["d2llm"].tolist() == [4 * 16, 4 * 32] and sizes.loc[["teacher", "bm25"]].isna().all(axis=None)


def test_the_teacher_is_extrapolated_in_proportion(measured: tuple[Config, pd.DataFrame]) -> None:
    _, table = measured
    assert set(table.loc[table["extrapolated"], "method"]) == {"teacher"}
    own = table[(table["method"] == "teacher") & (table["phase"] == "search")].set_index("corpus")
    assert own["extrapolated"].tolist() == [False, True, True]  # it reads 30 pairs
    assert own.loc[300, "median"] / own.loc[60, "median"] == pytest.approx(300 / 60, rel=1e-4)

    class Likes:
        def score(self, groups: list, mode: str) -> list[np.ndarray]:
            return [np.array([[len(passage), 1.0] for passage in passages]) for _, passages in groups]

    assert runtime.best(Likes(), "q", ["a", "aaa", "aa", ""], 3).tolist() == [1, 2, 0]  # what it likes best
    counts: list[int] = []

    def measure(count: int) -> np.ndarray:
        counts.append(count)
        return np.array([1.0, 2.0, 3.0]) * count

    grown = [(size, seconds.tolist(), guess) for size, seconds, guess in runtime.grown(measure, [5, 10, 40, 400], 20)]
    assert counts == [5, 10, 20]
    assert grown == [(size, [size, 2 * size, 3 * size], size > 20) for size in (5, 10, 40, 400)]


def test_the_clock_warms_up_and_keeps_to_its_budget() -> None:
    seen: list[int] = []

    def call(number: int) -> None:
        seen.append(number)
        time.sleep(0.02 if number else 0.2)  # the first is slow, as first calls are

    seconds = runtime.clock(call, [0, 1, 2, 3, 4, 5], RuntimeSettings(repeats=5, seconds=10.0))
    assert seen == [0, 1, 2, 3, 4, 5] and len(seconds) == 5 and seconds.min() >= 0.02
    assert len(runtime.clock(call, [1], RuntimeSettings(repeats=50, seconds=0.001))) == 3  # never fewer


def test_texts_are_those_of_retrieval_or_else_of_pairs(tiny_data: Config, tmp_path: Path) -> None:
    texts = runtime.read_texts(tiny_data)
    files = [path / "test" for path in Paths.of(tiny_data).tasks.glob("ir_*")]
    for side, name in ((texts.passages, "corpus"), (texts.queries, "queries")):
        assert set(side) == {text for path in files for text in pd.read_parquet(path / f"{name}.parquet")["text"]}
    assert texts.cycled(len(texts.passages) + 2) == [*texts.passages, *texts.passages[:2]]
    lonely = Config(results=str(tmp_path), methods={"bge": {}})
    frames = [pd.read_parquet(make(Paths.of(lonely).tasks) / "test.parquet") for make in (pair_task, sts_task)]
    of_pairs = runtime.read_texts(lonely)
    for side, column in ((of_pairs.queries, "query"), (of_pairs.passages, "passage")):
        assert len(side) == len(set(side)) and set(side) == {text for frame in frames for text in frame[column]}


def test_a_missing_model_and_sizes_that_shrink_are_refused(measured: tuple[Config, pd.DataFrame]) -> None:
    more = Config.model_validate(measured[0].model_dump() | {"methods": METHODS | {"sgpt": {}}})
    with pytest.raises(ArtifactError, match="sgpt/base/seed1/model: missing"):  # before anything is measured
        runtime.run(more)
    with pytest.raises(ConfigError, match="runtime.*corpus_sizes that grow"):
        load([], {"methods": {"bge": {}}, "runtime": "{corpus_sizes: [5, 5]}"})


def test_a_table_that_cannot_be_is_refused(tmp_path: Path) -> None:
    good, path = table(), tmp_path / "runtime.csv"
    for bad, message in [
        (good.assign(phase="guess"), "a phase other than encode_query"),
        (good.assign(q1=0.0), "not positive and ordered"),
        (good.assign(q3=good["q1"] / 2), "not positive and ordered"),
        (good.assign(median=np.nan), "not positive and ordered"),
        (pd.concat([good, good[:1]]), "the same measurement twice"),
        (good[:0], "no rows"),
        (good.drop(columns="extrapolated"), "column 'extrapolated' is missing"),
    ]:
        bad.to_csv(path, index=False)
        with pytest.raises(ArtifactError, match=rf"runtime.csv: .*{message}"):
            runtime_table.read(path)


# -------------------------------------------------------------------------------------------------------------- figures
QUALITY = {"d2llm": 0.82, "bge": 0.79, "sgpt": 0.789, "udever": 0.778, "teacher": 0.97, "bm25": 0.70}
BYTES = {"d2llm": (96.0, 32.0), "teacher": (np.nan, np.nan), "bm25": (np.nan, np.nan)}


def table() -> pd.DataFrame:
    """Invented times, of bi-encoders that are equally fast; the largest corpus was not timed for BM25."""
    rows = []
    for place, name in enumerate(QUALITY):
        a_pair, teacher = {"d2llm": 1e-5, "teacher": 1e-3, "bm25": 2e-7}.get(name, 1e-7), name == "teacher"
        phases = [("score", 64, 0, a_pair)]
        if not teacher:
            phases += [("encode_query", 1, 0, 2e-3 + place * 1e-4), ("encode_passage", 64, 0, 5e-4 + place * 1e-5)]
        for size in (100, 1000, 10000):
            phases += [("search", 1, size, 1e-3 + a_pair * size)] if (name, size) != ("bm25", 10000) else []
            phases += [("rerank", 40, size, 0.04 + size * 1e-7)] if teacher else []
        for phase, batch, corpus, median in phases:
            extrapolated = teacher and phase == "search" and corpus > 100
            stored = BYTES.get(name, (32.0, 32.0))
            times = (median, 0.9 * median, 1.2 * median)
            rows.append((name, phase, PHASES[phase], batch, corpus, 1, "CPU", *times, 5, extrapolated, *stored))
    return pd.DataFrame(rows, columns=list(RUNTIME))


def scores() -> pd.DataFrame:
    """Quality by method, as the mean of two retrieval sets; scores of another kind beside."""
    rows = []
    for name, value in QUALITY.items():
        for task, step in (("ir_a", 0.02), ("ir_b", -0.02)):
            rows.append((name, task, "retrieval", "ir", "mrr_at_10", "all", value + step))
            rows.append((name, task, "retrieval", "ir", "mrr_at_10", "who", 0.1))
        rows.append((name, "x", "sts", "sts", "spearman", "all", 0.5))
    frame = pd.DataFrame(rows, columns=["method", "task", "task_type", "group", "metric", "phenomenon", "value"])
    return frame.assign(task_title=frame["task"], variant="base", seed=1, split="test", n=9)


def test_the_latency_figure_shows_quality_and_time_at_one_size() -> None:
    matplotlib.use("Agg")
    config = Config(methods={name: {} for name in ("d2llm", "bge", "sgpt", "udever")})
    data = figures.Data(Collected(scores=scores(), runtime=table()), figures.context(config), config)
    with pyplot.style.context(figures.STYLE):
        figure = figure_latency.draw(data)
        figure.canvas.draw()
    (axis,) = figure.axes
    phases = {name: "rerank" if name == "teacher" else "search" for name in QUALITY}  # its score is of re-ranking
    own = table().set_index(["method", "phase", "corpus"])["median"]
    expected = {(own[name, phases[name], 1000], round(quality, 9)) for name, quality in QUALITY.items()}
    points = [
        (line.get_xdata(), line.get_ydata()) for line in axis.lines if line.get_marker() not in ("None", None, "")
    ]
    assert {(float(x[0]), round(float(y[0]), 9)) for x, y in points} == expected
    # Labels of equal points do not overlap.
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without its arrow
    assert len(boxes) == len(QUALITY)
    assert not any(box.overlaps(other) for place, box in enumerate(boxes) for other in boxes[:place])
    pyplot.close(figure)
