"""The application: its commands in the order of `--help`, and how errors become exit codes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import typer

from stateset_agents.cli import (
    chat,
    compare,
    data,
    doctor,
    evaluate,
    init,
    lineage,
    serve,
    train,
    validate,
)
from stateset_agents.cli.exit_codes import EPILOG, ExitCode
from stateset_agents.exceptions import StateSetError

# What a disk or its owner refuses is no defect of the program: a message, and no traceback.
_REFUSED = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "make room",
    errno.EROFS: "name another place",
    errno.EACCES: "give this user the right to it, or name another place",
    errno.EPERM: "give this user the right to it, or name another place",
    errno.ENOTDIR: "name another place",
    errno.EISDIR: "name another place",
    errno.EEXIST: "name another place",
}

app = typer.Typer(
    name="stateset-agents",
    help="Train conversational agents by reinforcement learning, evaluate and serve them.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(doctor.doctor)
app.command()(init.init)
app.command()(validate.validate)
app.add_typer(data.app, name="data")
app.command()(train.train)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(chat.chat)
app.command()(serve.serve)
app.command()(lineage.lineage)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code, one of `ExitCode`. What is not a `StateSetError` is a defect and keeps its
        traceback.
    """
    try:
        app(None if arguments is None else list(arguments), prog_name="stateset-agents")
    except StateSetError as error:
        return _failed(str(error))
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return _failed(f"{error}; {_REFUSED[error.errno]}")
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitCode.DONE
    return ExitCode.DONE


def _failed(message: str) -> ExitCode:
    sys.stdout.flush()
    sys.stderr.write(f"error: {message}\n")
    return ExitCode.FAILED
