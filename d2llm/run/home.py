"""Where the libraries keep their caches if the home cannot be written, as in many containers and on compute nodes.

`settle` is called before any of them is imported: they read these variables once.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from d2llm.run.logs import get_logger

# The folder of caches that could not be written, and so was left for another by this process; a user without a home has
# none.
left: list[str] = []


def default() -> str:
    """The folder libraries keep caches in, "no home" for a user without one."""
    try:
        return os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    except RuntimeError:
        return "no home"


def writable(folder: str | Path) -> bool:
    """Whether a folder, which is made where it is missing, can be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)  # by permissions alone, root may write anywhere
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def own(name: str) -> Path:
    """A folder of that name for a cache of this suite alone: among the user's caches, or a temporary one."""
    folder = Path(default()) / "d2llm" / name
    return folder if default() != "no home" and writable(folder) else temporary()


def temporary() -> Path:
    """A folder until this process ends."""
    place = Path(tempfile.mkdtemp(prefix="d2llm-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def settle(place: Path | None = None) -> None:
    """Have caches kept below `place` where their default folder cannot be written; None: in a temporary folder, until
    this process ends.

    Hugging Face's hub and data sets, torch and others go by XDG_CACHE_HOME, matplotlib by MPLCONFIGDIR. What the user
    sets for one of them (HF_HOME) stays.
    """
    folder = default()
    if folder != "no home" and writable(folder):
        return
    left.append(folder)
    place = place or temporary()
    if folder == "no home":
        os.environ["HOME"] = str(place.resolve())  # some library asks for it while it is imported
    os.environ["XDG_CACHE_HOME"] = str(place.resolve())
    os.environ.setdefault("MPLCONFIGDIR", str(place.resolve() / "matplotlib"))
    get_logger("home").info("%s cannot be written: libraries keep their caches in %s", folder, place)
