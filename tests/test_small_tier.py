"""The small tier from the hub to the scores of D2LLM, with tiny sets and checkpoints on a hub of this machine.

Only sizes are overridden.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hub
import hub_sets
import pandas as pd
import pytest
import torch
import yaml

from d2llm.config.load import load
from d2llm.evaluation import tasks
from d2llm.run.paths import Paths
from d2llm.teacher.cross_encoder import Teacher

ROOT = Path(__file__).resolve().parent.parent
SIZES = {
    "teacher": {"steps": 3, "batch_pairs": 8, "min_ap": 0.0},
    "training": {"steps": 3, "batch_size": 8, "texts_at_once": 16, "dev_every": 2, "dev_sample": 8, "log_every": 1},
}
# Every job in one process, as each would load torch anew.
CODE = """
import sys
from d2llm.cli import main as cli
from d2llm.config.load import load
files = sys.argv[1:]
jobs = [["download", "--download", name] for name in load(files).data.files.downloads()]
jobs += [["base", "--model", model] for model in ("teacher", "decoder", "encoder")]
run = ["--method", "d2llm", "--variant", "base", "--seed", "1"]
jobs += [["texts"], ["data"], ["negatives"], ["teacher"]]
jobs += [["teacher-scores", "--shard", "0", "--shards", "1"], ["train", *run], ["evaluate", *run]]
for job in jobs:
    assert cli.main([*job, "--config", *files]) == 0, job
"""


@pytest.mark.slow
def test_from_the_hub_to_the_scores_of_d2llm(tmp_path: Path) -> None:
    """What differs from the paper tier, whose data half `test_download` holds, and what no other test joins to a hub.

    A teacher whose weights are kept in bfloat16 is tuned, by adapters; models that share embeddings, and keys and
    values among queries; samples of training sets and of mteb's retrieval sets.
    """
    hub_sets.write_sets(tmp_path / "hub", 24)
    hub_sets.write_models(tmp_path / "hub")
    place = tmp_path / "sizes.yaml"
    samples = {
        "train": {"snli_zh": {"sample": 20}, "cmedqa2": {"sample": 12, "pool": 5}},
        "tasks": {"cmedqa": {"sample": 6}},
    }
    place.write_text(yaml.safe_dump(SIZES | {"results": str(tmp_path / "r"), "data": {"files": samples}}))
    files = [str(ROOT / "config/small.yaml"), str(place)]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    with hub.serving(tmp_path / "hub") as (address, _):
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", CODE, *files]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

    config = load(files)
    paths = Paths.of(config)
    assert Teacher.load(paths.teacher_model, config.teacher).model.dtype == torch.bfloat16  # tuned in float32
    assert set(json.loads(paths.teacher_report.read_text())) == {"symmetric", "asymmetric"}
    student = json.loads((paths.run("d2llm", "base", 1) / "summary.json").read_text())
    assert student["pooling"][1]["heads"] == 32 and student["updates"] == 3
    pairs = pd.read_parquet(paths.train_pairs)
    # Half of the 24 sentences entail something, of which at most four were not drawn.
    # Every question drawn has its answer.
    counts = pairs.groupby("dataset")["query"].nunique()
    assert 8 <= counts["snli_zh"] <= 12 and counts["nli_zh_lcqmc"] == 12 and counts["cmedqa2"] == 12
    assert "sample of 6" in tasks.read(paths.task("cmedqa"), "test").title
    scores = pd.read_parquet(paths.evaluation("d2llm", "base", 1) / "scores.parquet")
    whole = scores[scores["phenomenon"] == "all"]
    assert set(whole["task"]) == set(config.data.files.tasks) and whole["value"].notna().all()
    assert set(whole.loc[whole["task"] == "cmedqa", "n"]) == {6}
