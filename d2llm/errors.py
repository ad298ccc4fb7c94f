"""The errors a user can meet. Each message names the thing that is wrong and what mends it.

The command line prints them as one line and exits with 2. Everything else that is raised is a bug and keeps its traceback.
"""


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
