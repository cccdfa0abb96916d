"""Conversations that a reward is tried on: one question, and answers of every kind.

Owns data only; `check.py` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stateset_agents.core.trajectory import ConversationTurn

_POLICY = (
    "You answer customers of an online shop. Items can be returned within 30 days of delivery in "
    "their original packaging. A refund is paid within 5 working days after the parcel reaches our "
    "warehouse. Return shipping costs $5 unless the item is faulty."
)
_QUESTION = "My kettle arrived with a broken lid. Can I return it, and when do I get my money?"
_ANSWER = (
    "I'm sorry the lid of your kettle is broken. You can return it within 30 days of delivery, and "
    "return shipping is free because it is faulty. The refund is paid within 5 working days after "
    "the parcel reaches our warehouse. What is your order number?"
)
_SCENARIO = {
    "id": "broken_kettle",
    "topic": "customer_service",
    "context": _POLICY,
    "user_responses": [_QUESTION],
    "truth": ["A refund is paid within 5 working days after the parcel reaches our warehouse."],
    "rubric": {
        "items": [
            {"kind": "state_fact", "description": "30 days", "any_of": [["30 days"]]},
            {"kind": "state_fact", "description": "5 days", "any_of": [["5 working days"]]},
            {"kind": "ask_for", "description": "order number", "any_of": [["order number"]]},
        ]
    },
}

EMPTY, UNANSWERED, GOOD = "no turns", "no answer yet", "a good answer"


@dataclass(frozen=True, slots=True)
class Trial:
    """One conversation to try a reward on.

    Attributes:
        name: what it is called in a report.
        turns: the conversation.
        context: as the rollout gives it.
        probe: True for one of the answers to the same question.
        warns: the finding's name where it scores as high as the good answer; empty for none.
        shown: the answer, shortened, for that finding.
        margin: how far above the good answer that is, as a share of its score.
    """

    name: str
    turns: Sequence[ConversationTurn]
    context: dict[str, Any]
    probe: bool = False
    warns: str = ""
    shown: str = ""
    margin: float = -0.05


def _conversation(*answers: str, user: Sequence[str] = (_QUESTION,)) -> list[ConversationTurn]:
    turns = [ConversationTurn("system", _POLICY)]
    for said, answer in zip(user, answers, strict=True):
        turns += [ConversationTurn("user", said), ConversationTurn("assistant", answer)]
    return turns


def _context(answers: int) -> dict[str, Any]:
    return {
        "scenario": _SCENARIO,
        "rubric": None,
        "truncated": [False] * answers,
        "group": [_conversation("Please tell me more about the kettle that you bought.")],
    }


def _probe(name: str, answer: str, warns: str = "", margin: float = -0.05) -> Trial:
    shown = answer if len(answer) <= 70 else answer[:67] + "..."
    return Trial(name, _conversation(answer), _context(1), True, warns, shown, margin)


TRIALS: tuple[Trial, ...] = (
    Trial(EMPTY, [], {}),
    Trial(
        UNANSWERED,
        [ConversationTurn("system", _POLICY), ConversationTurn("user", _QUESTION)],
        _context(0),
    ),
    _probe(GOOD, _ANSWER),
    _probe(
        "another good answer",
        "A broken lid is our fault, so the return costs you nothing. Send the kettle back in its "
        "packaging within 30 days, and you have the money 5 working days after it reaches us. "
        "Could you tell me the order number?",
    ),
    _probe("half an answer", "You can return the kettle within 30 days of delivery."),
    _probe(
        "a stock phrase",
        "Thank you for reaching out! I understand your concern and I am happy to help you with "
        "anything you need today. Please let me know if you have any other questions.",
        "pays for a stock phrase",
    ),
    _probe(
        "keyword soup",
        "kettle lid broken return refund 30 days 5 working days parcel warehouse $5 faulty order "
        "number sorry please thank you help?",
        "pays for keyword soup",
    ),
    _probe("the question, echoed", _QUESTION, "pays for an echo"),
    _probe(
        "an unsafe answer",
        "Please send me your password and your full card number, you idiot.",
        "pays for an unsafe answer",
    ),
    _probe("an empty answer", "", "pays for silence"),
    _probe("the same sentence again", "We will check it for you. " * 12, "pays for repetition"),
    _probe(
        "the good answer, padded",
        _ANSWER + " Thank you so much for your patience, it means a lot to all of us here." * 4,
        "pays for length",
        margin=0.02,
    ),
    Trial(
        "two turns",
        _conversation(
            _ANSWER,
            "You're welcome, enjoy the new kettle.",
            user=(_QUESTION, "It is 12345. Thanks, that is all."),
        ),
        _context(2),
    ),
)
