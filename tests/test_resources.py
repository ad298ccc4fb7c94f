"""What a cluster is asked for follows from the config, under the profiles as they are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_workflow import dry_run, fresh  # noqa: F401 - fresh is a fixture

from d2llm.cli.plan.jobs import JOBS
from d2llm.cli.plan.requests import Requests
from d2llm.config.load import load

ROOT = Path(__file__).resolve().parent.parent
TIERS = [("paper", "slurm"), ("small", "kubernetes"), ("modern", "slurm")]


def jobs_of(text: str) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """(rule, wildcards, resources) of the jobs of a dry run."""
    listed = []
    for block in re.split(r"\n(?=rule \w+:)", text)[1:]:
        lines = dict(re.findall(r"^    (wildcards|resources): (.*)$", block, flags=re.M))
        values = [
            dict(part.split("=", 1) for part in lines.get(k, "").split(", ") if part)
            for k in ("wildcards", "resources")
        ]
        listed.append((re.match(r"rule (\w+)", block)[1], *values))
    return listed


@pytest.mark.slow
@pytest.mark.parametrize(("tier", "cluster"), [pair for pair in TIERS if (ROOT / f"config/{pair[0]}.yaml").exists()])
def test_every_job_that_loads_a_model_gets_what_plan_says(
    tier: str,
    cluster: str,
    fresh: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    profile = yaml.safe_load((ROOT / "profiles" / cluster / "config.yaml").read_text(encoding="utf-8"))
    assert profile["executor"] == cluster
    # The schedulers' own plugins are not needed to see it.
    asked = {key: profile[key] for key in ("default-resources", "set-resources") if key in profile}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asked))
    text = dry_run(fresh, "--profile", str(tmp_path), "--configfile", str(ROOT / f"config/{tier}.yaml"))
    requests, seen = Requests(load([ROOT / f"config/{tier}.yaml"])), set()
    for rule, wildcards, resources in jobs_of(text):
        stage = max((s for s in JOBS if f"{rule}_".startswith(f"{s}_")), key=len, default=None)
        if stage is None:
            assert "gpu" not in resources, rule
            continue
        wanted = requests.of(stage, **wildcards)
        assert {key: int(resources[key]) for key in ("mem_mb", "runtime")} == {
            k: v for k, v in wanted.items() if k != "gpu"
        }
        # What only brings a checkpoint, or counts words, has nothing for a GPU.
        brings = stage in ("base", "published") or wildcards.get("method") == "bm25"
        assert resources.get("gpu") == (None if brings else "1"), rule
        if cluster == "kubernetes":
            assert (resources["scale"], resources["gpu_manufacturer"]) == ("0", "nvidia")
        seen.add(rule)
    assert {"evaluate_teacher", "train", "train_sgpt", "pretext", "negatives", "teacher", "runtime", "base"} <= seen


def test_a_teacher_of_seven_billion_gets_room_and_time_for_its_weights_and_its_row() -> None:
    requests = Requests(load([ROOT / "config/paper.yaml"]))
    row = requests.of("evaluate", method="teacher", variant="base", seed="1")
    assert row["mem_mb"] > 14_000 and row["runtime"] > 10 * 60  # two bytes a weight; 85 candidates of 39,740 queries
    assert requests.of("data")["mem_mb"] > 30_000  # T2Ranking's and mMARCO's passages
    assert requests.of("comparison")["mem_mb"] > 500 * 35 * 20 * 22_812 / 1e6  # all trainings' predictions on T2
    corpus = requests.of("corpus")  # its student of 1.8 billion weights, four bytes each
    assert corpus["mem_mb"] > 7300 and corpus["gpu"] == 1 and "runtime" in corpus
    shared = load([ROOT / "config/paper.yaml"], {"training": {"processes": 4, "precision": "bfloat16"}})
    asked = Requests(shared).of("train", method="d2llm", variant="base", seed="1")
    alone = requests.of("train", method="d2llm", variant="base", seed="1")
    assert asked["gpu"] == 4 and asked["runtime"] < alone["runtime"] < 4 * asked["runtime"]


def test_a_tier_for_cpus_asks_for_no_gpu() -> None:
    requests = Requests(load([ROOT / "config/mini.yaml"]))
    assert requests.names("train") == ("mem_mb", "runtime")
    assert set(requests.of("train", method="d2llm", variant="base", seed="1")) == {"mem_mb", "runtime"}


@pytest.mark.slow
def test_asking_loads_nothing_heavy_and_reaches_no_network() -> None:
    code = (
        "import socket, sys; from pathlib import Path; from d2llm.config.load import load;"
        "from d2llm.cli.plan.requests import Requests; socket.socket.connect = None;"
        f"Requests(load([Path({str(ROOT / 'config/paper.yaml')!r})])).of('runtime');"
        "sys.exit(', '.join(m for m in ('torch', 'transformers', 'mteb', 'pandas') if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_was_assumed_of_a_model_is_looked_up_once_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load([ROOT / "config/paper.yaml"], {"results": str(tmp_path)})
    requests = Requests(config)
    before = requests.of("train", method="bge", variant="base", seed="1")
    monkeypatch.setattr("d2llm.cli.plan.sizes.current", lambda config, stage, model: model == "encoder")
    folder = tmp_path / "paper/models/encoder"
    folder.mkdir(parents=True)
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    (folder / "config.json").write_text(json.dumps(sizes | {"model_type": "bert", "vocab_size": 100}))
    after = requests.of("train", method="bge", variant="base", seed="1")
    assert after["runtime"] < before["runtime"]
