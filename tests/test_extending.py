"""docs/extending.md, carried out: its files and changes go into a copy of the repository, where its promises hold."""

from __future__ import annotations

import re
import shutil
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import yaml
from own_files import jsonl, rows
from test_new_baseline import call, clone  # noqa: F401 - clone is a fixture
from tiny_run import tiny_settings

from d2llm.config.load import load
from d2llm.data import build
from d2llm.evaluation import tasks
from d2llm.run.artifacts import read_json
from d2llm.run.paths import Paths

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
# Whole files of the page by their path.
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```", TEXT, re.S | re.M))


def changes() -> list[tuple[str, str, str]]:
    """(file, text before, text after) of every hunk of the page's diffs."""
    hunks = []
    for block in re.findall(r"^```diff\n(.*?)^```", TEXT, re.S | re.M):
        for part in re.split(r"^--- a/", block, flags=re.M)[1:]:
            for hunk in re.split(r"^@@\n", part, flags=re.M)[1:]:
                lines = hunk.splitlines(keepends=True)
                before = "".join(line[1:] for line in lines if line[:1] in (" ", "-"))
                after = "".join(line[1:] for line in lines if line[:1] in (" ", "+") and not line.startswith("+++ "))
                hunks.append((part.split("\n", 1)[0], before, after))
    return hunks


def carry_out(folder: Path) -> None:
    """Write the page's files and make its changes; each change has one place."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    for name, before, after in changes():
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{name}: docs/extending.md changes lines that are not there once:\n{before}"
        (folder / name).write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture
def extended(clone: Path) -> Path:  # noqa: F811
    """The clone with all that the page adds."""
    for part in ("tests", "docs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, clone / part, ignore=ignored, dirs_exist_ok=True)
    call(clone, "d2llm.cli", "new-baseline", "mymethod", "--title", "MyMethod", "--kind", "encoder")
    carry_out(clone)
    call(clone, "d2llm.cli", "config-docs", "--to", "docs/configuration.md")
    return clone


@pytest.mark.slow
def test_the_page_can_be_followed(extended: Path) -> None:
    written = [*(name for name in FILES if name.endswith(".py")), *(name for name, _, _ in changes())]
    call(extended, "ruff", "check", *written)
    call(extended, "ruff", "format", "--check", *written)

    # The loss by its own test, and what `make quick` says with one more of everything.
    house = (f"tests/test_house.py::test_{name}" for name in ("no_import_circle", "what_is_found_by_name"))
    tests = ["tests/test_margin.py", "tests/test_mymethod.py", "tests/test_config_docs.py", *house]
    call(extended, "pytest", "-q", "-p", "no:cacheprovider", *tests)

    # A training for the loss, one for the scorer, one for the baseline, a reference row and a figure: all are planned.
    configs = ("config/tiny.yaml", "config/margin.yaml", "config/mymethod.yaml")
    rows = "references=[bm25,length]"
    plan = call(extended, "snakemake", "--cores", "1", "--dry-run", "--configfile", *configs, "-C", rows)
    for file in ("runs/d2llm/margin/seed1/model", "runs/d2llm/distance/seed1/model", "runs/mymethod/base/seed1/model"):
        assert f"results/tiny/{file}" in plan
    assert "results/tiny/evaluations/length/base/seed1/scores.parquet" in plan
    assert "results/tiny/figures/spread.svg" in plan

    # The figure, of the reference run's scores.
    shutil.copytree(ROOT / "results" / "reference" / "mini", extended / "results" / "mini")
    scores = pd.read_csv(extended / "results/mini/scores.csv", keep_default_na=False)
    scores.to_parquet(extended / "results/mini/scores.parquet")
    call(extended, "d2llm.cli", "figure", "--name", "spread", "--config", "results/mini/config.yaml")
    assert (extended / "results/mini/figures/spread.png").stat().st_size > 10_000


@pytest.mark.slow
def test_task_metric_and_reference_row_are_measured(extended: Path) -> None:
    settings = tiny_settings(Path("results"), references=["bm25", "length"], methods={}, include=[])
    (extended / "tiny.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
    for stage in (["texts"], ["data"], ["evaluate", "--method", "length", "--seed", "1"]):
        call(extended, "d2llm.cli", *stage, "--config", "tiny.yaml")
    results = extended / "results" / "tiny"
    titles = [read_json(file)["title"] for file in sorted((results / "data" / "tasks").glob("nli_*/task.json"))]
    assert titles == ["NLI-A", "NLI-B", "NLI-C"]  # in the order of the tables' columns
    scores = pd.read_parquet(results / "evaluations/length/base/seed1/scores.parquet")
    assert set(scores.loc[scores["metric"] == "map_at_10", "task_type"]) == {"retrieval"}
    assert "nli_varied" in set(scores["task"])


@pytest.mark.slow
def test_a_data_set_of_ones_own_is_a_config_alone(tmp_path: Path) -> None:
    for split, count in (("train", 110), ("dev", 40), ("test", 40)):
        pairs = product(range(count), (("someone", "yes"), ("nobody", "no")))
        values = ((f"a man eats apple {i} of {split}", f"{who} eats {i} {split}", label) for i, (who, label) in pairs)
        jsonl(tmp_path / f"{split}.jsonl", rows("sentence1 sentence2 label", *values))
    (tmp_path / "my.yaml").write_text(FILES["my.yaml"], encoding="utf-8")
    files = {"folder": str(tmp_path), "teacher_dev": 0.3}  # of few rows
    config = load([tmp_path / "my.yaml"], {"results": str(tmp_path), "data": {"files": files}})
    build.run_texts(config)
    build.run(config)
    task = tasks.read(Paths.of(config).task("pairs"), "test")
    assert (task.title, task.type, task.group) == ("Mine", "pair_classification", "nli") and len(task.pairs) > 20
