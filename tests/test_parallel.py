"""One training over two processes (gloo): the losses, the weights and the records of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_resume import job
from test_training import prepared, train, tuned

from d2llm.config.schema import Config
from d2llm.models.student import Student
from d2llm.run.artifacts import read_json
from d2llm.run.errors import ConfigError
from d2llm.run.paths import Paths
from d2llm.training import pretext


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "changes"),
    [("d2llm", {}), ("d2llm", {"texts_at_once": 4}), ("retromae", {}), ("udever", {})],
    ids=["d2llm", "d2llm by parts", "retromae", "udever"],
)
def test_two_processes_train_as_one(method: str, changes: dict, tiny_scores: Config, tmp_path: Path) -> None:
    recipe = {"methods": {"d2llm": {"tuning": {"dropout": 0.0}}}}
    one = prepared(tiny_scores, tmp_path / "one", training={"log_every": 1} | changes, **recipe)
    two = prepared(tiny_scores, tmp_path / "two", training={"log_every": 1, "processes": 2} | changes, **recipe)
    if method == "retromae":
        pretext.run(two, method, "base")
    train(one, method, "base", 1)
    done = job(two, method, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"])
    errors = done.communicate(timeout=300)[1]
    assert done.returncode == 0, errors[-3000:]
    folders = [Paths.of(config).run(method, "base", 1) for config in (one, two)]
    first, second = (tuned(folder / "log.jsonl") for folder in folders)
    assert len(first) == len(second) == one.training.steps  # the other process writes none
    for expected, record in zip(first, second, strict=True):
        numbers = {key: value for key, value in expected.items() if isinstance(value, float)}
        assert record == expected | {key: pytest.approx(value, rel=2e-4, abs=1e-6) for key, value in numbers.items()}
    weights = [Student.load(folder / "model").state_dict() for folder in folders]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-3, atol=2e-4, msg=name)
    assert read_json(folders[1] / "provenance.json")["settings"]["training"]["processes"] == 2


@pytest.mark.slow
def test_processes_that_were_not_started_are_refused(tiny_scores: Config, tmp_path: Path) -> None:
    config = prepared(tiny_scores, tmp_path / "run", training={"processes": 2})
    with pytest.raises(ConfigError, match="training.processes: 2 processes, started were 1"):
        train(config, "sgpt", "base", 1)
