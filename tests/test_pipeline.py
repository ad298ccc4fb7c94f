"""The whole suite in miniature: Snakemake runs every stage for every method in two clones, with two cores and with one, the second time without network, and both end with the same bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from offline import offline
from test_workflow import fresh  # noqa: F401 - a fixture
from tiny_run import BASE, tiny_settings

from d2llm.reporting import catalogue
from d2llm.reporting.figures import FIGURES
from d2llm.reporting.tables import TABLES


def run(
    folder: Path, *arguments: str, target: str = "all", cores: int = 2, network: bool = True
) -> subprocess.CompletedProcess[str]:
    files = [] if "--configfile" in arguments else ["--configfile", "tiny.yaml"]
    command = [sys.executable, "-m", "snakemake", target, "--cores", str(cores), *files, *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = command if network else offline(command)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)


RATES = {name: {"learning_rate": 1e-3} for name in ("d2llm", "bge", "retromae", "llara", "sgpt", "udever")}
GRIDS = {name: {"learning_rate": [1e-3, 4e-3]} for name in RATES}


STUDY = {
    "sweeps": {"d2llm": {"gamma": [0.1, 1.0]}},
    "variants": {
        "early": {"method": "d2llm", "settings": {"teacher": "teacher-early"}},
        "half": {"method": "d2llm", "settings": {"base": "half"}},
        "no_fi": {"method": "d2llm", "settings": {"gamma": 1.0}},
    },
    "teachers": {"teacher-early": {"steps": 4}},
    "models": {"others": {"half": {**BASE, "hidden_size": 16}}},
}


def study(fresh: Path, one: Path) -> None:  # noqa: F811
    """A study goes on from a finished run: another teacher, another base, a sweep whose centre and one variant cost nothing."""
    before = pd.read_csv(one / "scores.csv")
    (fresh / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    done = run(fresh, "--configfile", "tiny.yaml", "study.yaml", "-C", "results=one")
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    again = Counter(re.findall(r"rule (texts|data|base\w*|negatives|teacher\w*|pretext|train\w*|evaluate\w*):", said))
    assert again == Counter({"base_other": 1, "teacher": 1, "teacher_scores": 1, "train": 3, "evaluate": 3})
    after = pd.read_csv(one / "scores.csv")
    assert set(after["variant"]) == {"base", "gamma=1", "early", "half"}
    pd.testing.assert_frame_equal(after[after["variant"] == "base"].reset_index(drop=True), before)
    table = (one / "tables" / "ablation.md").read_text(encoding="utf-8")
    assert "| early (teacher teacher-early) |" in table and "| no\\_fi (gamma 1) |" in table


@pytest.mark.slow
def test_the_whole_workflow_twice(fresh: Path) -> None:  # noqa: F811
    tuned = tiny_settings(Path("one"), methods=RATES, tuning={"grids": GRIDS})
    (fresh / "tiny.yaml").write_text(yaml.safe_dump(tuned, allow_unicode=True), encoding="utf-8")
    other = fresh.parent / "another"
    shutil.copytree(fresh, other)
    for clone, results, cores in ((fresh, "one", 2), (other, "two", 1)):
        done = run(clone, "-C", f"results={results}", cores=cores, network=results == "one")
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = fresh / "one" / "tiny", other / "two" / "tiny"
    assert (one / "scores.csv").read_bytes() == (two / "scores.csv").read_bytes()
    for name in TABLES:
        for ext in ("csv", "md", "tex", "html"):
            table = (one / "tables" / f"{name}.{ext}").read_bytes()
            assert table == (two / "tables" / f"{name}.{ext}").read_bytes()
            assert "d2llm" in table.decode().lower() or name == "ablation"  # this run has no variant
    # No two measurements take the same time, so what shows times is never the same twice.
    timed = {figure for figure, files in catalogue.FIGURES.items() if "runtime" in files}
    assert timed == {"runtime", "latency"}
    for name in (f"figures/{figure}.{ext}" for figure in FIGURES.keys() - timed for ext in ("pdf", "svg", "png")):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert (one / "curves.parquet").read_bytes() == (two / "curves.parquet").read_bytes()
    # Times and memory are of a run; all else that is told of a training is the same.
    own = ["seconds", "pretext_seconds", "peak_memory_mb"]
    runs = [pd.read_csv(side / "runs.csv") for side in (one, two)]
    pd.testing.assert_frame_equal(runs[0].drop(columns=own), runs[1].drop(columns=own))
    assert (runs[0][own[:1] + own[2:]] > 0).all(axis=None)
    assert (one / "results.ipynb").read_bytes() == (two / "results.ipynb").read_bytes()
    pages = [(folder / "report.html").read_text(encoding="utf-8") for folder in (one, two)]
    # All but times, which stand in the last section and in the figures of them.
    shown = [page.partition('<section aria-labelledby="provenance">')[0] for page in pages]
    assert len({re.sub(rf'(?s)id="figure-({"|".join(timed)})".*?</figure>', "", page) for page in shown}) == 1
    assert all(
        f'id="{kind}-{name}"' in pages[0] for kind, names in (("table", TABLES), ("figure", FIGURES)) for name in names
    )
    assert (one / "comparisons.csv").read_bytes() == (two / "comparisons.csv").read_bytes()
    pd.testing.assert_frame_equal(
        pd.read_parquet(one / "predictions.parquet"), pd.read_parquet(two / "predictions.parquet")
    )

    scores = pd.read_csv(one / "scores.csv")
    methods = {"d2llm", "bge", "retromae", "llara", "sgpt", "udever", "teacher", "bm25"}
    tasks = {path.name for path in (one / "data" / "tasks").iterdir() if path.is_dir()}
    assert len(tasks) == 8
    counted = scores[scores["phenomenon"] == "all"].groupby(["method", "task"]).size()
    assert set(counted.index) == {(method, task) for method in methods for task in tasks}
    assert scores["value"].notna().all()
    # Students of different methods are different models.
    found = scores[(scores["phenomenon"] == "all") & (scores["task_type"] == "sts")].pivot_table(
        index="method", columns=["task", "metric"], values="value"
    )
    assert not found.round(9).duplicated().any()

    # Every artifact says where it comes from, and a second call finds nothing to do.
    records = [json.loads(path.read_text(encoding="utf-8")) for path in one.rglob("*provenance.json")]
    assert {record["stage"] for record in records} == {
        "texts", "data", "base", "negatives", "teacher", "teacher-scores", "pretext", "train", "evaluate", "collect", "comparison", "ablations", "runtime", "table",
        "figure", "examples", "report", "notebook",
    }  # fmt: skip
    again = run(fresh, "-C", "results=one")
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr

    # Students at work: every cell of notebooks/search.ipynb runs on what was trained.
    done = run(fresh, "-C", "results=one", target="search_notebook")
    assert done.returncode == 0, done.stdout + done.stderr
    cells = [
        cell
        for cell in json.loads((one / "search.ipynb").read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    ]
    assert all(cell["outputs"] for cell in cells)

    study(fresh, one)

    # Tuning: two trials a method, of which one is the run that is there; the best on development data is adopted.
    done = run(fresh, "-C", "results=one", target="tune")
    assert done.returncode == 0, done.stdout + done.stderr
    assert Counter(re.findall(r"rule (train\w*|evaluate_dev|tune):", done.stdout + done.stderr)) == Counter(
        {"train": 1, **{f"train_{name}": 1 for name in RATES if name != "d2llm"}, "evaluate_dev": 12, "tune": 1}
    )
    trials = pd.read_csv(one / "tuning" / "trials.csv", keep_default_na=False)
    chosen = yaml.safe_load((one / "tuning" / "chosen.yaml").read_text(encoding="utf-8"))["methods"]
    for name in RATES:
        means = {}
        for rate, variant in ((1e-3, "base"), (4e-3, "learning_rate=0.004")):
            found = pd.read_parquet(one / "development" / name / variant / "seed1" / "scores.parquet")
            assert set(found["split"]) == {"dev"}
            found = found[(found["phenomenon"] == "all") & found["metric"].isin(["ap", "spearman", "mrr_at_10"])]
            means[rate] = found.groupby("task_type")["value"].mean().mean()
        own = trials[trials["method"] == name]
        assert own["mean"].tolist() == pytest.approx([means[1e-3], means[4e-3]])
        best = max(means, key=means.get)
        assert chosen[name] == {"learning_rate": best}
        assert own.loc[own["chosen"], "setting"].tolist() == [f"learning_rate {best:g}"]
    command = [sys.executable, "-m", "d2llm.cli", "adopt", "--config", "one/tiny/config.yaml", "--to", "tiny.yaml"]
    subprocess.run(command, cwd=fresh, check=True, capture_output=True)
    adopted = yaml.safe_load((fresh / "tiny.yaml").read_text(encoding="utf-8"))
    assert {name: settings["learning_rate"] for name, settings in adopted["methods"].items()} == {
        name: settings["learning_rate"] for name, settings in chosen.items()
    }
    assert adopted | {"methods": None} == tuned | {"methods": None}

    # What README and docs tell one to call, called.
    from documented import run_all  # imports what imports this

    run_all(fresh, one)
