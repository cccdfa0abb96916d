"""A bot for the returns desk of an online shop: policy texts in, short correct answers out.

    python examples/customer_service_bot.py --model data/base_model

Shows scripted users with a policy each, two rewards of one's own (one from a function, one from a
class that tells turns apart), gates against padding, and GRPO with credit by turn.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Sequence
from typing import Any

from stateset_agents import (
    AgentConfig,
    CompositeReward,
    ConversationEnvironment,
    MultiTurnAgent,
    RewardFunction,
    RewardResult,
    SafetyReward,
    TrainingConfig,
    reward_function,
    train,
)
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.rewards.padding import PaddingReward
from stateset_agents.rewards.repetition import RepetitionReward
from stateset_agents.training.callbacks import TrainingCallback

POLICY = (
    "You answer for an online shop that sells {goods}. Returns are free within {days} days. "
    "Ask for the order number before anything else. Answer in one or two short sentences."
)
GOODS = {
    "lamp": ("lamps", 30, "My lamp came broken. Can I send it back?"),
    "shirt": ("shirts", 14, "The shirt is too small, I want to return it."),
    "kettle": ("kettles", 60, "This kettle leaks. How do I return it?"),
    "clock": ("clocks", 21, "I do not like the clock, can it go back?"),
    "chair": ("chairs", 28, "One leg of my chair is loose. I want to send it back."),
    "phone case": ("phone cases", 10, "Wrong colour of phone case! What now?"),
    "backpack": ("backpacks", 45, "The zip of my backpack is stuck. Can I return it?"),
    "pillow": ("pillows", 35, "My pillow smells odd. I would like to return it."),
}
HELD_OUT = ("backpack", "pillow")


def scenarios(names: Sequence[str]) -> list[dict[str, Any]]:
    """A return for each article: the order number is missing at first, then it is given."""
    made = []
    for number, name in enumerate(names):
        goods, days, complaint = GOODS[name]
        made.append(
            {
                "id": f"return_{name}",
                "context": POLICY.format(goods=goods, days=days),
                "user_responses": [
                    complaint,
                    f"The order number is {48213 + number}. How long do I have?",
                ],
                "days": days,
            }
        )
    return made


class AsksOnceThenAnswers(RewardFunction):
    """The first answer asks for the order number, the second says how many days there are and does
    not ask again.
    """

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """One score an answer."""
        days = ((context or {}).get("scenario") or {}).get("days")
        answers = [turn.content.lower() for turn in turns if turn.role == "assistant"]
        scores = []
        for place, answer in enumerate(answers):
            asks = "order number" in answer and "?" in answer
            states = re.search(rf"\b{days} days\b", answer) is not None
            scores.append(float(asks) if place == 0 else (float(states) + float(not asks)) / 2)
        return RewardResult(score=sum(scores) / len(scores) if scores else 0.0, turn_scores=scores)


@reward_function(weight=0.3, name="short")
def short_answers(turns: Sequence[ConversationTurn], context: Any = None) -> RewardResult:
    """1 for answers of 6 to 30 words that end like a sentence."""
    answers = [turn.content.strip() for turn in turns if turn.role == "assistant"]
    scores = [
        float(6 <= len(answer.split()) <= 30 and answer[-1:] in (".", "?", "!"))
        for answer in answers
    ]
    return RewardResult(score=sum(scores) / max(1, len(scores)), turn_scores=scores)


def reward() -> CompositeReward:
    """What is wanted, as a mean; what must not be, as gates that nothing makes up for."""
    return CompositeReward(
        [AsksOnceThenAnswers(weight=0.7), short_answers],
        gates=[SafetyReward(), RepetitionReward(), PaddingReward(weight=0.5)],
    )


class Steps(TrainingCallback):
    """A line a step."""

    async def on_step_end(self, trainer: Any, metrics: Any) -> None:
        """Show the mean reward of what was sampled."""
        print(f"step {trainer.step:2d} of {trainer.total_steps}: {metrics['reward/mean']:.3f}")


async def show(agent: MultiTurnAgent, title: str) -> float:
    """Play the scenarios that training never sees, print them, and return their mean reward."""
    print(f"\n--- {title} ---")
    environment, scores = ConversationEnvironment(scenarios(HELD_OUT), max_turns=4), []
    for scenario in environment.scenarios:
        state, done = await environment.reset(scenario), False
        while not done:
            answer = await agent.generate_response(state.conversation_history)
            turn = ConversationTurn(role="assistant", content=answer)
            state, _, _, done = await environment.step(state, turn)
        result = await reward().compute_reward(state.conversation_history, {"scenario": scenario})
        scores.append(result.score)
        for turn in state.conversation_history:
            if turn.role != "system":
                print(f"{turn.role:>9}: {turn.content}")
        print(f"   reward: {result.score:.2f} {result.breakdown}\n")
    return sum(scores) / len(scores)


async def run(arguments: argparse.Namespace) -> tuple[float, float]:
    """Train; the mean reward of the held-out conversations before and after."""
    agent = MultiTurnAgent(
        AgentConfig(
            model_name=arguments.model,
            max_new_tokens=arguments.max_new_tokens,
            temperature=0.7,
            seed=0,
        )
    )
    await agent.initialize()
    before = await show(agent, "before training")
    names = [name for name in GOODS if name not in HELD_OUT]
    config = TrainingConfig(
        num_episodes=arguments.episodes,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_generations=8,
        credit="turn",  # an answer is compared with the group's other answers to the same words
        loss_aggregation="token_mean",
        learning_rate=4e-4,
        use_lora=True,
        lora_r=16,
        kl_sample_rows=0,
        logging_steps=1,
    )
    await train(
        agent=agent,
        environment=ConversationEnvironment(scenarios(names), max_turns=4),
        reward_fn=reward(),
        config=config,
        callbacks=[Steps()],
    )
    after = await show(agent, "after training")
    print(f"held out: {before:.3f} before, {after:.3f} after")
    return before, after


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="data/base_model", help="a model's folder or name")
    parser.add_argument("--episodes", type=int, default=32, help="scenarios visited in training")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="of one answer")
    return parser


if __name__ == "__main__":
    asyncio.run(run(parser().parse_args()))
