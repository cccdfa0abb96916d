"""The command line: `stateset-agents doctor | init | serve`.

Owns the arguments and the exit code. Each command is a function here and a few lines; what it does
is in the room it belongs to, imported when it is called: `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stateset_agents.exceptions import StateSetError

DEFAULT_CONFIG = Path("params.yaml")
BASE_MODEL = Path("data/base_model")  # where the line puts it; an adapter is loaded on top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 for an error (its message is on standard error), 2 for wrong arguments.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
    except StateSetError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stateset-agents",
        description="Train conversational agents by reinforcement learning, and serve them.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="check this machine and the installation")
    doctor.set_defaults(command=_doctor)

    init = commands.add_parser("init", help="write a starter configuration")
    init.add_argument("--path", type=Path, default=DEFAULT_CONFIG, help="default: %(default)s")
    init.add_argument("--force", action="store_true", help="replace a file that is there")
    init.set_defaults(command=_init)

    serve = commands.add_parser("serve", help="answer OpenAI chat requests")
    serve.add_argument("--config", type=Path, help=f"default: {DEFAULT_CONFIG}, where there is one")
    serve.add_argument(
        "--checkpoint", type=Path, help="a model folder; default: the champion in the registry"
    )
    serve.add_argument("--host", help="default: serve.host of the configuration")
    serve.add_argument("--port", type=int, help="default: serve.port of the configuration")
    serve.add_argument(
        "--api-key",
        default=os.environ.get("STATESET_API_KEY"),
        help="clients must send it as a bearer token; default: $STATESET_API_KEY, else none",
    )
    serve.set_defaults(command=_serve)
    return parser


def _doctor(_arguments: argparse.Namespace) -> int:
    from stateset_agents.doctor import Verdict, examine

    checks = []
    for check in examine(Path.cwd()):
        print(check, flush=True)
        checks.append(check)
    problems = sum(check.verdict is Verdict.PROBLEM for check in checks)
    print(f"{problems} problems" if problems else "ready")
    return 1 if problems else 0


def _init(arguments: argparse.Namespace) -> int:
    from stateset_agents.run_config import write_starter

    write_starter(arguments.path, replace=arguments.force)
    print(f"wrote {arguments.path}: every parameter with its meaning and its default")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    import logging

    from stateset_agents import run_config
    from stateset_agents.serving import serve

    path = arguments.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None)
    config = run_config.load(path) if path else run_config.RunConfig()
    for name in ("host", "port"):
        value = getattr(arguments, name)
        if value is not None:
            setattr(config.serve, name, value)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("stateset_agents").setLevel(logging.INFO)
    serve(
        config.serve,
        config.tracking,
        folder=arguments.checkpoint,
        base_model=BASE_MODEL if BASE_MODEL.is_dir() else None,
        generation=config.agent.model_dump(mode="json"),
        api_key=arguments.api_key,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
