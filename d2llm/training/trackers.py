"""The log of a training: `log.jsonl`, and the same numbers in TensorBoard, Weights & Biases or Trackio where
`training.trackers` names them.

accelerate's trackers do the sending. They get what the file gets, decide nothing and are no part of a result: what
TensorBoard reads lies below `trackers/` of the results folder, a run for every loop. A training that goes on from a
checkpoint goes on in the run it had.
"""

from __future__ import annotations

import importlib.util
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from d2llm.run.artifacts import append_jsonl, read_json, remove, write_json
from d2llm.run.checkpoint import Resume
from d2llm.run.errors import ConfigError, first_line
from d2llm.run.logs import get_logger
from d2llm.run.paths import Paths
from d2llm.run.schemas import DEV, FINE_TUNING

PROJECT = "d2llm"


class Log:
    """Called with a record, writes it to `file` and to the trackers; without a file (a process that is not the first)
    nowhere.

    The file begins empty. `place`: the folder of this job's trackers, whose last parts name the run.
    """

    def __init__(
        self, file: Path | None, resume: Resume | None = None, trackers: Sequence[str] = (), place: Path | None = None
    ) -> None:
        check(trackers)
        self.file, self.place = file, place
        self.kinds = tuple(trackers) if place is not None else ()
        self.resumed: Mapping[str, int] = {} if resume is None else resume.resumed
        self.loop: str | None = None
        self.open: list[Any] = []
        if file is not None:
            file.unlink(missing_ok=True)

    @classmethod
    def of(cls, file: Path | None, resume: Resume | None, trackers: Sequence[str], paths: Paths, folder: Path) -> Log:
        """The log of the job that makes `folder` of the results."""
        return cls(file, resume, trackers, paths.tracked(folder))

    def __call__(self, record: dict[str, Any]) -> None:
        if self.file is None:
            return
        append_jsonl(self.file, record)
        if self.kinds:
            self._track(**record)

    def _track(self, stage: str, step: int, **values: Any) -> None:
        loop = FINE_TUNING if stage == DEV else stage
        if loop != self.loop:
            self.close()
            self.loop = loop
            for kind in self.kinds:
                tracker = self._tracker(kind, loop, step)
                if reached(kind, tracker.start):
                    self.open.append(tracker)
        numbers = {f"{stage}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        self.open = [one for one in self.open if reached(one.name, partial(one.log, numbers, step=step))]

    def _tracker(self, kind: str, loop: str, step: int) -> Any:
        """A tracker of accelerate for one loop: the run it had where the loop goes on, otherwise a new one."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # which they log by, and not every training has made
        assert self.place is not None
        name = re.sub(r"[^a-z0-9]+", "-", loop.lower()).strip("-")
        folder, known = self.place / name, self.place / f"{name}.json"
        if kind == self.kinds[0] and (loop not in self.resumed or not known.exists()):
            remove(folder)
            write_json(known, {"id": uuid.uuid4().hex})
        identity = read_json(known)["id"]
        if kind == "tensorboard":
            # What an earlier process told of updates that are made again is left out by whoever reads.
            tracker = LOGGER_TYPE_TO_CLASS[kind](name, self.place, purge_step=step if loop in self.resumed else None)
        else:
            title = "/".join((*self.place.parts[-4:], name, identity[:6]))
            more = {"id": identity, "dir": str(self.place)} if kind == "wandb" else {}
            tracker = LOGGER_TYPE_TO_CLASS[kind](PROJECT, name=title, resume="allow", **more)
        return tracker

    def close(self) -> None:
        """The loop is done."""
        for tracker in self.open:
            reached(tracker.name, tracker.finish)
        self.open = []


def reached(name: str, call: Callable[[], Any]) -> bool:
    """Call a tracker; whether it went well. What a service fails in is no fault of the training, and ends none."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - services raise many kinds
        get_logger(__name__).warning("%s: no longer told (%s)", name, first_line(error))
        return False
    return True


def check(trackers: Sequence[str]) -> None:
    """Raise ConfigError for a tracker whose package is not installed."""
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"training.trackers: {name} is not installed; `python -m pip install {name}`, or leave it out"
            )
