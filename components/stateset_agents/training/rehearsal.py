"""A run without a model: the stub plays every conversation, it is scored, and nothing is learned.

Owns the steps of such a rehearsal, its checkpoints and what it leaves behind, so that a
configuration, its scenarios and its rewards are tried in seconds. It does not know torch, and there
is no update: fixed answers have no weights. Groups without spread are not replaced.

    <save>/step_<n>/state.json    kind, step, fingerprint, callbacks
    <save>/final/policy.json      kind `stub` and the answers that evaluation and serving give
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from stateset_agents.core.agent import AgentConfig, GenerationSettings, MultiTurnAgent
from stateset_agents.core.environment import Environment
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.trajectory import MultiTurnTrajectory, TrajectoryGroup
from stateset_agents.exceptions import CheckpointError
from stateset_agents.rollout.collect import collect_groups
from stateset_agents.rollout.scoring import check_some_have_rewards, part_means, score_groups
from stateset_agents.rollout.statistics import rollout_statistics
from stateset_agents.tracking.loggers import MetricLogger
from stateset_agents.tracking.policy_folder import FINAL, write_policy_file
from stateset_agents.tracking.whole_folder import put_all_back, put_back
from stateset_agents.training.callbacks import TrainingCallback, in_calling_order
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.final_policy import write_whole
from stateset_agents.training.scenario_order import scenarios_of_step

STATE_FILE = "state.json"
STUB_ANSWER_BYTES = 512


class Rehearsal:
    """Plays and scores what `Trainer` would train on, with the stub in the policy's place.

    To callbacks it looks like a trainer: `step`, `total_steps`, `is_last_step`, `config`, `groups`,
    `stop`, `save_checkpoint`.
    """

    def __init__(
        self,
        environment: Environment,
        reward_function: RewardFunction,
        config: TrainingConfig,
        agent: GenerationSettings,
        *,
        stub_responses: Sequence[str] | None = None,
    ) -> None:
        self.environment = environment
        self.reward_function = reward_function
        self.config = config
        self.logger: MetricLogger | None = None
        self.step = 0
        self.groups: list[TrajectoryGroup] = []
        self.stop_reason: str | None = None
        # the stub's tokens are bytes: a limit that suits a model would cut its sentences
        longest = max(agent.max_new_tokens, STUB_ANSWER_BYTES)
        self._settings = agent.model_copy(update={"max_new_tokens": longest})
        self._responses = list(stub_responses) if stub_responses else None
        self.agent = MultiTurnAgent(
            AgentConfig(
                **self._settings.model_dump(),
                model_name="stub://rehearsal",
                use_stub_model=True,
                stub_responses=self._responses,
            )
        )
        self._callbacks: list[TrainingCallback] = []

    @property
    def total_steps(self) -> int:
        """Batches of conversations in the whole run."""
        return self.config.total_steps

    @property
    def is_last_step(self) -> bool:
        """True when no step follows the present one."""
        return self.step >= self.total_steps or self.stop_reason is not None

    @property
    def fingerprint(self) -> str:
        """A digest of what is played and how."""
        decides = [
            self.config.model_dump(include={"seed", "num_generations"}),
            self.config.groups_per_step,
            self._settings.model_dump(),
            list(self.environment.scenarios),
        ]
        return hashlib.sha256(json.dumps(decides, default=str).encode()).hexdigest()[:16]

    def stop(self, reason: str) -> None:
        """End after this step."""
        self.stop_reason = reason

    async def train(
        self,
        callbacks: Sequence[TrainingCallback] | None = None,
        resume_from: Path | str | None = None,
    ) -> MultiTurnAgent:
        """Play and score to the end; the agent that comes back is the stub.

        Raises:
            CheckpointError: `resume_from` is not a checkpoint of this rehearsal.
            RolloutError: every episode of a step failed.
            RewardError: a reward function raised, or none of a step's rewards is a finite number.
        """
        await self.agent.initialize()
        self._callbacks = in_calling_order(callbacks or [])
        # callbacks look at what both kinds of run have
        run: Any = self
        if resume_from is not None:
            self._restore(Path(resume_from))
        for callback in self._callbacks:
            await callback.on_train_start(run)
        while not self.is_last_step:
            metrics = await self._run_step()
            self.step += 1
            for callback in self._callbacks:
                if not callback.runs_last:
                    await callback.on_step_end(run, metrics)
            if self.logger and (self.step % self.config.logging_steps == 0 or self.is_last_step):
                self.logger.log(self.step, metrics)
            for callback in self._callbacks:
                if callback.runs_last:
                    await callback.on_step_end(run, metrics)
        for callback in self._callbacks:
            await callback.on_train_end(run)
        return self.agent

    def save_checkpoint(self, folder: Path | str, *, keep: int | None = None) -> Path:
        """Write `folder/step_<n>`, and drop the oldest beyond `keep` (None: `save_total_limit`).

        Raises:
            CheckpointError: it could not be written.
        """
        state = {
            "kind": "stub",
            "step": self.step,
            "fingerprint": self.fingerprint,
            "callbacks": {callback.name: callback.state_dict() for callback in self._callbacks},
        }

        def write(target: Path) -> None:
            (target / STATE_FILE).write_text(json.dumps(state) + "\n", encoding="utf-8")

        target = write_whole(Path(folder) / f"step_{self.step}", write)
        limit = self.config.save_total_limit if keep is None else keep
        steps = [path for path in Path(folder).glob("step_*") if path.name[5:].isdecimal()]
        until_now = sorted((s for s in steps if int(s.name[5:]) <= self.step), key=_number)
        for old in until_now[:-limit]:
            shutil.rmtree(old)
        return target

    def save_final(self, save_dir: Path | str) -> Path:
        """Write `save_dir/final`: a stub that evaluation and serving can load.

        Raises:
            CheckpointError: it could not be written; the one before is as it was.
        """
        described = {
            "kind": "stub",
            "stub_responses": self._responses,
            "steps": self.step,
            "stop_reason": self.stop_reason,
            "fingerprint": self.fingerprint,
            "train": self.config.model_dump(),
            "agent": self._settings.model_dump(include=set(GenerationSettings.model_fields)),
        }
        return write_whole(
            Path(save_dir) / FINAL, lambda folder: write_policy_file(folder, described)
        )

    async def close(self) -> None:
        """Close the stub."""
        await self.agent.engine.aclose()

    async def _run_step(self) -> dict[str, float]:
        config, started = self.config, time.perf_counter()
        scenarios = scenarios_of_step(
            self.environment.scenarios, self.step, config.groups_per_step, config.seed
        )
        self.groups = await collect_groups(
            self.agent,
            self.environment,
            scenarios,
            num_generations=config.num_generations,
            seed=config.seed,
            step=self.step,
            on_episode=self._tell_episode,
        )
        played = time.perf_counter()
        await score_groups(self.groups, self.reward_function, tolerant=True)
        check_some_have_rewards(self.groups, self.reward_function)
        ended = time.perf_counter()
        return {
            **_reward_numbers(self.groups),
            **rollout_statistics(self.groups),
            "seconds/rollout": played - started,
            "seconds/reward": ended - played,
            "seconds/step": ended - started,
        }

    def _tell_episode(self, trajectory: MultiTurnTrajectory) -> None:
        run: Any = self
        for callback in self._callbacks:
            callback.on_episode(run, trajectory)

    def _restore(self, path: Path) -> None:
        put_back(path)
        chosen = path if (path / STATE_FILE).is_file() else _newest(path)
        if chosen is None:
            raise CheckpointError(
                f"{path} holds no checkpoint: name a folder step_<n> with a {STATE_FILE}, or the "
                "folder that such folders are in"
            )
        try:
            state: dict[str, Any] = json.loads((chosen / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{chosen} is damaged ({error}): remove it") from error
        if state.get("kind") != "stub":
            raise CheckpointError(
                f"{chosen} is the checkpoint of a model: resume it without --stub, or resume a "
                "checkpoint that a run with --stub wrote"
            )
        if state["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{chosen} belongs to another run: settings or scenarios differ. Resume with what "
                "it was made with, or leave --resume out to start anew"
            )
        for callback in self._callbacks:
            if callback.name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.name])
        self.step = int(state["step"])


def _reward_numbers(groups: Sequence[TrajectoryGroup]) -> dict[str, float]:
    """As `training.metrics.reward_metrics` names them, which needs the rows of a real step."""
    alive = [[t for t in group.trajectories if t.has_reward] for group in groups]
    everyone = [trajectory for group in alive for trajectory in group]
    rewards = [trajectory.episode_reward for trajectory in everyone]
    played = [t for group in groups for t in group.trajectories if not t.failed]
    numbers = {
        "reward/mean": fmean(rewards),
        "reward/std": pstdev(rewards),
        "reward/min": min(rewards),
        "reward/max": max(rewards),
        "reward/within_group_std": fmean(
            pstdev(t.episode_reward for t in group) for group in alive if group
        ),
        "reward/nonfinite": sum(not math.isfinite(t.episode_reward) for t in played),
    }
    numbers |= {f"reward/parts/{part}": mean for part, mean in part_means(everyone).items()}
    return numbers


def _newest(folder: Path) -> Path | None:
    put_all_back(folder)
    found = [
        path
        for path in folder.glob("step_*")
        if path.name[5:].isdecimal() and (path / STATE_FILE).is_file()
    ]
    return max(found, key=_number, default=None)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step_"))
