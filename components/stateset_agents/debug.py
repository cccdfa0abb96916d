"""STATESET_DEBUG=1: everything that this package can say about what it does, and slower checks.

Owns when it is on and how the package's loggers then speak. What is said and checked stands where
it happens (`training.debug_checks`).

The variable is read when `stateset_agents` is imported and again whenever an agent or a trainer is
made, so it may be set at run time with `os.environ`; `0`, `false`, `no`, `off` and nothing mean
off.
"""

from __future__ import annotations

import logging
import os

VARIABLE = "STATESET_DEBUG"

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_own_handler: logging.Handler | None = None


def is_on() -> bool:
    """True where the environment asks for debugging."""
    return os.environ.get(VARIABLE, "").strip().lower() not in ("", "0", "false", "no", "off")


def apply() -> bool:
    """Let the package's loggers say everything while debugging is on, and as before when it is not.

    They write to standard error, or to where the program's own logging goes if it has set up any
    (`logging.basicConfig`); `logging.basicConfig(level=logging.DEBUG)` alone has the same records
    without the checks.

    Returns:
        `is_on()`.
    """
    global _own_handler
    package = logging.getLogger("stateset_agents")
    if not is_on():
        if _own_handler is not None:
            package.removeHandler(_own_handler)
            _own_handler = None
            package.setLevel(logging.NOTSET)
        return False
    if _own_handler is None:
        _own_handler = _Unless(logging.getLogger())
        _own_handler.setFormatter(logging.Formatter(_FORMAT))
        package.addHandler(_own_handler)
        package.setLevel(logging.DEBUG)
    return True


class _Unless(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error unless the other logger has handlers, which have the records too."""

    def __init__(self, other: logging.Logger) -> None:
        super().__init__()
        self._other = other

    def emit(self, record: logging.LogRecord) -> None:
        if not self._other.handlers:
            super().emit(record)
