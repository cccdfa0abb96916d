"""A support agent that finds a fault: the environment is a device, and it is what gets repaired.

    python examples/technical_support_agent.py --model data/base_model

Shows an environment of one's own, in which what the user says depends on what the agent proposed,
its step rewards as a reward function, and GSPO.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from stateset_agents import (
    AgentConfig,
    CompositeReward,
    ConcisenessReward,
    Environment,
    EnvironmentState,
    MultiTurnAgent,
    RewardFunction,
    RewardResult,
)
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.rewards.repetition import RepetitionReward
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.gspo_trainer import GSPOConfig, train_with_gspo

HANDBOOK = (
    "You support a {device}. Propose one step at a time; if it does not help, propose the next. "
    "Steps that help: {steps}. Answer in one sentence."
)
# Device -> what is wrong, and the handbook's steps in their order: word to say, instruction.
FAULTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "printer": (
        "The printer prints blank pages.",
        [("cartridge", "check the cartridge"), ("clean", "clean the print head")],
    ),
    "router": (
        "The router blinks red and there is no internet.",
        [("restart", "restart the router"), ("cable", "check the cable")],
    ),
    "camera": (
        "The camera does not save pictures.",
        [("card", "check the memory card"), ("format", "format the card")],
    ),
    "keyboard": (
        "The keyboard types nothing.",
        [("battery", "replace the battery"), ("pair", "pair it again")],
    ),
    "speaker": (
        "The speaker makes no sound.",
        [("volume", "turn up the volume"), ("update", "update the software")],
    ),
    "watch": (
        "The watch stands still.",
        [("charge", "charge the watch"), ("reset", "reset the watch")],
    ),
}
HELD_OUT = ("speaker", "watch")


class Workbench(Environment):
    """Devices with a fault. The first step of the handbook never helps, the second one does.

    A proposal that stands in the handbook is worth 0.5; repairing the device ends the conversation.
    """

    def __init__(self, devices: Sequence[str], max_answers: int = 3) -> None:
        self.scenarios = [{"id": device, "device": device} for device in devices]
        self.max_answers = max_answers

    async def reset(self, scenario: Mapping[str, Any] | None = None) -> EnvironmentState:
        """The user tells what is wrong."""
        device = (scenario or self.scenarios[0])["device"]
        complaint, steps = FAULTS[device]
        handbook = HANDBOOK.format(device=device, steps="; then ".join(text for _, text in steps))
        return EnvironmentState(
            conversation_history=[
                ConversationTurn(role="system", content=handbook),
                ConversationTurn(role="user", content=complaint),
            ],
            metadata={"device": device, "tried": 0, "answers": 0},
        )

    async def step(
        self, state: EnvironmentState, action: ConversationTurn
    ) -> tuple[EnvironmentState, ConversationTurn | None, float, bool]:
        """Try what was proposed, and say what happened."""
        steps = FAULTS[state.metadata["device"]][1]
        tried, answers = state.metadata["tried"], state.metadata["answers"] + 1
        proposed = steps[tried][0] in action.content.lower()
        tried += proposed
        repaired = tried == len(steps)
        done = repaired or answers == self.max_answers
        history = [*state.conversation_history, action]
        said = None
        if not done:
            text = "I did that, it did not help." if proposed else "What should I do exactly?"
            said = ConversationTurn(role="user", content=text)
            history.append(said)
        metadata = {**state.metadata, "tried": tried, "answers": answers}
        return EnvironmentState(history, metadata), said, 0.5 * proposed, done


class Repaired(RewardFunction):
    """What the device says: the sum of its step rewards."""

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """The environment left each answer's reward with the turn."""
        scores = [
            float(turn.metadata.get("environment_reward", 0.0))
            for turn in turns
            if turn.role == "assistant"
        ]
        return RewardResult(score=min(1.0, sum(scores)), turn_scores=scores)


def reward() -> CompositeReward:
    """The device decides, and an answer is short and no repetition."""
    return CompositeReward(
        [Repaired(weight=0.85), ConcisenessReward(weight=0.15, min_words=4, max_words=25)],
        gates=[RepetitionReward(weight=0.7)],
    )


class Steps(TrainingCallback):
    """A line a step."""

    async def on_step_end(self, trainer: Any, metrics: Any) -> None:
        """Show the mean reward of what was sampled."""
        print(f"step {trainer.step:2d} of {trainer.total_steps}: {metrics['reward/mean']:.3f}")


async def show(agent: MultiTurnAgent, title: str) -> float:
    """Let the agent repair devices that training never sees; the share that works afterwards."""
    print(f"\n--- {title} ---")
    workbench, repaired = Workbench(HELD_OUT), 0
    for scenario in workbench.scenarios:
        state, done = await workbench.reset(scenario), False
        while not done:
            answer = await agent.generate_response(state.conversation_history)
            turn = ConversationTurn(role="assistant", content=answer)
            state, _, _, done = await workbench.step(state, turn)
        works = state.metadata["tried"] == len(FAULTS[scenario["device"]][1])
        repaired += works
        for turn in state.conversation_history:
            if turn.role != "system":
                print(f"{turn.role:>9}: {turn.content}")
        print(f"   the {scenario['device']} {'works' if works else 'is still broken'}\n")
    return repaired / len(workbench.scenarios)


async def run(arguments: argparse.Namespace) -> tuple[float, float]:
    """Train; the share of held-out devices that work, before and after."""
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
    config = GSPOConfig(
        num_outer_iterations=arguments.steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_generations=8,
        learning_rate=4e-4,
        use_lora=True,
        lora_r=16,
        kl_sample_rows=0,
    )
    await train_with_gspo(
        config=config,
        agent=agent,
        environment=Workbench([device for device in FAULTS if device not in HELD_OUT]),
        reward_model=reward(),
        callbacks=[Steps()],
    )
    after = await show(agent, "after training")
    print(f"held-out devices that work: {before:.0%} before, {after:.0%} after")
    return before, after


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="data/base_model", help="a model's folder or name")
    parser.add_argument("--steps", type=int, default=14, help="optimizer steps")
    parser.add_argument("--max-new-tokens", type=int, default=28, help="of one answer")
    return parser


if __name__ == "__main__":
    asyncio.run(run(parser().parse_args()))
