"""The command line: `stateset-agents doctor | init | validate | train | evaluate | ...`.

Owns arguments, what a person sees, and the exit code. A command is a file here and a few lines;
what it does is in the room it belongs to, imported when it is called: `--help` is quick.
"""

from __future__ import annotations

from stateset_agents.cli.app import main

__all__ = ["main"]
