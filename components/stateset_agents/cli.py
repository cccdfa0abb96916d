"""The command line: `stateset-agents doctor | init | serve`. Thin, and quick to start."""

from __future__ import annotations


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    raise NotImplementedError(argv)
