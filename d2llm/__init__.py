"""D2LLM: a bi-encoder student that keeps a cross-encoder's judgement, and a suite to compare it with others.

The package knows nothing of Snakemake: every stage is a function of a validated config (`d2llm.run.stages` lists them).
To use a trained student: `d2llm.load(folder)` and `d2llm.Index` (docs/searching.md). Importing the package imports no
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from d2llm.run.paths import STUDENT
from d2llm.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from d2llm.models.student import Student
    from d2llm.search.index import Index

__all__ = ["Index", "__version__", "load"]


def load(folder: str | Path, dtype: str = "float32", device: str | None = None) -> Student:
    """A trained student, ready to encode, score and be searched with.

    `folder` is a run's `model` folder (results/<tier>/runs/<method>/<variant>/seed<n>/model) or what `d2llm export`
    wrote. `device`: a GPU where there is one. Raises ArtifactError for a folder that holds no student, ConfigError for
    a device that is not there.

    >>> import d2llm
    >>> student = d2llm.load("model")
    >>> student.encode(["人在看书。"], "query").shape
    (1, 32)
    """
    from pathlib import Path

    from d2llm.models.device import default_device, device_of
    from d2llm.models.student import Student

    place, where = Path(folder), default_device() if device is None else device_of(device)
    # Of an exported folder, the part that is the student.
    inside = place / STUDENT if (place / STUDENT).is_dir() else place
    return Student.load(inside, dtype=dtype).to(where)


def __getattr__(name: str) -> Any:
    if name == "Index":
        from d2llm.search.index import Index

        return Index
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
