"""Conversations with given words and scores, for what needs no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stateset_agents.core.trajectory import (
    ConversationTurn,
    MultiTurnTrajectory,
    StopReason,
    TokenSample,
)
from stateset_agents.evaluation.results import (
    EvaluatedConversation,
    PolicyName,
    PolicyResult,
    RubricVerdict,
)
from stateset_agents.inference.engine import FinishReason


def conversation(
    scenario: str,
    seed: int = 1,
    *,
    reward: float = 0.5,
    intent: str = "refund",
    answers: Sequence[str] = ("Please send me the order number.",),
    rubric: float | None = None,
    fluency: float | None = None,
    failed: bool = False,
) -> EvaluatedConversation:
    sample = TokenSample((1, 2), (3, 4, 5), (-0.1, -0.2, -0.3), FinishReason.STOP)
    turns = [ConversationTurn("system", "Refunds take five days.")]
    for number, answer in enumerate(answers):
        turns.append(ConversationTurn("user", f"message {number} of {scenario}"))
        turns.append(ConversationTurn("assistant", answer, sample=sample))
    trajectory = MultiTurnTrajectory(
        trajectory_id=f"{scenario}-{seed}",
        turns=turns,
        episode_reward=reward,
        samples=[sample for _ in answers],
        reward_parts={"rubric": reward if rubric is None else rubric, "safety": 1.0},
        stop_reason=StopReason.FAILED if failed else StopReason.COMPLETED,
        error="the engine is closed" if failed else None,
    )
    verdicts = (
        RubricVerdict("ask_for", "asks for the order number", reward > 0.5),
        RubricVerdict("must_not", "promises no refund by telephone", True),
    )
    return EvaluatedConversation(
        {"id": scenario, "intent": intent, "topic": "returns"}, seed, trajectory, verdicts, fluency
    )


def policy(
    name: PolicyName,
    reward: Callable[[str, int], float],
    *,
    intents: Sequence[str] = ("refund", "delivery"),
    scenarios_per_intent: int = 6,
    seeds: Sequence[int] = (1, 2),
    answer: str = "Please send me the order number of {scenario}.",
) -> PolicyResult:
    conversations = tuple(
        conversation(
            f"{intent}-{number}",
            seed,
            reward=reward(f"{intent}-{number}", seed),
            intent=intent,
            answers=(answer.format(scenario=f"{intent} {number}"), "You are welcome."),
            fluency=-2.0,
        )
        for seed in seeds
        for intent in intents
        for number in range(scenarios_per_intent)
    )
    return PolicyResult(name, f"the {name}", conversations, seconds=4.8)
