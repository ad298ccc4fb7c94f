"""Log lines and progress: a file a job, and bars where a person is watching.

On a terminal progress is a tqdm bar; elsewhere it is a log line every ten seconds, so that a log stays readable.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
EVERY = 10.0  # seconds between progress lines


def get_logger(name: str) -> logging.Logger:
    """A logger below `d2llm`, whose handlers the command line sets."""
    return logging.getLogger(name if name.split(".")[0] == "d2llm" else f"d2llm.{name}")


def configure(log: str | Path | None) -> None:
    """Send log lines to a file, and to stderr what a person there would want.

    With a file, stderr gets warnings, and only on a terminal; without one, everything.
    """
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
        Path(log).write_text("")
        # Appending: a job whose workflow was killed may still be writing to the same file.
        file = logging.FileHandler(log, mode="a", encoding="utf-8")
        file.setLevel(logging.INFO)
        handlers.append(file)
    if log is None or terminal():
        stderr = logging.StreamHandler()
        stderr.setLevel(logging.INFO if log is None else logging.WARNING)
        handlers.append(stderr)
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)


def terminal() -> bool:
    """Whether a person sees stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


class Progress(Generic[T]):
    """Counts work done; made by `progress`. Iterate over it, or call `update` inside a `with` block."""

    def __init__(self, items: Iterable[T] | None, total: int | None, description: str) -> None:
        self.items, self.total, self.description = items, total, description
        self.done = 0
        self.started = self.spoken = time.monotonic()
        self.logger = get_logger("progress")
        self.bar: Any = None
        if terminal():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=description, leave=False, dynamic_ncols=True, file=sys.stderr)

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

    def update(self, count: int = 1, **numbers: float) -> None:
        """Count `count` more; `numbers` (a loss, a rate) are shown beside it."""
        self.done += count
        shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        if self.bar is not None:
            if shown:
                self.bar.set_postfix_str(shown, refresh=False)
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.spoken >= EVERY:
            self.spoken = now
            goal = f" of {self.total}" if self.total else ""
            line = f"{self.description}: {self.done}{goal} in {now - self.started:.0f} s"
            self.logger.info(f"{line}, {shown}" if shown else line)


def progress(items: Iterable[T] | int, description: str) -> Progress[T]:
    """Progress over an iterable, or towards a total that `update` counts up to."""
    if isinstance(items, int):
        return Progress(None, items, description)
    try:
        total = len(items)  # type: ignore[arg-type]
    except TypeError:
        total = None
    return Progress(items, total, description)
