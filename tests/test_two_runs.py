"""`d2llm compare`: differences are those of independent metrics, significance is corrected, other examples are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from d2llm.cli import main as cli
from d2llm.reporting.compare import common, side, two_runs
from d2llm.run.errors import ArtifactError

SIZE = 120
TASKS = {"nli": ("pair_classification", "nli", "ap"), **dict.fromkeys(("sts", "sts2"), ("sts", "sts", "spearman"))}


def write(folder: Path, noise: float, seeds=(1, 2), methods=("bge", "bm25"), predictions=True, first=0) -> Path:
    """A run whose scores are the labels and noise; the same texts and draws each time."""
    folder.mkdir(parents=True)
    scores, kept = [], []
    for method, seed in [(m, s) for m in methods for s in (seeds if m != "bm25" else (1,))]:
        for place, (task, (kind, group, metric)) in enumerate(TASKS.items()):
            draw = np.random.default_rng(place)
            label = draw.integers(0, 2, SIZE).astype(float) if kind != "sts" else draw.uniform(0, 5, SIZE).round(1)
            spread = np.random.default_rng([place, seed, len(method)]).normal(size=SIZE)
            score = label / label.max() + (noise if method == "bge" else 1.0) * spread
            value = average_precision_score(label, score) if kind != "sts" else spearmanr(label, score)[0]
            run = {"tier": "mini", "method": method, "variant": "base", "seed": seed, "task": task}
            about = {"split": "test", "task_title": task.upper(), "task_type": kind, "group": group, "metric": metric}
            scores.append(run | about | {"value": value, "n": SIZE})
            ids = [f"{task}-{n + first}" for n in range(SIZE)]
            kept.append(pd.DataFrame({"query_id": ids, "cluster": ids, "score": score, "label": label}).assign(**run))
    same = {"scorer": "cosine", "candidates": "", "phenomenon": "all"}
    pd.DataFrame(scores).assign(**same).to_csv(folder / "scores.csv", index=False)
    if predictions:
        pd.concat(kept).assign(doc_id="", relevant=0, phenomenon="x").to_parquet(folder / "predictions.parquet")
    return folder


def test_differences_and_intervals(tmp_path: Path) -> None:
    one = side(write(tmp_path / "one", 2.0, seeds=(1, 2, 3)))
    two = side(write(tmp_path / "two", 0.2, seeds=(1, 2, 4)))
    table = two_runs(one, two, resamples=400).set_index(["method", "task"])
    assert len(table) == 2 * 4  # three tasks and the average of one group
    shared = (run.scores[run.scores["seed"] <= 2] for run in (one, two))  # only seeds of both count
    a, b = (scores.groupby(["method", "task"])["value"].mean() for scores in shared)
    for key in a.index:
        assert table.loc[key, ["a", "difference"]].tolist() == pytest.approx([a[key], b[key] - a[key]])
    better = table.loc["bge"]
    # Tested are whole kinds of task, and what has several trainings.
    tested = better.loc[["nli", "average"]]
    assert (tested["low"] > 0).all() and (tested["verdict"] == "better").all() and (better["seeds"] == 2).all()
    assert tested["p_holm"].tolist() == pytest.approx([2 * tested["p"].min(), max(2 * tested["p"].min(), *tested["p"])])
    assert table["p_holm"].notna().sum() == 2 and better.loc["sts", "low"] < 0 < better.loc["sts", "high"]
    assert better.loc["sts", "verdict"] == "undecided" and (table.loc["bm25", "verdict"] == "equivalent").all()
    assert better.loc["average", "difference"] == pytest.approx(better.loc[["sts", "sts2"], "difference"].mean())
    assert (table.loc["bm25", ["difference", "low", "high"]] == 0).all(axis=None)  # the same scores in both
    # Without predictions there are differences alone.
    bare = two_runs(one, side(write(tmp_path / "bare", 0.2, predictions=False) / "scores.csv"))
    same = ["method", "task", "metric", "a", "b", "difference", "n"]
    pd.testing.assert_frame_equal(bare[same], table.reset_index()[same])
    assert bare[["low", "high", "p", "p_holm"]].isna().all(axis=None)


@pytest.mark.parametrize("predictions", [True, False])
def test_what_cannot_be_compared_is_refused(tmp_path: Path, predictions: bool) -> None:
    one, two = side(write(tmp_path / "one", 1.0)), side(write(tmp_path / "two", 0.5, predictions=predictions))
    smaller = two.scores.assign(n=two.scores["n"].where(two.scores["task"] != "nli", 12))
    with pytest.raises(ArtifactError, match=r"examples: nli \(120 of test in A, 12 of test in B\); only") as caught:
        two_runs(one, replace(two, scores=smaller))
    assert "sts" not in str(caught.value)
    with pytest.raises(ArtifactError, match=r"nli \(120 of test in A, 120 of dev in B\), sts \(.*sts2 \("):
        two_runs(one, replace(two, scores=two.scores.assign(split="dev")))
    # A task that is not shared, or a phenomenon's size, is no matter.
    unshared = smaller.assign(task=smaller["task"].replace("nli", "other"))
    both = pd.concat([unshared.assign(phenomenon="x", n=3), unshared])
    assert set(two_runs(one, replace(two, scores=both), resamples=200)["task"]) == {"sts", "sts2", "average"}
    if predictions:
        with pytest.raises(ArtifactError, match="run B, seed 1, on nli are of other examples"):
            two_runs(one, side(write(tmp_path / "moved", 1.0, first=7)), resamples=200)
    with pytest.raises(ArtifactError, match="no score in common.*'sgpt'"):
        two_runs(one, side(write(tmp_path / "other", 1.0, methods=("sgpt",))))
    with pytest.raises(ArtifactError, match="scores.csv: missing"):
        side(tmp_path)
    lacking = one.scores[one.scores["task"] != "nli"]
    assert set(common(one.scores, lacking, variants=False)["task"]) == {"sts", "sts2"}


def test_the_command_prints_a_table_and_writes_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write(tmp_path / name, noise)) for name, noise in (("one", 2.0), ("two", 0.1))]
    options = ["--csv", str(tmp_path / "out.csv"), "--resamples", "400", "--level", "0.5"]
    assert cli.main(["compare", *folders, *options, "--equivalent", "0.9"]) == 0
    assert "equivalent" in capsys.readouterr().out and cli.main(["compare", *folders, *options]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("bge") and " nli " in line)
    assert line.endswith("better  ↑") and "AP" in line and "50% interval" in text
    assert not next(line for line in text.splitlines() if line.startswith("bm25")).endswith("↑")
    written = pd.read_csv(tmp_path / "out.csv").set_index(["method", "task"])
    assert f"{written.loc[('bge', 'nli'), 'difference']:+.4f}" in line and len(written) == 8
