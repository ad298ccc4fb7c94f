"""The whole suite in miniature: Snakemake runs every stage for every method, without network; models and teacher's scores once more in another clone, with one core, to the same bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import yaml
from d2llm.reporting.catalogue import FIGURES
from offline import offline
from test_workflow import fresh  # noqa: F401 - a fixture
from tiny_run import BASE, tiny_settings

from d2llm.reporting.layout.tables import TABLES
from d2llm.run.paths import Paths
from d2llm.run.provenance import file_digest


def run(
    folder: Path, *arguments: str, target: str | Sequence[str] = "all", cores: int = 2, network: bool = True
) -> subprocess.CompletedProcess[str]:
    files = [] if "--configfile" in arguments else ["--configfile", "tiny.yaml"]
    targets = [target] if isinstance(target, str) else target
    command = [sys.executable, "-m", "snakemake", *targets, "--cores", str(cores), *files, *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = command if network else offline(command)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)


RATES = {name: {"learning_rate": 1e-3} for name in ("d2llm", "bge", "retromae", "llara", "sgpt", "udever")}

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
    files = ("--configfile", "tiny.yaml", "study.yaml", "-C", "results=one")
    done = run(fresh, *files, target="one/tiny/tables/ablation.md")
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    again = Counter(re.findall(r"rule (texts|data|base\w*|negatives|teacher\w*|pretext|train\w*|evaluate\w*):", said))
    assert again == Counter({"base_other": 1, "teacher": 1, "teacher_scores": 1, "train": 3, "evaluate": 3})
    after = pd.read_csv(one / "scores.csv")
    assert set(after["variant"]) == {"base", "gamma=1", "early", "half"}
    pd.testing.assert_frame_equal(after[after["variant"] == "base"].reset_index(drop=True), before)
    table = (one / "tables" / "ablation.md").read_text(encoding="utf-8")
    assert "| early (teacher teacher-early) |" in table and "| no\\_fi (gamma 1) |" in table


def same_artifacts(one: Path, two: Path) -> set[str]:
    """Every model and table of the run in `two` has the bytes of the one in `one`, by the digests in their records; the stages that made them."""
    stages = set()
    for place in two.rglob("*provenance.json"):
        records = [json.loads((side / place.relative_to(two)).read_text(encoding="utf-8")) for side in (one, two)]
        made = [
            {name: digest for name, digest in record["outputs"].items() if name.endswith((".safetensors", ".parquet"))}
            for record in records
        ]
        assert made[1] and made[0] == made[1], place
        for name, digest in made[1].items():
            assert file_digest(place.parent / name) == digest
        stages.add(records[1]["stage"])
    return stages


@pytest.mark.slow
def test_the_whole_workflow(fresh: Path) -> None:  # noqa: F811
    tuned = tiny_settings(Path("one"), methods=RATES)
    (fresh / "tiny.yaml").write_text(yaml.safe_dump(tuned, allow_unicode=True), encoding="utf-8")
    other = fresh.parent / "another"
    shutil.copytree(fresh, other)
    one, two = fresh / "one" / "tiny", other / "two" / "tiny"
    done = run(fresh, "-C", "results=one", network=False)
    assert done.returncode == 0, done.stdout + done.stderr

    # Another clone, one job at a time: the same bytes. Of evaluations those that go through all of D2LLM; that collected
    # files, tables and figures of the same scores have the same bytes is what test_evaluation, test_tables and test_comparison are of.
    paths = Paths(Path("two/tiny"))
    # An encoder and two decoders, one trained in full, one by LoRA and one by its biases; two stages of pre-training.
    trained = ("d2llm", "bge", "llara", "sgpt")
    wanted = [paths.run(name, "base", 1) / "provenance.json" for name in trained]
    wanted += [paths.evaluation(name, "base", 1) / "scores.parquet" for name in ("d2llm", "teacher")]
    done = run(other, "-C", "results=two", target=[str(path) for path in wanted], cores=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert same_artifacts(one, two) == {
        "texts", "data", "base", "negatives", "teacher", "teacher-scores", "pretext", "train", "evaluate"
    }  # fmt: skip
    # Times and memory are of a run; all else that is told of a training is the same.
    own = ("seconds", "pretext_seconds", "peak_memory_mb")
    for name in trained:
        told = [Paths(side).run(name, "base", 1) / "summary.json" for side in (one, two)]
        assert len({json.dumps({key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key not in own}) for path in told}) == 1  # fmt: skip

    page = (one / "report.html").read_text(encoding="utf-8")
    for name in TABLES:
        for ext in ("csv", "md", "tex", "html"):
            table = (one / "tables" / f"{name}.{ext}").read_text(encoding="utf-8")
            assert "d2llm" in table.lower() or name == "ablation"  # this run has no variant
    assert all(
        f'id="{kind}-{name}"' in page for kind, names in (("table", TABLES), ("figure", FIGURES)) for name in names
    )
    assert (one / "results.ipynb").is_file()

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

    # What README and docs tell one to call, called.
    from documented import run_all  # imports what imports this

    run_all(fresh, one)
