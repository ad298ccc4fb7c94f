"""The paper tier from end to end on a hub of this machine that fails: `python tools/campaigns/paper.py FOLDER [--tier
small]`.

Runs the whole workflow of config/paper.yaml (or config/small.yaml) with nothing overridden but sizes: all downloads,
models, trainings, sweeps and ablations, evaluations on all tasks, tables, figures, page and notebook. The hub serves
tiny checkpoints of the real architectures and small sets in the layouts of the real ones; each file answers 503 once
and is cut in half once. Then a second call finds nothing to do, with the hub gone.

Prints what was asked of the hub and what was made; ends with 1 where anything is missing. Takes a quarter to half an
hour on two cores, so pytest does not run it: tests/test_download.py holds the downloads, tests/test_small_tier.py one
method of the small tier.
"""

from __future__ import annotations

from clone import copy_repository  # isort: split

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import hub
import hub_sets
import pandas as pd
import yaml

from d2llm.config.catalogue import entries
from d2llm.config.load import load
from d2llm.run.paths import Paths

COUNT = 60  # rows of a set
# A teacher of random weights cannot be good; PMA's heads have to divide the width of the tiny student.
TINY = {
    "teacher": {"min_ap": 0.0, "shards": 2},
    "negatives": {"per_query": 2, "bm25_ranks": [1, 4], "dense_ranks": [1, 8], "shards": 2},
    "training": {
        "steps": 3,
        "batch_size": 8,
        "pack": 4,
        "texts_at_once": 16,
        "log_every": 1,
        "dev_every": 2,
        "dev_sample": 8,
    },
    "runtime": {"corpus_sizes": [20, 60], "repeats": 3, "seconds": 0.2, "teacher_pairs": 20},
}  # fmt: skip
TIERS = {
    "paper": {
        "methods": {
            "d2llm": {"pooling": {"heads": 4}, "interaction": {"hidden": 16}},
            "retromae": {"pretraining": {"epochs": 0.02, "batch_size": 8}},
            "llara": {"adaptation": {"epochs": 0.02, "batch_size": 8}},
        }
    },
    "small": {"teacher": {"steps": 3, "batch_pairs": 8}},
}


def snakemake(clone: Path, files: list[str], environment: dict[str, str]) -> str:
    """A whole call; ends the campaign with what it said where it fails."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", *files]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    (clone / "output.txt").write_text(output, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{output[-4000:]}\nsnakemake ended with {done.returncode}; {clone / 'output.txt'} has all of it")
    return output


def main(folder: Path, tier: str) -> None:
    """The campaign."""
    clone = folder / "repository"
    copy_repository(clone)
    hub_sets.write_sets(folder / "hub", COUNT)
    hub_sets.write_models(folder / "hub")
    for name, sizes in (("sizes", TINY), ("more", TIERS[tier])):  # laid over each other, key by key
        (clone / f"{name}.yaml").write_text(yaml.safe_dump(sizes))
    files = [f"config/{tier}.yaml", "sizes.yaml", "more.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home")}
    clock = time.monotonic()
    with hub.serving(folder / "hub", failures=1, cuts=1) as (address, asked):
        output = snakemake(clone, files, environment | {"HF_ENDPOINT": address})
    seconds = time.monotonic() - clock
    gets = Counter("resolve" if "/resolve/" in path else "api" for method, path in asked.elements() if method == "GET")
    os.chdir(clone)
    config = load(files)
    paths = Paths.of(config)
    scores = pd.read_csv(paths.scores_csv, keep_default_na=False)
    print(f"{tier}: {output.count('Finished jobid')} jobs in {seconds:.0f} s; of the hub {dict(gets)}")
    wanted = {name: set(config.methods) | set(config.rows()) for name in config.data.files.tasks}
    whole = scores[(scores["phenomenon"] == "all") & (scores["variant"] == "base")]
    missing = {name: sorted(rows - set(whole.loc[whole["task"] == name, "method"])) for name, rows in wanted.items()}
    missing = {name: rows for name, rows in missing.items() if rows}
    rendered = [paths.table(name, "md") for name in entries("table")]
    rendered += [paths.figure(name, "svg") for name in entries("figure")]
    unmade = [str(path) for path in (*rendered, paths.report) if not path.is_file()]
    print(f"tasks {len(wanted)}, rows {len(whole)}, variants {sorted(set(scores['variant']))}")
    again = snakemake(clone, files, environment | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    done = "Nothing to be done" in again
    print(f"missing scores {missing}; files not made {unmade}; a second call without the hub has nothing to do: {done}")
    sys.exit(bool(missing or unmade or not done))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--tier", choices=list(TIERS), default="paper")
    given = options.parse_args()
    main(given.folder.resolve(), given.tier)
