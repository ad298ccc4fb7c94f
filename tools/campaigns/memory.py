"""What memory a long training and the evaluation of a large corpus hold: `python tools/campaigns/memory.py FOLDER`
prints them as tables.

Miniature models of the pipeline's own stages; every measurement in a process of its own. tests/test_memory.py makes a
short one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import clone  # noqa: F401  # isort: split
from task_folders import retrieval_task
from tiny_run import changed, tiny_config

from d2llm.config.schema import Config
from d2llm.run.logs import memory_mb

UPDATES = (100, 500, 1000, 2000, 3000, 4000)
PASSAGES = (20_000, 120_000)
QUERIES = 200


def prepared(folder: Path) -> Config:
    """A tiny run as far as a training of D2LLM needs it."""
    from d2llm.data import build
    from d2llm.data.negatives import mine as negatives
    from d2llm.teacher import score as teacher_scores
    from d2llm.teacher import tune as teacher_tuning
    from d2llm.training import pretraining

    config = tiny_config(folder)
    build.run_texts(config)
    build.run(config)
    for model in ("decoder", "encoder", "teacher"):
        pretraining.run(config, model)
    negatives.run(config)
    teacher_tuning.run(config, "teacher")
    teacher_scores.run(config, "teacher", 0, 1)
    return config


def training(folder: Path, at: Sequence[int]) -> dict[int, float]:
    """MB held after so many updates of one training of D2LLM, with a checkpoint every few seconds and dev samples in
    between.
    """
    from d2llm.run.checkpoint import Resume
    from d2llm.training import loop, train

    settings: dict[str, Any] = {"steps": max(at), "dev_every": max(1, max(at) // 8), "checkpoint_minutes": 0.05}
    config = changed(tiny_config(folder), training=settings)
    held: dict[int, float] = {}
    plain = loop.progress

    class Watched:
        """The loop's progress, which is asked for memory on its way."""

        def __init__(self, *given: Any) -> None:
            self.bar = plain(*given)
            self.show = self.bar.show

        def __iter__(self) -> Iterator[Any]:
            for number in self.bar:  # the update that comes
                if number - 1 in at:
                    held[number - 1] = memory_mb()
                yield number
            held[max(at)] = memory_mb()

    loop.progress = Watched  # type: ignore[assignment,misc]
    train.run(config, "d2llm", "base", 1, Resume(folder / "state", {}, config.training.checkpoint_minutes))
    return held


def evaluation(folder: Path, passages: int) -> dict[str, float]:
    """MB before and at most while the trained student of `training` is evaluated on a corpus of so many passages, by
    the stage's own code.
    """
    from d2llm.evaluation import evaluate as run
    from d2llm.evaluation import tasks

    config = tiny_config(folder)
    task = tasks.read(retrieval_task(folder / f"corpus{passages}", queries=QUERIES, passages=passages), "test")
    scorer = run.load(config, "d2llm", "base", 1)
    small = tasks.read(retrieval_task(folder / "small", passages=50), "test")
    run.evaluate(scorer, [small], "small", config.evaluation)  # loads mteb
    before, most, over = memory_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            most[0] = max(most[0], memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run.evaluate(scorer, [task], "large", config.evaluation)
    over.set()
    watcher.join()
    return {"before": before, "most": max(most[0], memory_mb())}


def apart(folder: Path, what: str, *numbers: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, str(folder), what, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(folder: Path) -> None:
    """Both tables."""
    prepared(folder)
    held = apart(folder, "training", *UPDATES)
    print("| updates | " + " | ".join(held) + " |\n|---|" + "---:|" * len(held))
    print("| MB | " + " | ".join(f"{value:.0f}" for value in held.values()) + " |\n")
    corpora = [apart(folder, "evaluation", count) for count in PASSAGES]
    print("| passages | " + " | ".join(f"{count:,}" for count in PASSAGES) + " |\n|---|" + "---:|" * len(PASSAGES))
    for key in corpora[0]:
        print(f"| MB {key} | " + " | ".join(f"{corpus[key]:.0f}" for corpus in corpora) + " |")


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    if len(sys.argv) == 2:
        main(place)
    else:
        numbers = [int(word) for word in sys.argv[3:]]
        print(json.dumps(training(place, numbers) if sys.argv[2] == "training" else evaluation(place, numbers[0])))
