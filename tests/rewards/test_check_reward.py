import asyncio
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from stateset_agents import check_reward
from stateset_agents.core.reward import (
    CompositeReward,
    CorrectnessReward,
    EngagementReward,
    HelpfulnessReward,
    RewardFinding,
    RewardFunction,
    RewardResult,
    SafetyReward,
    TaskCompletionReward,
    reward_function,
)
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.rewards import (
    CustomerServiceReward,
    SimilarityAwareReward,
    TechnicalSupportReward,
)
from tests.rewards.made import conversation


def last(turns: Sequence[ConversationTurn]) -> str:
    return next((turn.content for turn in reversed(turns) if turn.role == "assistant"), "")


async def found(reward: object, **settings: Any) -> dict[str, RewardFinding]:
    return {one.check: one for one in (await check_reward(reward, **settings)).findings}


@pytest.mark.parametrize(
    "reward",
    [
        HelpfulnessReward(addressing="lexical"),
        CorrectnessReward(),
        EngagementReward(),
        TaskCompletionReward(),
        CustomerServiceReward(),
        TechnicalSupportReward(),
        CompositeReward([HelpfulnessReward(0.7, addressing="lexical"), SafetyReward(0.3)]),
    ],
    ids=lambda reward: reward.name,
)
async def test_nothing_is_found_in_the_shipped_rewards(reward: RewardFunction) -> None:
    report = await check_reward(reward)
    assert report.findings == ()
    assert report.ok
    assert report.scores["a good answer"] > report.scores["keyword soup"]
    assert "nothing found" in str(report)


async def test_a_gate_of_one_fault_is_warned_of_what_it_does_not_look_at() -> None:
    for gate in (SafetyReward(), SimilarityAwareReward()):
        findings = await found(gate)
        assert {one.level for one in findings.values()} <= {"warning"}
    assert "pays for keyword soup" in await found(SafetyReward())


async def test_a_reward_that_raises_is_told_with_its_error_and_where() -> None:
    @reward_function()
    def divides(turns: Any, context: Any = None) -> float:
        return 1 / sum(turn.role == "assistant" for turn in turns)

    @reward_function()
    def indexes(turns: Any, context: Any = None) -> float:
        return float(len(turns[-1].content)) / 1000

    @reward_function()
    def always(turns: Any, context: Any = None) -> float:
        raise KeyError("price")

    findings = await found(divides)
    assert "ZeroDivisionError" in findings["raises on an empty conversation"].message
    assert "raises without an answer" in findings
    assert "IndexError" in (await found(indexes))["raises on an empty conversation"].message
    assert "'always' raised KeyError" in (await found(always))["raises"].message


@pytest.mark.parametrize("given", ["good", None, [1.0], RewardResult("high")])  # type: ignore[arg-type]
async def test_what_is_no_number_is_a_wrong_return_type(given: Any) -> None:
    findings = await found(reward_function(name="odd")(lambda turns, context=None: given))
    assert findings["wrong return type"].level == "error"


async def test_nan_is_not_finite_and_out_of_range_is_warned_of() -> None:
    findings = await found(reward_function()(lambda turns, context=None: math.nan))
    assert findings["not finite"].level == "error"
    findings = await found(reward_function()(lambda turns, context=None: len(last(turns)) * 1.0))
    assert findings["out of range"].level == "warning"
    assert "pays for length" in findings


async def test_chance_is_not_deterministic_and_a_constant_ignores_the_answer() -> None:
    random.seed(0)
    dice = reward_function()(lambda turns, context=None: random.random())
    assert "not deterministic" in await found(dice)
    findings = await found(reward_function()(lambda turns, context=None: 0.5))
    assert findings["ignores the answer"].level == "error"


async def test_counting_keywords_pays_for_soup() -> None:
    @reward_function()
    async def keywords(turns: Any, context: Any = None) -> float:
        wanted = ("refund", "return", "order number", "sorry", "30 days")
        return sum(word in last(turns).lower() for word in wanted) / len(wanted)

    report = await check_reward(keywords)
    assert report.ok
    assert "pays for keyword soup" in {one.check for one in report.findings}
    assert "'kettle lid broken" in str(report)


