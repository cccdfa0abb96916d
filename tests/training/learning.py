"""How many conversations each algorithm of the table takes to a policy that is known to be best.

The task: two questions, answers of two tokens, and a conversation is worth the share of its answers
that begin with a small letter. The best policy earns 1. `python -m tests.training.learning` prints
a table, one line an algorithm, five seeds each.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.reward import RewardFunction, RewardResult
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.training.algorithms import ALGORITHMS
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.trainer import Trainer
from tests.tiny_model import make_tiny_model
from tests.training.runs import train

SEEDS = range(5)
STEPS = 60
CONVERSATIONS_PER_STEP = 16
# Reached where the mean reward over this many steps is at least that.
WINDOW, REACHED = 3, 0.95
QUESTIONS = ["Where is my order?", "Thank you."]
# The same for all but where a row's loss is of another size: what is measured is learning, not
# tuning. A trust region has no learning rate.
SETTINGS: dict[str, dict[str, Any]] = {
    "gspo": {"clip_range_left": 0.2, "clip_range_right": 0.2},
    "gspo_token": {"clip_range_left": 0.2, "clip_range_right": 0.2},
    "trpo": {"kl_limit": 0.05},
}


class SmallLetters(RewardFunction):
    """The share of answers that begin with a small letter, and each answer's own."""

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        answers = [turn.content for turn in turns if turn.role == "assistant"]
        good = [float(answer[:1].islower()) for answer in answers]
        return RewardResult(score=fmean(good), turn_scores=good)


class Curve(TrainingCallback):
    """Keeps the mean reward of every step, and stops where the best policy is reached."""

    def __init__(self) -> None:
        self.rewards: list[float] = []

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self.rewards.append(metrics["reward/mean"])
        if self.reached:
            trainer.stop("the best policy is reached")

    @property
    def reached(self) -> bool:
        return len(self.rewards) >= WINDOW and fmean(self.rewards[-WINDOW:]) >= REACHED

    @property
    def conversations(self) -> int | None:
        """Until the best policy was reached; None if it never was."""
        return len(self.rewards) * CONVERSATIONS_PER_STEP if self.reached else None


def learn(folder: Path, algorithm: Any, seed: int, steps: int = STEPS) -> Curve:
    """Train the tiny model on the task."""
    row = ALGORITHMS[algorithm]
    curve = Curve()
    agent = MultiTurnAgent(
        AgentConfig(
            model_name=str(folder), max_new_tokens=2, temperature=1.0, torch_dtype="float32"
        )
    )
    settings: dict[str, Any] = {
        "algorithm": algorithm,
        "seed": seed,
        "num_episodes": 2 * steps,
        "num_generations": CONVERSATIONS_PER_STEP // 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "use_lora": True,
        "bf16": False,
        "kl_sample_rows": 0,
        **({} if row.can_credit_turns is False else {"credit": "turn"}),
        **SETTINGS.get(algorithm, {}),
    }
    trainer = Trainer(
        agent,
        ConversationEnvironment(
            [{"id": f"q{n}", "user_responses": QUESTIONS} for n in range(4)], max_turns=4
        ),
        SmallLetters(),
        TrainingConfig(**settings),
    )
    train(trainer, [curve])
    return curve


def table(curves: Mapping[str, Sequence[Curve]]) -> str:
    """Markdown, the quickest median first."""

    def shown(curve: Curve) -> str:
        return str(curve.conversations or f"not in {STEPS * CONVERSATIONS_PER_STEP}")

    def middle(of: Iterable[Curve]) -> float:
        return median(curve.conversations or float("inf") for curve in of)

    lines = [
        "| algorithm | first step's reward | conversations to 0.95, five seeds | median |",
        "|---|---|---|---|",
    ]
    for name, runs in sorted(curves.items(), key=lambda item: (middle(item[1]), item[0])):
        first = fmean(curve.rewards[0] for curve in runs)
        each = ", ".join(shown(curve) for curve in runs)
        lines.append(f"| `{name}` | {first:.2f} | {each} | {middle(runs):.0f} |")
    return "\n".join(lines) + "\n"


def main(names: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as work:
        folder = make_tiny_model(Path(work) / "model")
        curves = {
            name: [learn(folder, name, seed) for seed in SEEDS] for name in names or ALGORITHMS
        }
    sys.stdout.write(table(curves))


if __name__ == "__main__":
    main(sys.argv[1:])
