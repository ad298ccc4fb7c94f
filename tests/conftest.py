"""Test tiers: quick tests by default, everything with `--all`.

Fixtures live in the files that use them, but for the tiny run.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from d2llm.config.schema import Config

# Tests share the machine with each other: one thread each, set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests stand in an empty folder, so that none reads what a run has left in the clone.

    Paths of results begin where one stands. Processes they start import this clone's code all the same.
    """
    root, folder = Path(__file__).resolve().parent.parent, tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root), prepend=os.pathsep)
        patch.chdir(folder)
        yield folder


@pytest.fixture(autouse=True)
def nothing_left(elsewhere: Path) -> Iterator[None]:
    """Nor what another test has."""
    yield
    assert Path.cwd() == elsewhere
    assert [path.name for path in elsewhere.iterdir() if not path.name.startswith(".")] == []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests as well")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--all"):
        config.option.markexpr = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one in the end."""
    names = "pipeline own_workflow workflow resume download hub comparison spoiled_data preflight spoiled_configs"
    names += " extending new_baseline speed"
    first = [f"test_{name}.py" for name in names.split()]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through a million objects again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


# One run of the pipeline's stages in miniature, made once and not to be changed.
# Each fixture is its config, once the stage is done.
@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> "Config":
    from tiny_run import tiny_config

    from d2llm.data import build

    config = tiny_config(tmp_path_factory.mktemp("tiny"))
    build.run_texts(config)
    build.run(config)
    return config


@pytest.fixture(scope="session")
def tiny_bases(tiny_data: "Config") -> "Config":
    from d2llm.training import pretraining

    for model in ("decoder", "encoder", "teacher"):
        pretraining.run(tiny_data, model)
    return tiny_data


@pytest.fixture(scope="session")
def tiny_pairs(tiny_bases: "Config") -> "Config":
    from d2llm.data.negatives import mine as negatives

    negatives.run(tiny_bases)
    return tiny_bases


@pytest.fixture(scope="session")
def tiny_scores(tiny_pairs: "Config") -> "Config":
    from d2llm.teacher import score as teacher_scores
    from d2llm.teacher import tune as teacher_tuning

    teacher_tuning.run(tiny_pairs, "teacher")
    teacher_scores.run(tiny_pairs, "teacher", 0, 1)
    return tiny_pairs
