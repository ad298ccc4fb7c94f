"""Signals that ask a process to end (SIGTERM of a scheduler, SIGINT of Ctrl-C), noted while a training runs:
`d2llm.run.checkpoint` keeps a checkpoint first.

The command line alone makes `Signals`, and the workflow alone calls `pass_on`; whoever uses the library keeps its own
handlers.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

NOTED = (signal.SIGINT, signal.SIGTERM)
# Seconds in which another signal is the same request: Slurm may tell every process of a job, and torchrun tells its own
# again.
SAME = 1.0


class Signals:
    """Notes the first signal while it listens: `told` is its number, 0 before. A later one acts as if nobody
    listened.
    """

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


# ----------------------------------------------------------------------------------------------------------- passing on
def pass_on() -> None:
    """From now on this process, which starts jobs, tells those that listen of a SIGTERM it gets. Its own handlers stay.

    Its main thread calls this; one that handles SIGTERM by Python alone can pass it on.
    """
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    signal.set_wakeup_fd(pythons.detach(), warn_on_full_buffer=False)

    def wait() -> None:
        while number := ours.recv(1):
            if number[0] == signal.SIGTERM:
                for process in listeners():
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def listeners() -> list[int]:
    """Processes below this one that run the command line and handle SIGTERM. As Linux tells; none elsewhere."""
    parents, processes = dict[int, int](), list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            status = (folder / "status").read_text(encoding="utf-8", errors="replace")
            process = int(folder.name)
            parent = re.search(r"^PPid:\s*(\d+)", status, re.M)
            caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.M)
            if parent is None or caught is None:
                continue
            parents[process], handled = int(parent[1]), int(caught[1], 16)
            if handled >> signal.SIGTERM - 1 & 1 and b"d2llm.cli" in (folder / "cmdline").read_bytes().split(b"\0"):
                processes.append(process)

    def below(process: int) -> bool:
        return process in parents and (parents[process] == os.getpid() or below(parents[process]))

    return [process for process in processes if below(process)]
