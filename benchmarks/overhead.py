"""What the training loop itself costs an update: all but tokenizer, the model's passes, objective and optimiser's step.

Runs `d2llm.training.train` as the workflow does, on what a finished run has (`make`), into a folder of its own, with a
clock around those. The tokenizer's own work on texts that are new to it is told apart. What is left is making batches,
the teacher's targets, logs, progress and checkpoints' bookkeeping.

`--sample` trains once more without clocks, while py-spy (`pip install py-spy`; it needs leave to read another process)
looks at the stack, and counts how often the innermost frame was Python's: the interpreter between operators, wherever
it is, in the loop, in transformers' modules or in torch's.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common import arguments, publish

from d2llm.cli.main import COLLECT
from d2llm.config.load import load
from d2llm.methods.registry import method
from d2llm.models import backbone
from d2llm.models.student import Student
from d2llm.run.checkpoint import Loop
from d2llm.run.paths import Paths
from d2llm.training import loop
from d2llm.training import train as training

# Of a finished run, by name below its folder.
MADE = ("data", "models", "pairs", "teacher")


class Clock:
    """Seconds inside calls, by name; of calls within each other the inner one's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.inner = [0.0]

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            self.inner.append(0.0)
            try:
                return call(*given, **named)
            finally:
                spent = time.perf_counter() - started
                self.seconds[name] += spent - self.inner.pop()
                self.inner[-1] += spent

        return timed


def measure(options: Any, name: str) -> dict[str, float]:
    """Milliseconds an update, by part."""
    clock, marks = Clock(), list[float]()
    chosen = method(name)
    Student.passes = clock.around("model, forward", PASSES)
    backbone.token_ids = clock.around("tokenizer", TOKENS)
    loop.step = clock.around("backward, clipping, AdamW", STEP)
    chosen.objective = clock.around("objective", chosen.objective)

    def after(self: Loop, *given: Any, **named: Any) -> None:
        AFTER(self, *given, **named)
        marks.append(time.perf_counter())
        if len(marks) == options.warm:
            clock.seconds.clear()

    train(options, name, after, options.updates)
    whole = marks[-1] - marks[options.warm - 1]
    count = len(marks) - options.warm
    parts = {key: 1000 * value / count for key, value in clock.seconds.items()}
    return parts | {"the loop itself": 1000 * whole / count - sum(parts.values()), "all": 1000 * whole / count}


def train(options: Any, name: str, after: Callable[..., None], counted: int) -> None:
    """One training on the finished run's data, with `after` in the place of the loop's own end of an update."""
    with tempfile.TemporaryDirectory() as folder:
        updates = {"steps": options.warm + counted, "steps_of": {}, "dev_every": 0}
        config = load([options.config], {"include": [], "results": folder, "training": updates})
        root = Paths.of(config).root
        root.mkdir(parents=True)
        for part in MADE:
            (root / part).symlink_to((options.results / part).resolve())
        Loop.after = after
        training.run(config, name, "base", 1)


def sample(options: Any, name: str) -> tuple[float, list[tuple[str, float]]]:
    """Share of samples in Python, and of the ten lines with most of them."""
    Student.passes, backbone.token_ids, loop.step = PASSES, TOKENS, STEP
    vars(method(name)).pop("objective", None)
    done, spy = [0], list[subprocess.Popen[bytes]]()
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "stacks"
        command = ["py-spy", "record", "--native", "--rate", "50", "--duration", "36000", "--format", "raw"]

        def after(self: Loop, *given: Any, **named: Any) -> None:
            AFTER(self, *given, **named)
            done[0] += 1
            if done[0] == options.warm:
                spy.append(
                    subprocess.Popen(
                        [*command, "--pid", str(os.getpid()), "--output", file],
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                )
            if done[0] == options.warm + options.sample:
                spy[0].send_signal(signal.SIGINT)
                spy[0].wait(60)

        train(options, name, after, options.sample)
        return interpreted(file.read_text(encoding="utf-8").splitlines())


def interpreted(stacks: Iterable[str]) -> tuple[float, list[tuple[str, float]]]:
    """Of py-spy's raw lines (`outer;…;inner count`): the share whose innermost frame is Python's, and where most are."""
    total, lines = 0, Counter[str]()
    for stack in stacks:
        frames, _, count = stack.rpartition(" ")
        total += int(count)
        names = frames.split(";")
        if re.search(r"\.py:\d+\)$|\((libpython|python)[^)]*\)$", names[-1]):
            lines[next((frame for frame in reversed(names) if re.search(r"\.py:\d+\)$", frame)), "?")] += int(count)
    return sum(lines.values()) / max(total, 1), [(line, count / total) for line, count in lines.most_common(10)]


PASSES, STEP, TOKENS, AFTER = Student.passes, loop.step, backbone.token_ids, Loop.after


def main() -> None:
    options = arguments(
        __doc__ or "",
        config={"default": "config/mini.yaml", "help": "a tier"},
        results={"type": Path, "default": Path("results/mini"), "help": "a finished run of it"},
        methods={"nargs": "+", "default": ["d2llm", "bge", "sgpt"]},
        warm={"type": int, "default": 50, "help": "first updates that are not counted"},
        updates={"type": int, "default": 300},
        sample={"type": int, "default": 0, "help": "updates in which py-spy looks how much of them is Python"},
    )
    # As the command line sets it.
    gc.set_threshold(*COLLECT)
    rows = []
    for name in options.methods:
        parts = measure(options, name)
        rows += [
            {"method": name, "part": part, "ms an update": value, "share": value / parts["all"]}
            for part, value in parts.items()
        ]
        if options.sample:
            share, lines = sample(options, name)
            rows.append({"method": name, "part": "in Python, of samples", "share": share})
            print(f"{name}: most of Python in", *(f"  {part:.2%} {line}" for line, part in lines), sep="\n")
    publish("overhead", rows, {"updates": options.updates}, options.json)


if __name__ == "__main__":
    main()
