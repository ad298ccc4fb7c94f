"""Checkpoints of work under way: a job that was killed goes on from its last one, and ends with the bits of one that
was not. A training keeps its state now and then (`Loop`), other work what it has computed, part by part
(`Resume.kept`).

A checkpoint is one safetensors file with all that the rest of a loop depends on. It tells the job it belongs to
(settings, code, inputs, versions), and is ignored by any other. The command line gives every job its own, and removes
them in the end; what a loop computes is none of this module's business. Buffers are not kept, as no model here changes
one in training. A signal that asks the job to end (`d2llm.run.signals`) is answered between two updates: a checkpoint,
and one line.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2llm.run.artifacts import atomic, remove, write_text
from d2llm.run.errors import ArtifactError, Interrupted, first_line
from d2llm.run.logs import get_logger

if TYPE_CHECKING:
    import numpy
    import torch

    from d2llm.run.signals import Signals

# Bump when what a checkpoint holds changes.
LAYOUT = 1


class Resume:
    """Those of one job, a file for each loop it trains in; without a folder none are kept.

    job: what a checkpoint must agree with to be used, as plain values; only the first of several processes knows it.
    minutes: between two checkpoints.
    """

    def __init__(
        self, folder: Path | None = None, job: Mapping[str, Any] | None = None, minutes: float | None = None
    ) -> None:
        self.folder = folder if minutes else None
        # Set by the command line: they listen while a loop runs that keeps checkpoints. Without, signals act as ever.
        self.signals: Signals | None = None
        self.job = json.loads(json.dumps(job))
        self.interval = 60.0 * (minutes or 0.0)
        self.last = time.monotonic()
        # Seconds that processes before this one spent on what it goes on with, and the updates it goes on after, by
        # loop.
        self.before, self.resumed = 0.0, dict[str, int]()
        self._started, self._loops = self.last, 0

    def loop(
        self,
        name: str,
        steps: int,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        log_file: Path | None,
        generators: Sequence[torch.Generator | numpy.random.Generator] = (),
        scaler: Any = None,
    ) -> Loop:
        """The next loop of the job, all its parts where a checkpoint left them, if there is one.

        Called when everything is as it should be at the start: weights, optimiser, generators. `log_file` gets the
        lines back it had.
        """
        self._loops += 1
        file = None
        if self.folder is not None:
            file = self.folder / f"{self._loops}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.safetensors"
        return Loop(self, file, name, steps, optimizer, schedule, log_file, generators, scaler)

    def kept(self, key: str, compute: Callable[[], dict[str, numpy.ndarray]]) -> dict[str, numpy.ndarray]:
        """Arrays by name: what `compute` gives, or gave this very job under this key, of letters and digits, before it
        was killed.
        """
        if self.folder is None:
            return compute()
        file = self.folder / f"part-{key}.safetensors"
        if file.exists():
            try:
                return _read_part(file, self.job)
            except ArtifactError as error:
                get_logger(__name__).warning("%s; computing it again", error)
        arrays = compute()
        try:
            _write_part(file, self.job, arrays)
        except Exception as error:  # noqa: BLE001 - a full disk is told in many ways; what was computed is sound
            get_logger(__name__).warning("%s could not be kept (%s); going on without", file, first_line(error))
        return arrays

    @property
    def spent(self) -> float:
        """Seconds spent on the job, by processes before this one too."""
        return self.before + time.monotonic() - self._started

    def remove(self) -> None:
        """The job is done: none will be needed."""
        if self.folder is not None:
            remove(self.folder)


class Loop:
    """One training loop. `done` updates are behind it; `notes` is what it gave to `after` when it last kept a
    checkpoint.
    """

    def __init__(
        self,
        owner: Resume,
        file: Path | None,
        name: str,
        steps: int,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        log_file: Path | None,
        generators: Sequence[torch.Generator | numpy.random.Generator],
        scaler: Any,
    ) -> None:
        self.owner, self.file, self.name, self.steps = owner, file, name, steps
        self.optimizer, self.schedule, self.log_file = optimizer, schedule, log_file
        self.generators, self.scaler = generators, scaler
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.done, self.notes, self.kept = 0, dict[str, Any](), False
        if file is not None:
            self._resume(file)
            if owner.signals is not None and self.done < steps:
                owner.signals.listen()

    def after(self, update: int, **notes: Any) -> None:
        """Call at the end of every update: keeps a checkpoint when it is time, and of the last update if there was one
        before.

        `notes` are plain values the rest of the loop needs besides. All processes that share a training call it. Raises
        Interrupted, after a checkpoint, where a signal has come to any of them.
        """
        if self.file is None:
            return
        signals = self.owner.signals
        if signals is not None and update == self.steps:
            signals.restore()  # what follows the loop keeps nothing, and need not be waited for
        number = 0 if signals is None else signals.told
        last = update == self.steps and self.kept
        due = last or time.monotonic() - self.owner.last >= self.owner.interval
        word = _highest(
            number or int(due), self._device
        )  # 0: go on; 1: a checkpoint is due; from 2 on: that signal came
        if not word:
            return
        states = _gathered(json.dumps(_random_state()), self._device)
        self.kept = True
        error = self._written(self.file, update, notes, states) if _rank() == 0 else None
        self.owner.last = time.monotonic()
        if word > 1:
            _highest(0, self._device)  # none ends before the first one has written
            name, then = signal.Signals(word).name, "the next run goes on from there"
            if error:
                then = f"no checkpoint could be kept ({error}), so the next run goes on from the last one, if any"
            raise Interrupted(f"{self.name}: stopped by {name} after update {update} of {self.steps}; {then}")
        if error:
            get_logger(__name__).warning(
                "%s, update %d: no checkpoint could be kept (%s); going on without", self.name, update, error
            )

    def _written(self, file: Path, update: int, notes: Mapping[str, Any], states: list[str]) -> str | None:
        """Keep a checkpoint; what prevented it, if something did."""
        try:
            self._write(file, update, notes, states)
        except Exception as error:  # noqa: BLE001 - a full disk is told in many ways; the training itself is sound
            return f"{type(error).__name__}: {first_line(error)}"
        return None

    @property
    def _device(self) -> torch.device:
        return self.parameters[0].device

    # ------------------------------------------------------------------------------------------------------- writing
    def _write(self, file: Path, update: int, notes: Mapping[str, Any], states: list[str]) -> None:
        from safetensors.torch import save_file

        state = self.optimizer.state_dict()
        tensors: dict[str, torch.Tensor] = {f"parameter.{i}": p for i, p in enumerate(self.parameters)}
        numbers: dict[str, dict[str, Any]] = {}
        for i, values in state["state"].items():
            for key, value in values.items():
                if hasattr(value, "detach"):
                    tensors[f"optimizer.{i}.{key}"] = value
                else:
                    numbers.setdefault(str(i), {})[key] = value
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        text = json.dumps(
            {
                "layout": LAYOUT,
                "job": self.owner.job,
                "loop": self.name,
                "update": update,
                "seconds": self.owner.spent,
                "notes": notes,
                "groups": state["param_groups"],
                "numbers": numbers,
                "schedule": self.schedule.state_dict(),
                "scaler": None if self.scaler is None else self.scaler.state_dict(),
                "random": states,
                "generators": [_state(generator) for generator in self.generators],
                "log": self.log_file.read_text(encoding="utf-8")
                if self.log_file is not None and self.log_file.exists()
                else "",
            }
        )
        with atomic(file) as temporary:
            save_file(tensors, str(temporary), metadata={"state": text, "digest": _digest(text, tensors)})

    # ------------------------------------------------------------------------------------------------------- reading
    def _resume(self, file: Path) -> None:
        """All processes go on from the same checkpoint, or none does."""
        state: dict[str, Any] | None = None
        tensors: dict[str, torch.Tensor] = {}
        update = -1
        if _rank() == 0 and file.exists():
            try:
                state, tensors = self._read()
                update = state["update"]
            except ArtifactError as error:
                get_logger(__name__).warning("%s; starting from the beginning", error)
        update = _agreed(update, self._device)
        if update < 0:
            return
        if state is None:
            state, tensors = self._read(mine=False)
        self._apply(state, tensors)
        self.done, self.notes, self.kept = update, state["notes"], True
        self.owner.before, self.owner.resumed[self.name] = state["seconds"], update
        self.owner.last = time.monotonic()
        if _rank() == 0:
            get_logger(__name__).info("%s: going on after update %d of %d", self.name, update, self.steps)

    def _read(self, mine: bool = True) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """State and tensors. Raises ArtifactError when the file is damaged or, where it has to be `mine`, of another
        job.
        """
        if self.file is None:
            raise ArtifactError("no checkpoints are kept")
        state, tensors = _opened(self.file)
        shapes = [list(p.shape) for p in self.parameters]
        held = [list(tensors[f"parameter.{i}"].shape) for i in range(len(shapes)) if f"parameter.{i}" in tensors]
        if mine and (state["layout"], state["loop"]) != (LAYOUT, self.name):
            raise ArtifactError(f"{self.file}: a checkpoint of another version of the suite")
        if mine and state["job"] != self.owner.job:
            theirs, ours = state["job"] or {}, self.owner.job or {}
            other = [key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key)]
            raise ArtifactError(f"{self.file}: a checkpoint of other {', '.join(other)}")
        devices = len(_random_state()["cuda"])
        alike = all(len(json.loads(text)["cuda"]) == devices for text in state["random"])
        if shapes != held or len(state["random"]) != _world() or not alike:
            raise ArtifactError(f"{self.file}: a checkpoint of another model, or of other numbers of processes or GPUs")
        return state, tensors

    def _apply(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        import torch

        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"parameter.{i}"])
        held: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in state["numbers"].items()}
        for name, value in tensors.items():
            kind, number, *key = name.split(".", 2)
            if kind == "optimizer":
                held.setdefault(int(number), {})[key[0]] = value
        self.optimizer.load_state_dict({"state": held, "param_groups": state["groups"]})
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        for generator, known in zip(self.generators, state["generators"], strict=True):
            _set_state(generator, known)
        if self.log_file is not None:
            self.log_file.unlink(missing_ok=True)
            if state["log"]:
                write_text(self.log_file, state["log"])
        _set_random_state(json.loads(state["random"][_rank()]))


# --------------------------------------------------------------------------------------------------------------- parts
def _write_part(file: Path, job: Any, arrays: Mapping[str, numpy.ndarray]) -> None:
    import torch
    from safetensors.torch import save_file

    text = json.dumps({"layout": LAYOUT, "job": job})
    tensors = {name: torch.from_numpy(array).contiguous() for name, array in arrays.items()}
    with atomic(file) as temporary:
        save_file(tensors, str(temporary), metadata={"state": text, "digest": _digest(text, tensors)})


def _read_part(file: Path, job: Any) -> dict[str, numpy.ndarray]:
    """Raises ArtifactError for a damaged file, and for one of another job."""
    _, tensors = _opened(file, {"layout": LAYOUT, "job": job})
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _opened(file: Path, expected: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """State and tensors of a whole file. Raises ArtifactError for any other, and for a state that is not the
    expected one.
    """
    from safetensors import safe_open

    try:
        with safe_open(str(file), "pt") as opened:
            about = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it has no iterator
        state = json.loads(about["state"])
        whole = about["digest"] == _digest(about["state"], tensors)
    except Exception as error:  # noqa: BLE001 - any way a file can be broken ends alike
        raise ArtifactError(f"{file}: a damaged checkpoint ({type(error).__name__}: {error})") from error
    if not whole:
        raise ArtifactError(f"{file}: a damaged checkpoint (not the bytes that were written)")
    if expected is not None and state != expected:
        raise ArtifactError(f"{file}: a checkpoint of another job")
    return state, tensors


# ---------------------------------------------------------------------------------------------------------- randomness
def _state(generator: torch.Generator | numpy.random.Generator) -> Any:
    """Where a generator stands, as plain values."""
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    return generator.get_state().numpy().tobytes().hex()


def _set_state(generator: torch.Generator | numpy.random.Generator, state: Any) -> None:
    if hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    else:
        generator.set_state(_bytes(state))


def _bytes(text: str) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _random_state() -> dict[str, Any]:
    """Where the generators everything may draw from stand: Python's, numpy's, torch's."""
    import numpy

    from d2llm.run.random_state import random_state

    state: Any = numpy.random.get_state()  # noqa: NPY002 - libraries draw from this global state
    kind, words, *rest = state
    own, devices = random_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, words.tolist(), *rest],
        "torch": own.numpy().tobytes().hex(),
        "cuda": [device.cpu().numpy().tobytes().hex() for device in devices],
    }


