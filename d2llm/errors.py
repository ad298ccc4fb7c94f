"""The errors a user can meet. Each message names the thing that is wrong and what mends it.

The command line prints them as one line and exits with 2. Everything else that is raised is a bug and keeps its traceback.
"""


def first_line(error: BaseException) -> str:
    """The beginning of another library's message as part of one of ours: its first line, nothing unprintable in it, 300 letters at most."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


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
