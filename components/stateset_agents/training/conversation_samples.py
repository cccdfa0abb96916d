"""Conversations from the beginning, the middle and the end of training, to be read by a person.

Owns which ones and how they are written. Reading them is the surest way to see a reward that is
being cheated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stateset_agents.core.trajectory import MultiTurnTrajectory
from stateset_agents.training.callbacks import TrainingCallback

if TYPE_CHECKING:
    from stateset_agents.training.trainer import Trainer


class ConversationSamples(TrainingCallback):
    """Keeps the best and the worst conversation of each group of the first, the middle and the
    last step.
    """

    def __init__(self) -> None:
        self._kept: list[dict[str, Any]] = []

    async def on_step_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Keep this step's, if it is one of the three."""
        if trainer.step not in (1, trainer.total_steps // 2) and not trainer.is_last_step:
            return
        for group in trainer.groups:
            alive = [t for t in group.trajectories if t.has_reward]
            if not alive:
                continue
            ranked = sorted(alive, key=lambda trajectory: trajectory.episode_reward)
            self._kept.append(
                {
                    "step": trainer.step,
                    "scenario": str(group.scenario.get("id", group.group_id)),
                    "best": _described(ranked[-1]),
                    "worst": _described(ranked[0]),
                }
            )

    def to_markdown(self) -> str:
        """All that was kept, the system message left out."""
        lines = ["# Conversations of the training", ""]
        step = None
        for kept in self._kept:
            if kept["step"] != step:
                step = kept["step"]
                lines += [f"## Step {step}", ""]
            for rank in ("best", "worst"):
                one = kept[rank]
                lines += [f"### {kept['scenario']}: {rank} of its group", "", one["scores"], ""]
                for role, content in one["turns"]:
                    quoted = "\n> ".join(content.splitlines() or [""])
                    lines += [f"**{role}**", "", f"> {quoted}", ""]
        return "\n".join(lines) + "\n"

    def state_dict(self) -> dict[str, Any]:
        """What was kept so far."""
        return {"kept": self._kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._kept = list(state["kept"])


def _described(trajectory: MultiTurnTrajectory) -> dict[str, Any]:
    parts = ", ".join(f"{name} {score:.2f}" for name, score in trajectory.reward_parts.items())
    return {
        "scores": f"Reward {trajectory.episode_reward:.3f} ({parts}); "
        f"ended: {trajectory.stop_reason.value}",
        "turns": [[t.role, t.content] for t in trajectory.turns if t.role != "system"],
    }
