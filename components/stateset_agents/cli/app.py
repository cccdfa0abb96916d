"""The application: its commands in the order of `--help`, and how errors become exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from stateset_agents.cli import chat, compare, data, doctor, evaluate, init, serve, train, validate
from stateset_agents.cli.exit_codes import EPILOG, ExitCode
from stateset_agents.exceptions import StateSetError

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code, one of `ExitCode`. What is not a `StateSetError` is a defect and keeps its
        traceback.
    """
    try:
        app(None if arguments is None else list(arguments), prog_name="stateset-agents")
    except StateSetError as error:
        sys.stdout.flush()
        sys.stderr.write(f"error: {error}\n")
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitCode.DONE
    return ExitCode.DONE
