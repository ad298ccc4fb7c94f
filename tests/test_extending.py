"""docs/extending.md, carried out: its files and changes go into a copy of the repository, and what it promises is looked at there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_new_baseline import call, clone  # noqa: F401 - clone is a fixture
from test_own_workflow import write_files
from tiny_run import tiny_settings

from d2llm.run.artifacts import read_json

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def files() -> dict[str, str]:
    """Whole files of the page by their path."""
    return dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```", TEXT, re.S | re.M))


def changes() -> list[tuple[str, str, str]]:
    """(file, text before, text after) of every hunk of the page's diffs."""
    found = []
    for block in re.findall(r"^```diff\n(.*?)^```", TEXT, re.S | re.M):
        for part in re.split(r"^--- a/", block, flags=re.M)[1:]:
            name = part.split("\n", 1)[0]
            for hunk in re.split(r"^@@\n", part, flags=re.M)[1:]:
                lines = hunk.splitlines()
                before = "".join(line[1:] + "\n" for line in lines if line[:1] in (" ", "-"))
                after = "".join(line[1:] + "\n" for line in lines if line[:1] != "-")
                found.append((name, before, after))
    return found


def carry_out(folder: Path) -> None:
    """Write the page's files and make its changes; each change has one place."""
    for name, content in files().items():
        (folder / name).write_text(content, encoding="utf-8")
    for name, before, after in changes():
        text = (folder / name).read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{name}: docs/extending.md changes lines that are not there once:\n{before}"
        (folder / name).write_text(text.replace(before, after), encoding="utf-8")


def test_the_page_has_what_it_announces() -> None:
    assert set(files()) == {"d2llm/margin_loss.py", "tests/test_margin_loss.py", "my.yaml", "d2llm/reporting/figure_spread.py"}  # fmt: skip
    assert [name for name, _, _ in changes()] == [
        "baselines/mymethod.py", "baselines/mymethod.py", "d2llm/config/data.py", "d2llm/data/build.py", "d2llm/reporting/catalogue.py",
        "d2llm/reporting/captions.py",
    ]  # fmt: skip
    assert [line[3:] for line in TEXT.splitlines() if line.startswith("## ")] == ["A baseline", "A loss", "A task", "A data set", "A figure", "Before you send it"]  # fmt: skip


@pytest.mark.slow
def test_the_page_can_be_followed(clone: Path) -> None:  # noqa: F811
    commands = [line.split("#")[0].strip() for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.S | re.M) for line in block.splitlines()]  # fmt: skip
    for part in ("tests", "docs"):
        shutil.copytree(ROOT / part, clone / part, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    made = [line for line in commands if line.startswith("d2llm new-baseline")]
    assert call(clone, "d2llm.cli", *made[0].split()[1:]).returncode == 0
    carry_out(clone)
    for tool in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
        styled = subprocess.run([Path(sys.executable).parent / tool[0], *tool[1:]], cwd=clone, capture_output=True, text=True, check=False)  # fmt: skip
        assert styled.returncode == 0, styled.stdout

    # The loss: its test, and the method's with another objective.
    tests = next(line for line in commands if line.startswith("python -m pytest tests/test_margin_loss"))
    done = call(clone, *tests.split()[2:], "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0 and "5 passed" in done.stdout, done.stdout

    # What `make quick` says of methods and tasks, with one more of each.
    assert call(clone, "d2llm.cli", *next(line for line in commands if line.startswith("d2llm config-docs")).split()[1:]).returncode == 0  # fmt: skip
    quick = [
        "tests/test_config_docs.py::test_the_page_is_current",
        "tests/test_data_build.py::test_every_file_and_nothing_else",
        "tests/test_docs.py::test_the_first_lines_are_what_a_wrong_config_gives",
        "tests/test_plan.py::test_a_run_that_has_its_data_is_planned_from_it",
        "tests/test_profiles.py::test_a_profile_gives_resources_to_rules_there_are",
        "tests/test_profiles.py::test_every_methods_training_gets_what_a_profile_gives_train",
        "tests/test_students.py::test_the_registry_finds_every_method_without_torch",
    ]
    done = call(clone, "pytest", "--all", "-q", "-p", "no:cacheprovider", *quick)
    assert done.returncode == 0 and "9 passed" in done.stdout, done.stdout

    # The baseline beside the others, and the figure, in the workflow's plan.
    assert call(clone, "d2llm.cli", *next(line for line in commands if line.startswith("d2llm check-config --config config/mini")).split()[1:]).returncode == 0  # fmt: skip
    dry = call(clone, "snakemake", "--cores", "1", "--dry-run", "--configfile", "config/mymethod.yaml")
    said = dry.stdout + dry.stderr
    assert "rule train_mymethod:" in said and "figures/spread.svg" in said, said

    # The task: the data stage makes it, beside the others as they were.
    (clone / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings(Path("results")), allow_unicode=True))
    for stage in ("texts", "data"):
        done = call(clone, "d2llm.cli", stage, "--config", "tiny.yaml")
        assert done.returncode == 0, done.stderr
    headers = [read_json(file) for file in sorted((clone / "results" / "tiny" / "data" / "tasks").glob("nli_*/task.json"))]  # fmt: skip
    assert [header["title"] for header in headers] == ["NLI-A", "NLI-B", "NLI-C"]  # in the order of the tables' columns
    task = pd.read_parquet(clone / "results" / "tiny" / "data" / "tasks" / "nli_varied" / "test.parquet")
    assert len(task) > 20 and set(task["label"]) == {0, 1}

    # The figure, of the reference run's scores.
    shutil.copytree(ROOT / "results" / "reference" / "mini", clone / "results" / "mini")
    pd.read_csv(clone / "results/mini/scores.csv", keep_default_na=False).to_parquet(clone / "results/mini/scores.parquet")  # fmt: skip
    drawn = next(line for line in commands if line.startswith("d2llm figure"))
    done = call(clone, "d2llm.cli", *drawn.split()[1:])
    assert done.returncode == 0, done.stderr
    assert (clone / "results/mini/figures/spread.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_data_set_of_ones_own_is_a_config_alone(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "my.yaml").write_text(files()["my.yaml"], encoding="utf-8")
    from d2llm.config.load import load
    from d2llm.data import build
    from d2llm.evaluation import tasks
    from d2llm.run.paths import Paths

    changes = {
        "results": str(tmp_path),
        "data": {"files": {"folder": str(tmp_path), "teacher_dev": 0.3}},
    }  # of few rows
    config = load([tmp_path / "my.yaml"], changes)
    build.run_texts(config)
    build.run(config)
    read = tasks.read(Paths.of(config).task("pairs"), "test")
    assert (read.title, read.type, read.group) == ("Mine", "pair_classification", "nli") and len(read.pairs) > 20
