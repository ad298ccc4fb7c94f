"""`d2llm compare`: differences are those of independent metrics, significance is corrected, other examples are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from d2llm.cli import main as cli
from d2llm.reporting.compare import Side, common, side, two_runs
from d2llm.run.errors import ArtifactError

SIZE = 120
TITLES = {
    "nli": ("pair_classification", "nli", "ap"),
    "sts": ("sts", "sts", "spearman"),
    "sts2": ("sts", "sts", "spearman"),
}


def write(
    folder: Path, noise: float, seeds=(1, 2), methods=("bge", "bm25"), predictions: bool = True, first: int = 0
) -> Path:
    """A run whose scores are the labels and noise; the same texts and draws each time."""
    folder.mkdir(parents=True)
    scores, kept = [], []
    for method in methods:
        for seed in seeds if method != "bm25" else (1,):
            for place, (task, (kind, group, metric)) in enumerate(TITLES.items()):
                rng = np.random.default_rng([place, seed, len(method)])
                draw = np.random.default_rng(place)
                label = draw.integers(0, 2, SIZE).astype(float) if kind != "sts" else draw.uniform(0, 5, SIZE).round(1)
                score = label / label.max() + (noise if method == "bge" else 1.0) * rng.normal(size=SIZE)
                value = average_precision_score(label, score) if kind != "sts" else spearmanr(label, score)[0]
                about = {"tier": "mini", "method": method, "variant": "base", "seed": seed}
                scores.append(about | {"split": "test", "task": task, "task_title": task.upper(), "task_type": kind, "group": group, "scorer": "cosine", "candidates": "", "phenomenon": "all", "metric": metric, "value": value, "n": SIZE})  # fmt: skip
                kept.append(pd.DataFrame({"task": task, "query_id": [f"{task}-{n + first}" for n in range(SIZE)], "doc_id": "", "cluster": [f"{task}-{n + first}" for n in range(SIZE)], "score": score, "label": label, "relevant": 0, "phenomenon": "x"}).assign(**about))  # fmt: skip
    pd.DataFrame(scores).to_csv(folder / "scores.csv", index=False)
    if predictions:
        pd.concat(kept).to_parquet(folder / "predictions.parquet")
    return folder


def test_differences_and_intervals(tmp_path: Path) -> None:
    one, two = side(write(tmp_path / "one", 2.0)), side(write(tmp_path / "two", 0.2))
    found = two_runs(one, two, resamples=400).set_index(["method", "task"])
    assert len(found) == 2 * 4  # three tasks and the average of one group
    for row in (one, two):
        row.scores["key"] = list(zip(row.scores["method"], row.scores["task"], strict=True))
    means = [part.scores.groupby("key")["value"].mean() for part in (one, two)]
    for key in means[0].index:
        assert found.loc[key, "difference"] == pytest.approx(means[1][key] - means[0][key])
        assert found.loc[key, "a"] == pytest.approx(means[0][key])
    better = found.loc["bge"]
    assert (better["low"] > 0).all() and (better["p_holm"] >= better["p"]).all()
    ordered = found.sort_values("p", kind="stable")  # Holm's: the smallest times 8, the next times 7, …, never falling
    stepped = np.maximum.accumulate(ordered["p"].to_numpy() * np.arange(8, 0, -1))
    assert ordered["p_holm"].tolist() == pytest.approx(np.minimum(stepped, 1).tolist())
    assert better.loc["average", "difference"] == pytest.approx(better.loc[["sts", "sts2"], "difference"].mean())
    assert (found.loc["bm25", ["difference", "low", "high"]] == 0).all(axis=None)  # the same scores in both
    assert (found.loc["bm25", "p_holm"] == 1).all() and (found.loc["bge", "seeds"] == 2).all()


def test_without_predictions_there_are_differences_alone(tmp_path: Path) -> None:
    whole = [side(write(tmp_path / name, noise)) for name, noise in (("one", 2.0), ("two", 0.2))]
    bare = side(write(tmp_path / "bare", 0.2, predictions=False) / "scores.csv")
    found, expected = two_runs(whole[0], bare), two_runs(*whole, resamples=400)
    same = ["method", "task", "metric", "a", "b", "difference", "n"]
    pd.testing.assert_frame_equal(found[same], expected[same])
    assert found[["low", "high", "p", "p_holm"]].isna().all(axis=None)


def test_only_seeds_of_both_count(tmp_path: Path) -> None:
    one, two = side(write(tmp_path / "one", 1.0, seeds=(1, 2))), side(write(tmp_path / "two", 0.5, seeds=(2, 3)))
    found = two_runs(one, two, resamples=200)
    assert set(found["method"]) == {"bge", "bm25"} and (found["seeds"] == 1).all()
    own = one.scores[(one.scores["method"] == "bge") & (one.scores["seed"] == 2) & (one.scores["task"] == "nli")]
    assert found.set_index(["method", "task"]).loc[("bge", "nli"), "a"] == pytest.approx(own["value"].item())


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = side(write(tmp_path / "one", 1.0))
    with pytest.raises(ArtifactError, match="run B, seed 1, on nli are of other examples"):
        two_runs(one, side(write(tmp_path / "two", 1.0, first=7)), resamples=200)
    other = side(write(tmp_path / "three", 1.0, methods=("sgpt",)))
    with pytest.raises(ArtifactError, match="no score in common.*'sgpt'"):
        two_runs(one, other)
    with pytest.raises(ArtifactError, match="scores.csv: missing"):
        side(tmp_path)
    lacking = one.scores[one.scores["task"] != "nli"]
    assert set(common(one.scores, lacking, variants=False)["task"]) == {"sts", "sts2"}


@pytest.mark.parametrize("predictions", [True, False])
def test_other_test_sets_are_refused_by_their_sizes(tmp_path: Path, predictions: bool) -> None:
    one, two = side(write(tmp_path / "one", 1.0)), side(write(tmp_path / "two", 0.5, predictions=predictions))
    smaller = two.scores.assign(n=two.scores["n"].where(two.scores["task"] != "nli", 12))
    with pytest.raises(
        ArtifactError, match=r"other examples: nli \(120 of test in A, 12 of test in B\); only"
    ) as caught:
        two_runs(one, Side(smaller, two.predictions))
    assert "sts" not in str(caught.value)
    with pytest.raises(ArtifactError, match=r"nli \(120 of test in A, 120 of dev in B\), sts \(.*sts2 \("):
        two_runs(one, Side(two.scores.assign(split="dev"), two.predictions))
    # A task that is not shared, or a phenomenon's size, is no matter.
    unshared = smaller.assign(task=smaller["task"].replace("nli", "other"))
    part = unshared.assign(phenomenon="x", n=3)
    found = two_runs(one, Side(pd.concat([part, unshared]), two.predictions), resamples=200)
    assert set(found["task"]) == {"sts", "sts2", "average"}


def test_the_output_says_that_scores_alone_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write(tmp_path / name, 1.0, predictions=name == "one")) for name in ("one", "two")]
    assert cli.main(["compare", *folders]) == 0
    assert "Scores alone are compared, without intervals or p-values" in capsys.readouterr().out


def test_the_command_prints_a_table_and_writes_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write(tmp_path / name, noise, seeds=(1,))) for name, noise in (("one", 2.0), ("two", 0.1))]
    assert cli.main(["compare", *folders, "--csv", str(tmp_path / "out.csv"), "--resamples", "400"]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("bge") and " nli " in line)
    assert line.endswith("↑") and "AP" in line and "95% interval" in text
    assert not next(line for line in text.splitlines() if line.startswith("bm25")).endswith("↑")
    written = pd.read_csv(tmp_path / "out.csv").set_index(["method", "task"])
    assert f"{written.loc[('bge', 'nli'), 'difference']:+.4f}" in line and len(written) == 8
    assert cli.main(["compare", str(tmp_path / "no"), folders[1]]) == 2
    assert "missing" in capsys.readouterr().err
