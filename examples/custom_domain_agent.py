"""A domain that nothing is shipped for: the desk of a public library.

    python examples/custom_domain_agent.py --model data/base_model

Shows an agent of one's own (what it changes before and after the model speaks), a reward from an
asynchronous function, and callbacks: a line a step, early stopping, checkpoints.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stateset_agents import (
    AgentConfig,
    CompositeReward,
    ConversationEnvironment,
    MultiTurnAgent,
    MultiTurnGRPOTrainer,
    TrainingConfig,
    reward_function,
)
from stateset_agents.core.trajectory import ConversationTurn, Message
from stateset_agents.rewards.finished import FinishedReward
from stateset_agents.rewards.repetition import RepetitionReward
from stateset_agents.training.callbacks import (
    CheckpointCallback,
    EarlyStoppingCallback,
    TrainingCallback,
)

# Shelf mark -> what people ask for, and the floor where it stands.
SHELVES = {
    "K12": ("cookbooks", "first"),
    "H40": ("books on history", "second"),
    "A07": ("novels", "ground"),
    "T33": ("travel guides", "second"),
    "M21": ("books on music", "first"),
    "G18": ("books on gardening", "ground"),
    "P55": ("books on painting", "second"),
    "S09": ("books on the stars", "first"),
}
HELD_OUT = ("P55", "S09")


def scenarios(marks: Sequence[str]) -> list[dict[str, Any]]:
    """A reader for each shelf, who asks where and for how long."""
    made = []
    for mark in marks:
        subject, floor = SHELVES[mark]
        made.append(
            {
                "id": f"reader_{mark}",
                "context": (
                    f"You work at the desk of a library. The {subject} are on the {floor} floor, "
                    f"shelf {mark}. Books are lent for four weeks. Answer in one short sentence."
                ),
                "user_responses": [f"Where do I find {subject}?", "And how long may I keep one?"],
                "shelf": mark,
                "floor": floor,
            }
        )
    return made


class LibraryDesk(MultiTurnAgent):
    """Tells the model what day it is, and never lets an answer end in the middle of a sentence.

    Training sees the tokens that the model sampled; environment and rewards see what is returned.
    """

    async def generate_response(self, conversation_history: Sequence[Message]) -> str:
        """One answer, cut after its last whole sentence where there is one."""
        answer = await super().generate_response(self._with_the_day(conversation_history))
        end = max(answer.rfind(mark) for mark in ".!?")
        return answer[: end + 1] if end > 0 else answer

    def _with_the_day(self, history: Sequence[Message]) -> list[Message]:
        notice = {"role": "system", "content": "Today the library is open until 8 pm."}
        first, *rest = history
        content = first["content"] if isinstance(first, dict) else first.content
        role = first["role"] if isinstance(first, dict) else first.role
        if role != "system":
            return [notice, *history]
        return [{"role": "system", "content": f"{notice['content']} {content}"}, *rest]


@reward_function(weight=1.0, name="knows the house")
async def knows_the_house(turns: Sequence[ConversationTurn], context: Any = None) -> float:
    """First floor and shelf, then the four weeks; and not all of it in every answer."""
    scenario = context["scenario"]
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    if len(answers) < 2:
        return 0.0
    first, second = answers[0], answers[1].lower()
    where = (scenario["shelf"] in first) + (f"{scenario['floor']} floor" in first.lower())
    how_long = "four weeks" in second or "4 weeks" in second
    recited = scenario["shelf"].lower() in second
    return 0.25 * where + 0.5 * how_long * (0.5 if recited else 1.0)


def reward() -> CompositeReward:
    """What the readers came for; answers that break off or repeat themselves lose it."""
    return CompositeReward([knows_the_house], gates=[FinishedReward(), RepetitionReward(0.5)])


class Steps(TrainingCallback):
    """A line a step, and the best step so far."""

    def __init__(self) -> None:
        self.best = (0.0, 0)

    async def on_step_end(self, trainer: Any, metrics: Any) -> None:
        """Show the mean reward of what was sampled."""
        self.best = max(self.best, (metrics["reward/mean"], trainer.step))
        print(f"step {trainer.step:2d} of {trainer.total_steps}: {metrics['reward/mean']:.3f}")


async def show(agent: MultiTurnAgent, title: str) -> float:
    """Play readers that training never sees, print them, and return their mean reward."""
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
    """Train; the mean reward of the held-out readers before and after."""
    agent = LibraryDesk(
        AgentConfig(
            model_name=arguments.model,
            max_new_tokens=arguments.max_new_tokens,
            temperature=0.7,
            seed=0,
        )
    )
    await agent.initialize()
    before = await show(agent, "before training")
    config = TrainingConfig(
        num_episodes=arguments.episodes,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_generations=8,
        learning_rate=4e-4,
        use_lora=True,
        kl_sample_rows=0,
        save_steps=4,
    )
    trainer = MultiTurnGRPOTrainer(
        agent=agent,
        environment=ConversationEnvironment(
            scenarios([mark for mark in SHELVES if mark not in HELD_OUT]), max_turns=4
        ),
        reward_function=reward(),
        config=config,
    )
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        await trainer.train(
            callbacks=[steps, EarlyStoppingCallback(patience=10), CheckpointCallback(folder)]
        )
        print("checkpoints:", sorted(path.name for path in Path(folder).iterdir()))
    print(f"best step: {steps.best[1]}, with a mean of {steps.best[0]:.3f}")
    after = await show(agent, "after training")
    print(f"held out: {before:.3f} before, {after:.3f} after")
    return before, after


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="data/base_model", help="a model's folder or name")
    parser.add_argument("--episodes", type=int, default=28, help="scenarios visited in training")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="of one answer")
    return parser


if __name__ == "__main__":
    asyncio.run(run(parser().parse_args()))