async def test_silence_repetition_and_echo_are_tried() -> None:
    short = reward_function()(lambda turns, context=None: 1 / (1 + len(last(turns))))
    assert "pays for silence" in await found(short)
    long = reward_function()(lambda turns, context=None: min(1.0, len(last(turns)) / 200))
    assert "pays for repetition" in await found(long)
    question = reward_function()(lambda turns, context=None: 0.1 + 0.9 * ("?" in last(turns)))
    assert "pays for an echo" in await found(question)


async def test_slow_is_told_by_the_limit_that_was_given() -> None:
    @reward_function()
    async def waits(turns: Any, context: Any = None) -> float:
        await asyncio.sleep(0.002)
        return len(last(turns)) / 1000

    assert "slow" in await found(waits, slow_seconds=0.001)
    assert "slow" not in await found(waits, slow_seconds=60)
    with pytest.raises(ConfigurationError, match="slow_seconds is 0"):
        await check_reward(waits, slow_seconds=0)


class Plain(RewardFunction):
    def compute_reward(self, turns: Any, context: Any = None) -> float:  # type: ignore[override]
        return len(last(turns)) / 1000


class WrongTurns(RewardFunction):
    async def compute_reward(self, turns: Any, context: Any = None) -> RewardResult:
        return RewardResult(len(last(turns)) / 1000, turn_scores=[0.5, 0.5, 0.5])


class Strips(RewardFunction):
    async def compute_reward(self, turns: Any, context: Any = None) -> float:
        for turn in turns:
            turn.content = turn.content.strip()[:10]
        return len(last(turns)) / 10


class Relative(RewardFunction):
    async def compute_reward(self, turns: Any, context: Any = None) -> float:
        return 1.0

    async def compute_rewards(self, conversations: Any) -> list[RewardResult]:
        longest = max(len(last(turns)) for turns, _ in conversations) or 1
        return [RewardResult(len(last(turns)) / longest) for turns, _ in conversations]


class Loses(Relative):
    async def compute_rewards(self, conversations: Any) -> list[RewardResult]:
        return [RewardResult(len(last(turns)) / 1000) for turns, _ in conversations][:1]


async def test_what_a_class_can_do_wrong_is_found() -> None:
    assert "async def" in (await found(Plain()))["synchronous"].message
    assert "3 turn_scores for 0" in (await found(WrongTurns()))["turn scores"].message
    assert "changes the conversation" in await found(Strips())
    assert "among others" in (await found(Relative()))["batch"].message
    assert "1 results for" in (await found(Loses()))["batch"].message


async def test_a_function_a_class_and_a_thing_are_told_what_to_do() -> None:
    def polite(turns: Any, context: Any = None) -> float:
        return min(1.0, len(last(turns)) / 1000)

    def takes_text(text: str) -> float:
        return 1.0

    report = await check_reward(polite)
    assert "@reward_function() above it" in str(report)
    assert report.scores  # tried all the same
    assert "takes (text: str)" in (await found(takes_text))["signature"].message
    assert "SafetyReward()" in (await found(SafetyReward))["no reward"].message
    assert "'good'" in (await found("good"))["no reward"].message


async def test_conversations_of_ones_own_are_tried_too() -> None:
    @reward_function()
    def fails_on_shoes(turns: Any, context: Any = None) -> float:
        if "shoes" in last(turns):
            raise ValueError("shoes")
        return len(last(turns)) / 1000

    own = (conversation("The shoes are here."), {})
    assert "raises" not in await found(fails_on_shoes)
    findings = await found(fails_on_shoes, conversations=[own])
    assert "(conversation: conversation 1)" in findings["raises"].message


async def test_errors_come_first_and_the_text_has_a_line_for_each() -> None:
    report = await check_reward(Plain())
    assert [one.level for one in report.findings] == sorted(one.level for one in report.findings)
    text = str(report).splitlines()
    assert text[0].startswith("reward 'Plain': ")
    assert len(text) == 2 + len(report.findings) + len(report.scores)
