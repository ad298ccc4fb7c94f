"""What a cluster is asked for: memory of the host, minutes, GPUs of one job, as `d2llm plan` reckons them.

Read by the workflow before any job, so nothing here loads torch or asks a hub. A profile's `set-resources` goes first.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.cli.plan.amounts import count_texts
from d2llm.cli.plan.devices import DEVICES
from d2llm.cli.plan.jobs import JOBS, Given, computes, cost
from d2llm.cli.plan.sizes import all_sizes, row_sizes
from d2llm.config.data import HubTable
from d2llm.run.paths import PROVENANCE, Paths
from d2llm.run.stages import STAGES

if TYPE_CHECKING:
    from d2llm.config.schema import Config

MEGA = 1e6
# MB of a process that has loaded the libraries and, on a GPU, its driver's.
PROCESS, PROCESS_GPU = 2000, 6000
# An estimate may be wrong by so much; minutes beside it that loading and saving take.
ROOM, BESIDE = 3.0, 30
# Queries of a training set that says no sample.
USUAL_QUERIES = 50_000
# MB for reading a table of the hub that is not here yet; and times its bytes on disk for one that is.
UNKNOWN_TABLE, READ = 12_000, 8
READERS, COMPARERS = ("texts", "data"), ("comparison", "ablations")
# Bytes of a prediction in memory.
PREDICTION = 500


class Requests:
    """The requests of a config's jobs. What was assumed is looked up again as soon as something more of it is there."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._known: tuple[bool, ...] | None = None
        self._given: Given | None = None
        self._asked: dict[tuple[Any, ...], dict[str, int]] = {}

    @property
    def given(self) -> Given:
        """What the plan knows without a network."""
        paths = Paths.of(self.config)
        records = [paths.base(name) for name in self.config.models.names()]
        records += map(paths.published, self.config.published())
        known = tuple(place.exists() for place in [*records, paths.data / PROVENANCE, paths.pretraining])
        if self._given is None or known != self._known:
            amount = count_texts(self.config, USUAL_QUERIES, whole=False)
            models, _ = all_sizes(self.config, amount.examples, online=False)
            rows, _ = row_sizes(self.config, online=False)
            device = DEVICES[self.config.device]
            device = device if self.config.gpu.tf32 else device.exact()
            self._given, self._known = Given(self.config, models, rows, amount, device), known
            self._asked.clear()
        return self._given

    def names(self, stage: str) -> tuple[str, ...]:
        """What is asked for jobs of a stage."""
        if stage not in JOBS:
            return ("mem_mb",)
        return ("mem_mb", "runtime", *(["gpu"] if self.config.device != "cpu" else []))

    def of(self, stage: str, **arguments: Any) -> dict[str, int]:
        """{"mem_mb", "runtime" (minutes), "gpu"} of a job; what is not asked for is not there."""
        if stage not in JOBS:
            held = _read(self.config) if stage in READERS else self._compared() if stage in COMPARERS else 0
            return {"mem_mb": max(STAGES[stage].memory_mb, held)}
        given, key = self.given, (stage, *sorted(arguments.items()))
        if key not in self._asked:
            self._asked[key] = request(given, stage, **arguments)
        return self._asked[key]

    def _compared(self) -> int:
        """MB for the predictions of all trainings on the largest set."""
        config, sets = self.config, self.given.amount.split(self.config.evaluation.split)
        kept = [part.queries.count * (config.evaluation.keep if part.type == "retrieval" else 1) for part in sets]
        return _up(PROCESS + PREDICTION * len(config.runs()) * max(kept, default=0) / MEGA, 1000)


def request(given: Given, stage: str, **arguments: Any) -> dict[str, int]:
    """What is asked for a job that loads a model."""
    config, job = given.config, cost(given, stage, **arguments)
    gpu = given.gpu and computes(given, stage, **arguments)
    held = job.host + (0 if gpu else job.memory)
    computing = job.memory and not given.gpu  # the libraries are reckoned in then
    memory = max(STAGES[stage].memory_mb, (PROCESS_GPU if gpu else 0 if computing else PROCESS) + 1.2 * held / MEGA)
    cores = 1 if given.gpu else config.threads
    asked = {"mem_mb": _up(memory, 1000), "runtime": _up(BESIDE + ROOM * 60 * job.hours / cores, 10)}
    return asked | ({"gpu": config.training.processes if stage == "train" else 1} if gpu else {})


def _up(value: float, step: int) -> int:
    """The next multiple of a step."""
    return step * math.ceil(value / step)


def _read(config: Config) -> int:
    """The training sets and evaluation sets of files, which are read whole: the largest, and what is kept of all."""
    if config.data.source != "files":
        return 0
    paths, files = Paths.of(config), config.data.files
    places = [(Path(path), False) for path in set(files.paths().values())]
    places += [(paths.download(name), isinstance(table, HubTable)) for name, table in files.downloads().items()]
    sizes = [_bytes(place) if place.exists() else UNKNOWN_TABLE * MEGA / READ * table for place, table in places]
    return _up(PROCESS + READ * sum(sorted(sizes)[-4:]) / MEGA, 1000)


def _bytes(place: Path) -> float:
    """Of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file())