def _set_random_state(state: Mapping[str, Any]) -> None:
    import numpy

    from d2llm.run.random_state import set_random_state

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, words, *rest = state["numpy"]
    numpy.random.set_state((kind, numpy.array(words, dtype=numpy.uint32), *rest))  # noqa: NPY002
    set_random_state((_bytes(state["torch"]), [_bytes(device) for device in state["cuda"]]))


# ---------------------------------------------------------------------------------------------------- several processes
def _shared() -> bool:
    """Whether several processes share this training."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def _rank() -> int:
    from torch import distributed

    return distributed.get_rank() if _shared() else 0


def _world() -> int:
    from torch import distributed

    return distributed.get_world_size() if _shared() else 1


def _agreed(value: int, device: torch.device) -> int:
    """The first process's value, in all of them."""
    if not _shared():
        return value
    import torch

    shared = torch.tensor(value, device=device)
    torch.distributed.broadcast(shared, 0)
    return int(shared)


def _highest(value: int, device: torch.device) -> int:
    """The highest of all processes' values, in all of them."""
    if not _shared():
        return value
    import torch

    shared = torch.tensor(value, device=device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return int(shared)


def _gathered(text: str, device: torch.device) -> list[str]:
    """Every process's text, in all of them."""
    if not _shared():
        return [text]
    import torch

    own = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(device)
    longest = torch.tensor(len(own), device=device)
    torch.distributed.all_reduce(longest, op=torch.distributed.ReduceOp.MAX)
    padded = torch.full((int(longest),), ord(" "), dtype=torch.uint8, device=device)
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(_world())]
    torch.distributed.all_gather(parts, padded)
    return [part.cpu().numpy().tobytes().decode() for part in parts]


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 of all that a checkpoint holds."""
    import torch

    digest = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
