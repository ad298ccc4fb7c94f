"""Signals that ask a process to end (SIGTERM of a scheduler, SIGINT of Ctrl-C), noted while a training runs: `d2llm.resume` keeps a checkpoint first.

The command line alone makes one of these; whoever uses the library keeps its own handlers.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

NOTED = (signal.SIGINT, signal.SIGTERM)
# Seconds in which another signal is the same request: Slurm tells every process of a job, and torchrun tells its own again.
SAME = 1.0


class Signals:
    """Notes the first signal while it listens: `told` is its number, 0 before. A later one acts as if nobody listened."""

    def __init__(self) -> None:
        self.told = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def listen(self) -> None:
        """From now on, in the main thread: Python has handlers in no other. A signal that is ignored stays ignored."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in NOTED:
            if number not in self._before and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """The handlers there were, in their places again."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, _: object) -> None:
        now = time.monotonic()
        if not self.told:
            self.told, self._since = number, now
        elif now - self._since >= SAME:
            self.restore()
            signal.raise_signal(number)
