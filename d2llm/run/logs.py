"""Log lines and progress: a file a job, and bars where a person is watching.

On a terminal progress is a tqdm bar; elsewhere, and in a job's own file, it is a log line every ten seconds of the
first minute and every minute from then on (or after each item, where one takes longer): a day's work is a quarter of a
megabyte.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
EVERY = (10.0, 60.0)  # seconds between progress lines: in the first minute, later


def get_logger(name: str) -> logging.Logger:
    """A logger below `d2llm`, whose handlers the command line sets."""
    return logging.getLogger(name if name.split(".")[0] == "d2llm" else f"d2llm.{name}")


def configure(log: str | Path | None) -> None:
    """Send log lines to a file, and to stderr what a person there would want.

    With a file, stderr gets warnings, and only on a terminal; without one, everything.
    """
    others = int(os.environ.get("RANK", "0")) > 0  # of the processes that share a training, the first one tells of it
    root = logging.getLogger()
    root.setLevel(logging.WARNING)  # of other libraries, what is wrong
    logging.getLogger("d2llm").setLevel(logging.INFO)
    logging.captureWarnings(True)
    formatter = logging.Formatter(LINE, datefmt="%Y-%m-%d %H:%M:%S")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = []
    if log is not None:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        if not others:
            Path(log).write_text("", encoding="utf-8")
        # Appending: a job whose workflow was killed may still be writing to the same file.
        file = logging.FileHandler(log, mode="a", encoding="utf-8")
        file.setLevel(logging.WARNING if others else logging.INFO)
        handlers.append(file)
    if log is None or terminal():
        stderr = logging.StreamHandler()
        stderr.setLevel(logging.INFO if log is None else logging.WARNING)
        handlers.append(stderr)
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)


def escape() -> None:
    """Let stdout and stderr write what their encoding lacks as an escape (\\u8c01), where Python would end with
    UnicodeEncodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def utf_8() -> None:
    """Let stdout be UTF-8, whatever the locale: for what programs read, where an escape would be another id, or another
    key.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def terminal() -> bool:
    """Whether a person sees stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


class Progress(Generic[T]):
    """Counts work done; made by `progress`. Iterate over it, or call `update` inside a `with` block."""

    def __init__(self, items: Iterable[T] | None, total: int | None, description: str, before: int = 0) -> None:
        self.items, self.total, self.description = items, total, description
        self.done = self.before = before
        self.numbers: dict[str, float] = {}
        self.started = self.spoken = time.monotonic()
        self.logger = get_logger("progress")
        self.filed = any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger().handlers)
        self.bar: Any = None
        if terminal():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, initial=before, desc=description, leave=False, dynamic_ncols=True, file=sys.stderr
            )

    def __iter__(self) -> Iterator[T]:
        if self.items is None:
            raise TypeError("this progress counts towards a total; it has nothing to iterate over")
        with self:
            for item in self.items:
                yield item
                self.update()

    def __enter__(self) -> "Progress[T]":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, **numbers: float) -> None:
        """Numbers (a loss, a rate) to show beside the count from now on."""
        self.numbers = numbers

    def update(self, count: int = 1) -> None:
        """Count `count` more."""
        self.done += count
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
        if self.bar is not None:
            if shown:
                self.bar.set_postfix_str(shown, refresh=False)
            self.bar.update(count)
            if not self.filed:
                return  # the lines would run through the bar
        now = time.monotonic()
        if now - self.spoken >= EVERY[now - self.started > 60.0]:
            self.spoken = now
            self.logger.info(self.line(now - self.started, shown))

    def line(self, seconds: float, shown: str) -> str:
        """How far it is after so many seconds: items done, items a second, seconds left, memory held."""
        goal = f" of {self.total}" if self.total else ""
        parts = [f"{self.description}: {self.done}{goal} in {seconds:.0f} s"]
        rate = (self.done - self.before) / max(seconds, 1e-9)
        parts.append(f"{rate:.3g}/s")
        if self.total and rate:
            parts.append(f"about {(self.total - self.done) / rate:.0f} s left")
        parts.append(f"{memory_mb():.0f} MB")
        return ", ".join([*parts, *([shown] if shown else [])])


def progress(items: Iterable[T] | int, description: str, done: int = 0) -> Progress[T]:
    """Progress over an iterable, or towards a total that `update` counts up to; `done` items were done before."""
    if isinstance(items, int):
        return Progress(None, items, description, done)
    try:
        total = len(items) + done  # type: ignore[arg-type]  # what has no length says so, below
    except TypeError:
        total = None
    return Progress(items, total, description, done)


def memory_mb() -> float:
    """The memory this process holds now, in MB (10⁶ bytes), and on a GPU what torch holds there besides; 0 where the
    system does not tell.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        held = pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        held = 0
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        held += torch.cuda.memory_reserved()
    return held / 1e6
