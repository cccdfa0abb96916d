"""The form of a shipped conversation."""

from __future__ import annotations

from typing import Any


def scenario(
    topic: str, name: str, difficulty: str, category: str, context: str, *user_responses: str
) -> dict[str, Any]:
    """One conversation: what the agent may know and do, and what the user says, in order."""
    return {
        "id": name,
        "topic": topic,
        "context": " ".join(context.split()),
        "user_responses": list(user_responses),
        "metadata": {"difficulty": difficulty, "category": category},
    }
