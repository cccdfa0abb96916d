"""Conversations for reward tests, written out by hand."""

from __future__ import annotations

from typing import Any

from stateset_agents.core.reward import RewardFunction, RewardResult
from stateset_agents.core.rubric import Rubric, RubricItem
from stateset_agents.core.trajectory import ConversationTurn

POLICY = (
    "You answer for the support of Larkmoor, an online shop. Items can be returned within 30 days "
    "of delivery in their original packaging. Refunds go to the original payment method within 5 "
    "business days after the parcel reaches our warehouse. Return shipping costs $5 unless the "
    "item is faulty."
)
USER = (
    "Hi, the shoes I ordered are too small and I want to send them back.",
    "When do I get my money?",
)
RUBRIC = Rubric(
    items=(
        RubricItem(kind="ask_for", description="order number", any_of=(("order number",),), turn=0),
        RubricItem(
            kind="state_fact",
            description="30 days to return",
            any_of=(("30 days", "return|send back|send it back|send them back"),),
        ),
        RubricItem(
            kind="state_fact",
            description="refund in 5 days",
            any_of=(("5 business days",),),
            turn=1,
        ),
        RubricItem(
            kind="acknowledge",
            description="says sorry",
            any_of=(("sorry",), ("apologise",)),
            turn=0,
        ),
        RubricItem(
            kind="must_not",
            description="money at once",
            any_of=(("refund|money", "today|right away|immediately"),),
        ),
    )
)


def conversation(*answers: str, user: tuple[str, ...] = USER) -> list[ConversationTurn]:
    """The policy, then the user's turns with an answer each."""
    turns = [ConversationTurn("system", POLICY)]
    for said, answer in zip(user, answers, strict=False):
        turns += [ConversationTurn("user", said), ConversationTurn("assistant", answer)]
    return turns


async def score(
    reward: RewardFunction, turns: list[ConversationTurn], **context: Any
) -> RewardResult:
    """What one conversation gets."""
    return (await reward.compute_rewards([(turns, context)]))[0]


GOOD = (
    "I'm sorry the shoes don't fit. You can return them within 30 days of delivery. Could you "
    "share your order number, so that I can look it up?",
    "You get the money back on your card within five business days, once the parcel is with us. "
    "Do you still have the box?",
)
