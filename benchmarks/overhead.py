"""What the training loop itself costs an update: everything but the tokenizer, the model's passes, the objective and the optimiser's step.

Runs `d2llm.training` as the workflow does, on what a finished run has (`make`), into a folder of its own, with a clock around those. The tokenizer's own
work on texts that are new to it is told apart. What is left is making batches, the teacher's targets, logs, progress and checkpoints' bookkeeping. Python between the operators inside them is not told
apart here: sample a training by `py-spy record --native` for that.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import arguments, publish

from d2llm import training
from d2llm.config import load
from d2llm.methods import method
from d2llm.models import backbone
from d2llm.models.student import Student
from d2llm.paths import Paths

# Of a finished run, by name below its folder.
MADE = ("data", "models", "pairs", "teacher")
# The first updates meet texts that are new to the tokenizer; they are not counted.
WARM = 50


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
    training.step = clock.around("backward, clipping, AdamW", STEP)
    chosen.__dict__["objective"] = clock.around("objective", type(chosen).objective.__get__(chosen))

    def after(*_: Any, **__: Any) -> None:
        marks.append(time.perf_counter())
        if len(marks) == WARM:
            clock.seconds.clear()

    with tempfile.TemporaryDirectory() as folder:
        updates = {"steps": WARM + options.updates, "steps_of": {}, "dev_every": 0}
        config = load([options.config], {"include": [], "results": folder, "training": updates})
        root = Paths.of(config).root
        root.mkdir(parents=True)
        for part in MADE:
            (root / part).symlink_to((options.results / part).resolve())
        real = training.Resume.loop

        def loop(self: Any, *given: Any, **named: Any) -> Any:
            made = real(self, *given, **named)
            keep = made.after
            made.after = lambda *a, **k: (keep(*a, **k), after())[0]
            return made

        training.Resume.loop = loop
        try:
            training.run(config, name, "base", 1)
        finally:
            training.Resume.loop = real
            del chosen.__dict__["objective"]
    whole = marks[-1] - marks[WARM - 1]
    count = len(marks) - WARM
    parts = {key: 1000 * value / count for key, value in clock.seconds.items()}
    return parts | {"the loop itself": 1000 * whole / count - sum(parts.values()), "all": 1000 * whole / count}


PASSES, STEP, TOKENS = Student.passes, training.step, backbone.token_ids


def main() -> None:
    options = arguments(
        __doc__ or "",
        config={"default": "config/mini.yaml", "help": "a tier"},
        results={"type": Path, "default": Path("results/mini"), "help": "a finished run of it"},
        methods={"nargs": "+", "default": ["d2llm", "bge", "sgpt"]},
        updates={"type": int, "default": 300},
    )
    rows = []
    for name in options.methods:
        found = measure(options, name)
        rows += [
            {"method": name, "part": part, "ms an update": value, "share": value / found["all"]}
            for part, value in found.items()
        ]
    publish("overhead", rows, {"updates": options.updates}, options.json)


if __name__ == "__main__":
    main()
