"""Whether Python code that comes with a checkpoint may run: never, unless the configuration says so for one of its
models.
"""

from __future__ import annotations

_allowed = False


def allow(value: bool) -> None:
    """Set by the command line from the configuration, once a process."""
    global _allowed
    _allowed = value


def allowed() -> bool:
    """For `trust_remote_code`."""
    return _allowed
