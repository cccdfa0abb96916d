"""What a script learns from how a command ended."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The whole list; `docs/cli.md` and `--help` have the same."""

    DONE = 0
    """The command did what was asked."""
    FAILED = 1
    """An error, whose message is on standard error; `doctor` and `validate`: problems were found.
    """
    WRONG_ARGUMENTS = 2
    """An unknown command or option, or a value that it does not take."""
    INTERRUPTED = 130
    """Ctrl-C. `train` has saved a checkpoint and says how to go on."""


EPILOG = (
    "Exit codes: 0 done; 1 an error, its message on standard error (doctor, validate: problems "
    "found); 2 wrong arguments; 130 Ctrl-C (train has saved a checkpoint and says how to go on)."
)
