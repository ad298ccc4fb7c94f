"""One cell of a table, rebuilt from its records alone: what they name of settings, seed, code and inputs is enough."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from d2llm.cli import main as cli
from d2llm.config.load import dump, load
from d2llm.config.schema import Config
from d2llm.run import jobs
from d2llm.run.artifacts import read_json
from d2llm.run.paths import Paths
from d2llm.run.provenance import content_digest
from d2llm.run.stages import STAGES

RUN = {"method": "d2llm", "variant": "base", "seed": 1}
TASK = "sts_graded"


@pytest.fixture
def process() -> Iterator[None]:
    """What a job's process is prepared with is taken back."""
    before, mode, threads = dict(os.environ), torch.get_deterministic_debug_mode(), torch.get_num_threads()
    yield
    os.environ.clear()
    os.environ.update(before)
    torch.set_deterministic_debug_mode(mode)
    torch.set_num_threads(threads)


def job(config: Config, stage: str, *inputs: Path) -> dict[str, Any]:
    """Run a stage as the workflow does; returns its record."""
    paths = Paths.of(config)
    paths.root.mkdir(parents=True, exist_ok=True)
    paths.config.write_text(dump(config), encoding="utf-8")
    named = [word for key, value in RUN.items() for word in (f"--{key}", str(value))]
    given = ["--config", str(paths.config), "--log", str(paths.logs(stage)), "--inputs", *map(str, inputs)]
    assert cli.main([stage, *named, *given]) == 0
    return read_json(STAGES[stage].record(paths, **RUN))


def cell(config: Config) -> float:
    """The number in the table."""
    frame = pd.read_parquet(Paths.of(config).evaluation(**RUN) / "scores.parquet")
    [value] = frame.query(f"task == '{TASK}' and metric == 'spearman' and phenomenon == 'all'")["value"]
    return value


@pytest.mark.slow
def test_a_cell_follows_from_its_records(tiny_scores: Config, tmp_path: Path, process: None) -> None:
    first = tmp_path / "first"
    shutil.copytree(tiny_scores.results, first)
    (tmp_path / "tiny.yaml").write_text(dump(tiny_scores), encoding="utf-8")
    changes = {"results": str(first), "evaluation": {"tasks": [TASK], "batch_size": 32}}
    config = load([tmp_path / "tiny.yaml"], changes)
    paths = Paths.of(config)
    inputs = [paths.pairs, paths.base("decoder"), paths.tasks, paths.teacher_scores(0, 1)]
    trained = job(config, "train", *inputs)
    evaluated = job(config, "evaluate", paths.tasks, paths.run(**RUN) / "model")
    wanted = cell(config)

    # From the records alone: what they say was run, with which settings and seed, by which code.
    run = {key: trained[key] for key in RUN}
    assert run == RUN == {key: evaluated[key] for key in RUN}
    for stage, record in (("train", trained), ("evaluate", evaluated)):
        assert record["code"] == jobs.code(config, stage, **RUN), "other code than the one that was recorded"
    settings = {
        "tier": config.tier,
        "results": str(tmp_path / "again"),
        "seeds": [run["seed"]],
        "threads": trained["threads"],
        "methods": {run["method"]: trained["settings"]["recipe"]},
        "training": trained["settings"]["training"],
        "evaluation": evaluated["settings"]["evaluation"],
    }
    again = load([], settings)
    copies = []
    for path, digest in trained["inputs"].items():
        copy = Paths.of(again).root / Path(path).relative_to(paths.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if Path(path).is_dir() else shutil.copy2)(path, copy)
        assert content_digest(copy) == digest
        copies.append(copy)
    shutil.rmtree(first)
    rebuilt = job(again, "train", *copies)
    job(again, "evaluate", copies[2], Paths.of(again).run(**RUN) / "model")
    assert cell(again) == wanted
    # Not the number alone: every weight.
    model = {name: digest for name, digest in trained["outputs"].items() if name.endswith(".safetensors")}
    assert model and model.items() <= rebuilt["outputs"].items()
