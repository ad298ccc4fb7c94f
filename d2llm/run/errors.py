"""The errors a user can meet. Each message names the thing that is wrong and what mends it.

The command line prints them as one line and exits with 2. Everything else that is raised is a bug and keeps its
traceback.
"""

import errno


def first_line(error: BaseException) -> str:
    """The beginning of another library's message as part of one of ours: its first line, nothing unprintable in it, 300
    letters at most.
    """
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


# What other libraries call a full disk, where they keep no error number.
FULL = (
    "No space left on device",
    "os error 28",
    "Disk quota exceeded",
    "os error 122",
    "File too large",
    "os error 27",
)
NO_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
    "out of memory",
    "malloc of size",
)


def fault(error: BaseException) -> str | None:
    """One line for a fault of the machine (disk full or read-only, memory used up); None for any other error, which is
    a bug.
    """
    seen: BaseException | None = error
    while seen is not None:
        message, number = first_line(seen), getattr(seen, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(word in message for word in FULL):
            advice = "make room and run again: finished jobs are kept"
            return f"the disk is full, or files may not grow further ({message}); {advice}"
        if isinstance(seen, MemoryError) or any(word in message for word in NO_MEMORY):
            advice = "run fewer jobs at a time (--cores 1), or lower batch sizes (docs/scaling.md)"
            return f"memory is used up ({message}); {advice}"
        if number in (errno.EROFS, errno.EACCES, errno.EPERM):
            advice = "change its permissions, or choose another folder: -C results=FOLDER"
            return f"a file or folder may not be read or written ({message}); {advice}"
        seen = seen.__cause__
    return None


class D2LLMError(Exception):
    """Base of every error whose message alone is enough for a user to act on."""


class ConfigError(D2LLMError):
    """A configuration file, key or value that cannot be used."""


class DataError(D2LLMError):
    """A source of data (file, column, row) that does not hold what its contract says."""


class ArtifactError(D2LLMError):
    """A file of the results folder that is missing, damaged or made by something else."""


class TrainingError(D2LLMError):
    """A training that cannot go on: non-finite loss, nothing to train, a teacher below its bar."""


class Interrupted(D2LLMError):
    """A training that was told to end (SIGTERM, SIGINT), and has kept its place."""
