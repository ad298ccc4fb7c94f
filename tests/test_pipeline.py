"""The whole suite in miniature: Snakemake runs every stage for every method, without network.

Models and teacher's scores once more in another clone, with one core, to the same bytes. The run itself may be there:
.ci/run names a clone that has finished it, in FINISHED.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import yaml
from offline import offline
from test_workflow import FIGURES, TABLES, fresh  # noqa: F401 - fresh is a fixture
from tiny_run import BASE

from d2llm.run.paths import Paths
from d2llm.run.provenance import file_digest
from d2llm.run.stages import STAGES


def run(
    folder: Path, *arguments: str, target: str | Sequence[str] = "all", cores: int = 2, network: bool = True
) -> subprocess.CompletedProcess[str]:
    targets = [target] if isinstance(target, str) else target
    command = [sys.executable, "-m", "snakemake", *targets, "--cores", str(cores), *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = command if network else offline(command)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


# The tiny tier where all look by default: what the miniature of .ci/run has to be, too.
TINY = ("--configfile", "config/tiny.yaml", "-C", "tier=mini", "include=[]")
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
    """A study goes on from a finished run: another teacher, another base, a sweep, whose centre costs nothing."""
    before = pd.read_csv(one / "scores.csv")
    (fresh / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    files = ("--configfile", "config/tiny.yaml", "study.yaml", "-C", "tier=mini")
    done = run(fresh, *files, target="results/mini/tables/ablation.md")
    rules = r"rule (texts|data|base\w*|negatives|teacher\w*|pretext|train\w*|evaluate\w*):"
    again = Counter(re.findall(rules, done.stdout + done.stderr))
    assert "Tier mini: " in done.stderr and re.search(r"\[\d+ of (\d+) jobs.*\] done: train d2llm gamma=1", done.stderr)
    assert again == Counter({"base_other": 1, "teacher": 1, "teacher_scores": 1, "train": 3, "evaluate": 3})
    after = pd.read_csv(one / "scores.csv")
    assert set(after["variant"]) == {"base", "gamma=1", "early", "half"}
    pd.testing.assert_frame_equal(after[after["variant"] == "base"].reset_index(drop=True), before)
    table = (one / "tables" / "ablation.md").read_text(encoding="utf-8")
    assert "| early (teacher teacher-early) |" in table and "| no\\_fi (gamma 1) |" in table


def same_artifacts(one: Path, two: Path) -> set[str]:
    """The stages of the run in `two`, every model and table of which has the bytes of the one in `one`.

    By the digests in their records.
    """
    stages = set()
    for place in two.rglob("*provenance.json"):
        records = [json.loads((side / place.relative_to(two)).read_text(encoding="utf-8")) for side in (one, two)]
        outputs = [
            {name: digest for name, digest in record["outputs"].items() if name.endswith((".safetensors", ".parquet"))}
            for record in records
        ]
        assert outputs[1] and outputs[0] == outputs[1], place
        for name, digest in outputs[1].items():
            assert file_digest(place.parent / name) == digest
        stages.add(records[1]["stage"])
    return stages


def summary(side: Path, name: str) -> dict[str, object]:
    """What is told of a training, but for times and memory, which are of a run."""
    values = json.loads((Paths(side).run(name, "base", 1) / "summary.json").read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key not in ("seconds", "pretext_seconds", "peak_memory_mb")}


@pytest.mark.slow
def test_the_whole_workflow(fresh: Path) -> None:  # noqa: F811
    other = Path(shutil.copytree(fresh, fresh.parent / "another"))
    one, two = fresh / "results" / "mini", other / "two" / "mini"
    if finished := os.environ.get("FINISHED"):
        for part in ("results/mini", ".snakemake"):
            shutil.copytree(Path(finished) / part, fresh / part)
    run(fresh, *TINY, network=False)

    # Another clone, one job at a time: the same bytes. A decoder trained by LoRA with all of D2LLM, an encoder in full
    # after two stages of pre-training. That tables and figures of the same scores are the same, their own tests say.
    paths = Paths(Path("two/mini"))
    wanted = [paths.run("bge", "base", 1) / "provenance.json", paths.evaluation("d2llm", "base", 1) / "scores.parquet"]
    run(other, *TINY, "results=two", target=[str(path) for path in wanted], cores=1)
    assert same_artifacts(one, two) == {
        *("texts", "data", "base", "negatives", "teacher", "teacher_scores", "pretext", "train", "evaluate")
    }
    assert all(summary(one, name) == summary(two, name) for name in ("d2llm", "bge"))

    page = (one / "report.html").read_text(encoding="utf-8")
    for name, ext in product(TABLES, ("csv", "md", "tex", "html")):
        table = (one / "tables" / f"{name}.{ext}").read_text(encoding="utf-8")
        assert "d2llm" in table.lower() or name in ("ablation", "contrasts")  # this run has no variant
    shown = [f"table-{name}" for name in TABLES] + [f"figure-{name}" for name in FIGURES]
    assert all(f'id="{name}"' in page for name in shown)

    scores = pd.read_csv(one / "scores.csv")
    methods = {"d2llm", "bge", "retromae", "llara", "sgpt", "udever", "teacher", "bm25"}
    tasks = {path.name for path in (one / "data" / "tasks").iterdir() if path.is_dir()}
    counted = scores[scores["phenomenon"] == "all"].groupby(["method", "task"]).size()
    assert len(tasks) == 8 and set(counted.index) == set(product(methods, tasks))
    assert scores["value"].notna().all()
    # Students of different methods are different models.
    graded = scores[(scores["phenomenon"] == "all") & (scores["task_type"] == "sts")]
    rows = graded.pivot_table(index="method", columns=["task", "metric"], values="value")
    assert not rows.round(9).duplicated().any()

    # Every artifact says where it comes from, and a second call finds nothing to do.
    records = [json.loads(path.read_text(encoding="utf-8")) for path in one.rglob("*provenance.json")]
    elsewhere = {
        "download",
        "published",
        "vectors",
        "evaluate_shard",
        "evaluate_dev",
        "tune",
        "search_notebook",
        "corpus_shard",
        "corpus",
    }
    assert {record["stage"] for record in records} == set(STAGES) - elsewhere
    again = run(fresh, *TINY)
    assert "Nothing to be done" in again.stdout + again.stderr and "results/mini/report.html" in again.stdout

    # Students at work: every cell of notebooks/search.ipynb runs on what was trained.
    run(fresh, *TINY, target="search_notebook")
    cells = json.loads((one / "search.ipynb").read_text(encoding="utf-8"))["cells"]
    assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code")

    study(fresh, one)

    # What README and docs tell one to call, called.
    from documented import run_all  # imports what imports this

    run_all(fresh, one)
