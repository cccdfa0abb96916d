"""Every reward against its table: `cases/*.yaml`, hand-written, with the order they come out in."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from stateset_agents.core.reward import (
    ConcisenessReward,
    CorrectnessReward,
    EngagementReward,
    HelpfulnessReward,
    RewardFunction,
    SafetyReward,
    TaskCompletionReward,
)
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.rewards import (
    CustomerServiceReward,
    SalesAssistantReward,
    SimilarityAwareReward,
    TechnicalSupportReward,
)
from stateset_agents.rewards.finished import FinishedReward
from stateset_agents.rewards.fluency import FluencyReward
from stateset_agents.rewards.padding import PaddingReward
from stateset_agents.rewards.prose import ProseReward
from stateset_agents.rewards.repetition import RepetitionReward

CASES = Path(__file__).parent / "cases"
REWARDS: dict[str, RewardFunction] = {
    "conciseness": ConcisenessReward(),
    "correctness": CorrectnessReward(),
    "customer_service": CustomerServiceReward(),
    "engagement": EngagementReward(),
    "finished": FinishedReward(),
    "fluency": FluencyReward(),
    "helpfulness": HelpfulnessReward(addressing="lexical"),
    "padding": PaddingReward(),
    "prose": ProseReward(),
    "repetition": RepetitionReward(),
    "safety": SafetyReward(),
    "sales_assistant": SalesAssistantReward(),
    "similarity": SimilarityAwareReward(),
    "task_completion": TaskCompletionReward(),
    "technical_support": TechnicalSupportReward(),
}
GAP = 0.02
FEWEST = 30


def blocks(name: str) -> list[dict[str, Any]]:
    return yaml.safe_load((CASES / f"{name}.yaml").read_text())


def turns_of(block: dict[str, Any], answers: str | list[str]) -> list[ConversationTurn]:
    system = [ConversationTurn("system", block["context"])] if "context" in block else []
    return [*system, *_played(block["user"], answers)]


def context_of(block: dict[str, Any]) -> dict[str, Any]:
    context = {key: block[key] for key in ("truth", "rubric") if key in block}
    if "group" in block:
        context["group"] = [_played(block["user"], answers) for answers in block["group"]]
    return context


def _played(user: str | list[str], answers: str | list[str]) -> list[ConversationTurn]:
    said = [user] if isinstance(user, str) else user
    given = [answers] if isinstance(answers, str) else answers
    turns = []
    for one, other in zip(said, given, strict=True):
        turns += [ConversationTurn("user", one), ConversationTurn("assistant", other)]
    return turns


@pytest.mark.parametrize("name", REWARDS)
def test_the_table_has_enough_cases_and_every_tier_an_answer(name: str) -> None:
    tiers = [tier for block in blocks(name) for tier in block["tiers"]]
    assert sum(map(len, tiers)) >= FEWEST
    assert all(tiers)
    assert all(len(block["tiers"]) > 1 for block in blocks(name))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        pytest.param(name, block, id=f"{name}: {block['about']}")
        for name in REWARDS
        for block in blocks(name)
    ],
)
async def test_answers_come_out_in_the_order_of_their_tiers(
    name: str, block: dict[str, Any]
) -> None:
    context = context_of(block)
    scored = []
    for tier in block["tiers"]:
        conversations = [(turns_of(block, answers), context) for answers in tier]
        results = await REWARDS[name].compute_rewards(conversations)
        scored.append([result.score for result in results])
    table = "\n".join(
        f"{score:.3f}  {answers}"
        for tier, scores in zip(block["tiers"], scored, strict=True)
        for answers, score in [*zip(tier, scores, strict=True), ("--", 0)]
    )
    for upper, lower in pairwise(scored):
        assert min(upper) >= max(lower) + block.get("gap", GAP), f"\n{table}"
    assert all(0 <= score <= 1 for scores in scored for score in scores), table
