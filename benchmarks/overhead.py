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
from d2llm.resume import Loop

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
    training.step = clock.around("backward, clipping, AdamW", STEP)
    chosen.objective = clock.around("objective", chosen.objective)

    def after(self: Loop, *given: Any, **named: Any) -> None:
        AFTER(self, *given, **named)
        marks.append(time.perf_counter())
        if len(marks) == options.warm:
            clock.seconds.clear()

    with tempfile.TemporaryDirectory() as folder:
        updates = {"steps": options.warm + options.updates, "steps_of": {}, "dev_every": 0}
        config = load([options.config], {"include": [], "results": folder, "training": updates})
        root = Paths.of(config).root
        root.mkdir(parents=True)
        for part in MADE:
            (root / part).symlink_to((options.results / part).resolve())
        Loop.after = after
        training.run(config, name, "base", 1)
    whole = marks[-1] - marks[options.warm - 1]
    count = len(marks) - options.warm
    parts = {key: 1000 * value / count for key, value in clock.seconds.items()}
    return parts | {"the loop itself": 1000 * whole / count - sum(parts.values()), "all": 1000 * whole / count}


PASSES, STEP, TOKENS, AFTER = Student.passes, training.step, backbone.token_ids, Loop.after


def main() -> None:
    options = arguments(
        __doc__ or "",
        config={"default": "config/mini.yaml", "help": "a tier"},
        results={"type": Path, "default": Path("results/mini"), "help": "a finished run of it"},
        methods={"nargs": "+", "default": ["d2llm", "bge", "sgpt"]},
        warm={"type": int, "default": 50, "help": "first updates that are not counted"},
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
