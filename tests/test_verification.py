"""Verification on made-up scores: what passes, what fails, what is only named, and what is offered as a reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from made_up_run import extras, make, scores

from d2llm.cli import main as cli
from d2llm.config.schema import Config
from d2llm.reporting.reference import keep
from d2llm.reporting.verify import Verdict, compare, explain, verify
from d2llm.run.artifacts import read_json, write_json
from d2llm.run.errors import ArtifactError, ConfigError
from d2llm.run.paths import Paths, provenance_of
from d2llm.run.provenance import output_digests

METHODS = ("bge", "sgpt", "d2llm")
ONE = scores(METHODS, (1,))
NLI, SWAP = {"method": "bge", "task": "nli_a"}, {"phenomenon": "role swap"}


def judged(reference: pd.DataFrame, fresh: pd.DataFrame) -> Verdict:
    return compare(reference, fresh, exact=1e-6, tolerance=0.02)


def moved(frame: pd.DataFrame, by: float, **where: str) -> pd.DataFrame:
    """The scores with some of them moved."""
    chosen = pd.Series(True, index=frame.index)
    for column, wanted in where.items():
        chosen &= frame[column] == wanted
    assert chosen.any()
    return frame.assign(value=frame["value"].where(~chosen, frame["value"] + by))


@pytest.mark.parametrize(
    ("by", "where", "passes"),
    [
        # Of trained rows small differences pass; of a reference row without training none do.
        (-0.0199, {"method": "bge", "phenomenon": "all"}, True),
        (0.03, NLI | {"metric": "ap"}, False),
        (9e-7, {"method": "bm25"}, True),
        (2e-6, {"method": "bm25", "metric": "auc"}, False),
        (2e-6, {"method": "teacher"}, True),
        # Thresholds jump: five times as much of precision and recall. Breakdowns of trained rows judge nothing.
        (0.09, NLI | {"metric": "recall"}, True),
        (0.11, {"method": "bge", "metric": "precision"}, False),
        (0.3, {"method": "d2llm"} | SWAP, True),
        (float("nan"), {"method": "sgpt", "metric": "spearman"}, False),
    ],
)
def test_differences_are_judged_by_what_they_are_of(by: float, where: dict[str, str], passes: bool) -> None:
    assert judged(ONE, moved(ONE, by, **where).sample(frac=1, random_state=1)).passed == passes


def test_what_is_out_of_tolerance_is_shown() -> None:
    verdict = judged(ONE, moved(ONE, 0.03, **NLI, metric="ap"))
    row = verdict.wrong.iloc[0]
    assert (len(verdict.wrong), row["method"], row["task"], row["metric"], row["seed"]) == (1, "bge", "nli_a", "ap", 1)
    assert verdict.largest == pytest.approx(row["difference"]) == pytest.approx(0.03)
    assert "nli_a" in verdict.text() and verdict.text().splitlines()[-1].startswith("failed: 1 of")


def test_a_smaller_study_passes_and_says_what_was_not_compared() -> None:
    many = pd.concat([scores(METHODS, (1, 2)), ONE[ONE.method == "d2llm"].assign(variant="no_rank")])
    verdict = judged(many, ONE)
    assert verdict.passed and verdict.compared == len(ONE)
    more = ["bge base seed 2", "d2llm base seed 2", "d2llm no_rank seed 1", "sgpt base seed 2"]
    assert verdict.only_reference == more == judged(ONE, many).only_found
    assert "Only in the reference, not compared: bge base seed 2," in verdict.text()


def test_scores_that_a_common_run_lacks_fail() -> None:
    verdict = judged(ONE, ONE[~((ONE.method == "bge") & (ONE.task == "ir_a"))])
    assert not verdict.passed and len(verdict.lacking) == 3 and verdict.lacking[0].startswith("bge base 1 ir_a")
    fewer = judged(ONE, ONE.assign(n=ONE["n"].where(ONE["task"] != "sts_a", 7)))
    assert not fewer.passed and len(fewer.lacking) == 2 * ONE["method"].nunique()
    more = judged(ONE[ONE.metric != "recall"], ONE)
    assert more.passed and len(more.only_found) == 2 * ONE["method"].nunique()
    nothing = judged(ONE, ONE.assign(seed=5))
    assert not nothing.passed and "no score in common" in nothing.text()


def test_reasons_are_said_once_and_only_where_something_differs() -> None:
    old = {"stage": "train", "threads": 1, "code": "a", "settings": {"training": {"steps": 5}}, "packages": {}}
    new = {"stage": "train", "threads": 2, "code": "a", "settings": {"training": {"steps": 6}}, "packages": {}}
    reasons = explain({"a": old, "b": old, "c": old}, {"a": new, "b": new | {"stage": "data"}, "d": new})
    assert reasons == ["threads: 1 → 2 (train, data)", "training.steps: 5 → 6 (train, data)"]
    assert explain({"a": old}, {"a": old | {"seconds": 3}}) == []
    # A line a key of every variant that one run left out would hide that nothing differs.
    for by, shown in ((0.0, False), (0.01, True), (0.5, True)):
        verdict = judged(ONE, moved(ONE, by, method="bge"))
        verdict.reasons.append("threads: 1 → 2")
        assert ("threads: 1 → 2" in verdict.text()) == shown


@pytest.fixture
def run_and_reference(tmp_path: Path) -> tuple[Config, Path]:
    """A made-up run, and a copy kept of it as a reference."""
    config = make(tmp_path)
    extras(config)
    paths = Paths.of(config)
    figures = [paths.figure("main", ext) for ext in ("pdf", "png", "svg")]
    summaries = [paths.run(*run) / "summary.json" for run in config.runs()]
    figures[0].parent.mkdir()
    for file in (paths.card_md, paths.ablations, paths.contrasts, paths.curves, paths.runtime, *figures, *summaries):
        file.write_text("copied, not read")
    shutil.rmtree(paths.trials.parent)
    keep(config, tmp_path / "kept")
    return config, tmp_path / "kept"


def test_what_is_kept_is_kept_once_and_replaces_nothing_else(run_and_reference, tmp_path: Path) -> None:
    """No figure in two formats, no summary of a training that `runs.csv` has a row of."""
    config, kept = run_and_reference
    paths = Paths.of(config)
    files = {file.relative_to(kept).as_posix() for file in kept.rglob("*") if file.is_file()}
    tables = {f"tables/{name}.{ext}" for name in ("nli", "sts", "ir") for ext in ("csv", "md", "tex")}
    single = ("scores", "comparisons", "standings", "ablations", "contrasts", "runs", "runtime")
    assert files == tables | {f"{name}.csv" for name in single} | {
        "figures/main.svg", "config.yaml", "curves.parquet", "examples.json", "provenance.json", "data/card.json",
        "data/card.md", "data/leaks.json", "pairs/report.json", "teacher/report.json",
    }  # fmt: skip
    assert len(pd.read_csv(kept / "runs.csv")) == len(config.runs())
    record = paths.run("bge", "base", 1) / "provenance.json"
    write_json(record, read_json(record) | {"outputs": {}})
    keep(config, kept)  # over an earlier copy; any other folder stays
    assert "outputs" not in read_json(kept / "provenance.json")["runs/bge/base/seed1/provenance.json"]
    other = tmp_path / "mine"
    other.mkdir()
    (other / "work.txt").write_text("mine")
    with pytest.raises(ConfigError, match="mine: exists and holds no run's files"):
        keep(config, other)
    assert (other / "work.txt").read_text() == "mine"


def test_the_command_line(run_and_reference: tuple[Config, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, kept = run_and_reference
    paths = Paths.of(config)
    command = ["verify", "--config", str(paths.config), "--against", str(kept)]
    assert cli.main(command) == 0 and capsys.readouterr().out.startswith("identical: ")
    collected = moved(pd.read_csv(paths.scores_csv, keep_default_na=False), 0.03, method="bge", metric="ap")
    collected.to_csv(paths.scores_csv, index=False)
    record = paths.run("bge", "base", 1) / "provenance.json"
    write_json(record, read_json(record) | {"threads": 2})
    assert cli.main(command) == 1 and "- threads: 1 → 2 (train)" in capsys.readouterr().out
    assert cli.main([*command, "--tolerance", "0.05"]) == 0
    (kept / "scores.csv").write_text("tier,method\nmini,bge\n")
    with pytest.raises(ArtifactError, match="damaged CSV"):
        verify(config, kept, 1e-6, 0.02)


def test_a_file_that_its_job_did_not_write_so_fails_even_identical_scores(run_and_reference) -> None:
    config, kept = run_and_reference
    paths = Paths.of(config)
    table, record = paths.table("nli", "md"), provenance_of(paths.table("nli", "csv"))
    write_json(record, {"stage": "table", "outputs": output_digests(record, [table])})
    assert verify(config, kept, 1e-6, 0.02).passed
    table.write_text(table.read_text(encoding="utf-8").replace("0.", "1.", 1), encoding="utf-8")
    verdict = verify(config, kept, 1e-6, 0.02)
    assert verdict.identical and not verdict.passed
    assert "Not what their jobs wrote; remove them and run again: tables/nli.md (changed)" in verdict.text()
