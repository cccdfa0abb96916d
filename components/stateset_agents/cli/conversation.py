"""A conversation at the terminal, or with lines that are piped in: one line in, one answer out.

Owns the loop of `chat` and of `evaluate` without a message. It does not know whose agent it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from stateset_agents.cli.console import notice

if TYPE_CHECKING:
    import asyncio

    from stateset_agents.core.agent import MultiTurnAgent

Message = dict[str, str]
HINT = "/reset starts anew, /quit ends (so does Ctrl-D)"


def converse(
    runner: asyncio.Runner,
    agent: MultiTurnAgent,
    after_answer: Callable[[list[Message]], None] | None = None,
) -> list[Message]:
    """Talk until the input ends or says /quit; the history of what was said last.

    Lines are read outside of the event loop, so that Ctrl-C at the prompt is a KeyboardInterrupt.

    Raises:
        EngineError: an answer could not be generated.
    """
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        notice(HINT)
    history: list[Message] = []
    while True:
        try:
            line = input("you> " if is_terminal else "")
        except EOFError:
            return history
        text = line.strip()
        if text in ("/quit", "/exit"):
            return history
        if text == "/reset":
            history = []
            notice("a new conversation")
        elif text:
            history.append({"role": "user", "content": text})
            answer = runner.run(agent.generate_response(history))
            history.append({"role": "assistant", "content": answer})
            print(f"agent> {answer}" if is_terminal else answer, flush=True)
            if after_answer is not None:
                after_answer(history)
