"""A sales assistant that must not invent prices: several objectives, of which none makes up for
another.

    python examples/sales_assistant.py --model data/base_model

Shows `MultiObjectiveReward` with a product, objectives of one's own, and a profile of `train`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Sequence
from typing import Any

from stateset_agents import (
    AgentConfig,
    ConversationEnvironment,
    MultiTurnAgent,
    RewardFunction,
    RewardResult,
    train,
)
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.rewards import SimilarityAwareReward
from stateset_agents.rewards.multi_objective_reward import MultiObjectiveReward
from stateset_agents.training.callbacks import TrainingCallback

# What is asked for -> what the shop has: name and price in euros, cheapest first.
CATALOGUE = {
    "bicycle": [("City", 390), ("Tour", 640)],
    "tent": [("Light", 120), ("Family", 280)],
    "coffee machine": [("Solo", 75), ("Barista", 410)],
    "desk": [("Basic", 110), ("Lift", 350)],
    "guitar": [("Student", 95), ("Studio", 520)],
    "sleeping bag": [("Summer", 60), ("Winter", 170)],
    "rucksack": [("Day", 45), ("Alpine", 150)],
    "lamp": [("Spot", 25), ("Arc", 140)],
}
HELD_OUT = ("rucksack", "lamp")


def scenarios(wares: Sequence[str]) -> list[dict[str, Any]]:
    """One customer for each: first a wish, then a budget."""
    made = []
    for ware in wares:
        (cheap, low), (dear, high) = CATALOGUE[ware]
        made.append(
            {
                "id": f"buys_{ware}",
                "context": (
                    f"You advise customers of a shop. It has two kinds of {ware}: {cheap} for "
                    f"{low} euros and {dear} for {high} euros. First ask for the budget, then "
                    "recommend the one that fits it, with its price. Use one short sentence."
                ),
                "user_responses": [
                    f"Hello, I am looking for a {ware}.",
                    f"I can spend about {low + 10} euros.",
                ],
                "fits": cheap,
                "prices": [low, high],
                "price": low,
            }
        )
    return made


def _scenario(context: dict[str, Any] | None) -> dict[str, Any]:
    return (context or {}).get("scenario") or {}


def _answers(turns: Sequence[ConversationTurn]) -> list[str]:
    return [turn.content for turn in turns if turn.role == "assistant"]


class Advises(RewardFunction):
    """First the question for the budget, then the ware that fits it, with its price."""

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """One score an answer."""
        scenario, scores = _scenario(context), []
        for place, answer in enumerate(_answers(turns)):
            lowered = answer.lower()
            if place == 0:
                asks = "?" in answer and ("budget" in lowered or "spend" in lowered)
                scores.append(1.0 if asks else 0.1)
            else:
                named = scenario["fits"].lower() in lowered
                priced = re.search(rf"\b{scenario['price']}\b", answer) is not None
                scores.append(0.1 + 0.45 * named + 0.45 * priced)
        return RewardResult(score=sum(scores) / max(1, len(scores)), turn_scores=scores)


class KeepsToThePrices(RewardFunction):
    """Halved for every number that is neither a price of the shop's nor the customer's."""

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """The mean over answers."""
        scenario = _scenario(context)
        allowed = {*scenario["prices"], scenario["price"] + 10}
        scores = [
            0.5 ** sum(int(n) not in allowed for n in re.findall(r"\d{1,6}", answer))
            for answer in _answers(turns)
        ]
        return RewardResult(score=sum(scores) / max(1, len(scores)), turn_scores=scores)


class IsBrief(RewardFunction):
    """1 for a finished answer of 25 words at most, less the longer it is."""

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """The mean over answers."""
        scores = []
        for answer in _answers(turns):
            words = len(answer.split())
            finished = 1.0 if answer.strip()[-1:] in (".", "?", "!") else 0.4
            scores.append(finished * min(1.0, 25 / max(1, words)) * float(words >= 4))
        return RewardResult(score=sum(scores) / max(1, len(scores)), turn_scores=scores)


def reward() -> MultiObjectiveReward:
    """A product: an assistant that advises well and invents a price is worth as little as both."""
    return MultiObjectiveReward(
        objectives=[
            {"name": "advice", "reward": Advises(), "weight": 0.5},
            {"name": "prices", "reward": KeepsToThePrices(), "weight": 0.3},
            {"name": "brief", "reward": IsBrief(), "weight": 0.1},
            {"name": "varied", "reward": SimilarityAwareReward(), "weight": 0.1},
        ],
        aggregation="product",
        normalize=True,
    )


class Steps(TrainingCallback):
    """A line a step."""

    async def on_step_end(self, trainer: Any, metrics: Any) -> None:
        """Show the mean reward of what was sampled."""
        print(f"step {trainer.step:2d} of {trainer.total_steps}: {metrics['reward/mean']:.3f}")


async def show(agent: MultiTurnAgent, title: str) -> float:
    """Play customers that training never sees, print them, and return their mean reward."""
    print(f"\n--- {title} ---")
    environment, scores = ConversationEnvironment(scenarios(HELD_OUT), max_turns=4), []
    for scenario in environment.scenarios:
        state, done = await environment.reset(scenario), False
        while not done:
            answer = await agent.generate_response(state.conversation_history)
            turn = ConversationTurn(role="assistant", content=answer)
            state, _, _, done = await environment.step(state, turn)
        result = (
            await reward().compute_rewards([(state.conversation_history, {"scenario": scenario})])
        )[0]
        scores.append(result.score)
        for turn in state.conversation_history:
            if turn.role != "system":
                print(f"{turn.role:>9}: {turn.content}")
        print(f"   reward: {result.score:.2f} {result.breakdown}\n")
    return sum(scores) / len(scores)


async def run(arguments: argparse.Namespace) -> tuple[float, float]:
    """Train; the mean reward of the held-out customers before and after."""
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
    await train(
        agent=agent,
        environment=ConversationEnvironment(
            scenarios([ware for ware in CATALOGUE if ware not in HELD_OUT]), max_turns=4
        ),
        reward_fn=reward(),
        num_episodes=arguments.episodes,
        profile="aggressive",
        # over the profile's: an adapter takes larger steps than whole weights
        learning_rate=4e-4,
        use_lora=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_generations=8,
        kl_sample_rows=0,
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
