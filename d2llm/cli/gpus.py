"""One GPU for each job of a machine that has several: the first free one, held until the job ends.

A scheduler that gives a job one GPU (`CUDA_VISIBLE_DEVICES` names one) leaves nothing to choose, nor does a training
that several processes share. Looks without torch, which must first see the GPUs when the choice is made.
"""

import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import IO

from d2llm.run.logs import get_logger

DRIVER = Path("/proc/driver/nvidia/gpus")
# Seconds between two looks for a free GPU.
WAIT = 2.0


def visible() -> list[str]:
    """Numbers, or names, of the GPUs this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number in range(len(list(DRIVER.iterdir())))] if DRIVER.is_dir() else []


def claim(folder: Path | None = None) -> IO[str] | None:
    """Choose one of several GPUs and hide the others from this process; returns the lock that holds it, None where
    there is nothing to choose.

    `folder` holds the locks, the same one for all jobs of a user on the machine. Waits while all are taken.
    """
    devices = visible()
    if len(devices) < 2 or "RANK" in os.environ:
        return None
    folder = folder or Path(tempfile.gettempdir()) / f"d2llm-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    announced = False
    while True:
        for name in devices:
            lock = (folder / name.replace("/", "_")).open("a", encoding="utf-8")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            get_logger(__name__).info("GPU %s of %s", name, ", ".join(devices))
            return lock
        if not announced:
            get_logger(__name__).info("all GPUs (%s) are taken by other jobs; waiting", ", ".join(devices))
            announced = True
        time.sleep(WAIT)
