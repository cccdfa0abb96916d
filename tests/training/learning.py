"""How many conversations each algorithm of the table takes to a policy that is known to be best.

The task: two questions, answers of two tokens, and a conversation is worth the share of its
answers that begin with a small letter. The best policy earns 1. All weights are trained: with the
embeddings and the last norm as they are, as an adapter leaves them, no policy of this model was
seen to earn more than 0.8. A batch is used twice where the algorithm can, because on the first use
most losses are the same.

    python -m tests.training.learning [NAME ...] [--plot docs/learning_curves.svg]

trains the algorithms that are named, or all, five seeds each, and prints a table of these and of
those of earlier calls; with `--plot` (matplotlib, of the extra `hpo`) it draws their curves too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.reward import RewardFunction, RewardResult
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.training.algorithms import ALGORITHMS, Algorithm
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.trainer import Trainer
from tests.tiny_model import make_tiny_model
from tests.training.runs import train

SEEDS = range(5)
CONVERSATIONS_PER_STEP = 16
# What an algorithm may take: half as many again as the slowest of 70 runs did, which took 432.
STATED = 640
# Reached where the mean reward over this many steps is at least that.
WINDOW, REACHED = 3, 0.95
QUESTIONS = ["Where is my order?", "Thank you."]
# What is measured is learning, not tuning: everything but this is the algorithm's own default. A
# trust region has no learning rate that could be raised as everybody's is here; its limit is.
SETTINGS: dict[str, dict[str, Any]] = {
    "trpo": {"kl_limit": 1.0, "fisher_damping": 0.3, "fisher_rows": 0}
}
CURVES = Path(".stateset/learning_curves.json")


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

    @classmethod
    def of(cls, rewards: Sequence[float]) -> Curve:
        """One that was kept."""
        curve = cls()
        curve.rewards = list(rewards)
        return curve


def learn(folder: Path, algorithm: Algorithm, seed: int) -> Curve:
    """Train the tiny model on the task, until it is learned or `STATED` conversations are over."""
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
        "num_episodes": 2 * STATED // CONVERSATIONS_PER_STEP,
        "num_generations": CONVERSATIONS_PER_STEP // 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "warmup_ratio": 0.0,
        "bf16": False,
        "kl_sample_rows": 0,
        **({"credit": "turn"} if row.can_credit_turns else {}),
        **({} if row.on_policy or row.num_iterations > 1 else {"num_iterations": 2}),
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


# --- what is shown -------------------------------------------------------------------------------


def table(curves: Mapping[str, Sequence[Curve]]) -> str:
    """Markdown, the quickest median first."""
    lines = [
        "| algorithm | conversations to 0.95, five seeds | median |",
        "|---|---|---|",
    ]
    for name in sorted(curves, key=lambda name: (_median(curves[name]), name)):
        each = ", ".join(str(curve.conversations or f"not in {STATED}") for curve in curves[name])
        lines.append(f"| `{name}` | {each} | {_median(curves[name]):.0f} |")
    return "\n".join(lines) + "\n"


def _median(runs: Sequence[Curve]) -> float:
    return median(curve.conversations or float("inf") for curve in runs)


def plot(curves: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draw the reward of every seed over conversations, an algorithm a field; the suffix of `path`
    says in which format.
    """
    import matplotlib

    matplotlib.use("agg")
    # the same curves give the same bytes
    matplotlib.rcParams |= {"svg.hashsalt": "curves", "svg.fonttype": "none", "font.size": 8}
    from matplotlib import pyplot

    columns = 4
    rows = -(-len(curves) // columns)
    figure, fields = pyplot.subplots(
        rows, columns, sharex=True, sharey=True, squeeze=False, figsize=(9, 1.7 * rows)
    )
    for field in fields.flat[len(curves) :]:
        field.set_axis_off()
    for field, (name, runs) in zip(fields.flat, curves.items(), strict=False):
        for curve in runs:
            played = [CONVERSATIONS_PER_STEP * (n + 1) for n in range(len(curve.rewards))]
            field.plot(played, curve.rewards, linewidth=0.9)
        field.axhline(REACHED, color="grey", linewidth=0.6, linestyle="dotted")
        field.set_title(f"{name}: median {_median(runs):.0f}", fontsize=8)
        field.set_ylim(0, 1.03)
    figure.supxlabel("conversations")
    figure.supylabel("mean reward of a step")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.training.learning", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="algorithms; none: all")
    parser.add_argument("--plot", type=Path, help="where to draw the curves (.svg, .png)")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(ALGORITHMS):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(ALGORITHMS)}")
    kept: dict[str, list[list[float]]] = json.loads(CURVES.read_text()) if CURVES.exists() else {}
    CURVES.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        folder = make_tiny_model(Path(work) / "model")
        for name in given.names or list(ALGORITHMS):
            kept[name] = [learn(folder, name, seed).rewards for seed in SEEDS]
            CURVES.write_text(json.dumps(kept))
    curves = {
        name: [Curve.of(rewards) for rewards in kept[name]] for name in ALGORITHMS if name in kept
    }
    sys.stdout.write(table(curves))
    if given.plot:
        plot(curves, given.plot)


if __name__ == "__main__":
    main()
