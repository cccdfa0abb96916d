"""What a step plays: one step ahead, and again where nothing can be learned from it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.trajectory import ConversationTurn, TrajectoryGroup
from stateset_agents.exceptions import CheckpointError, NonFiniteLossError, RewardError
from stateset_agents.rollout.stored import group_from_json, group_to_json
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.rollouts import RolloutPlayer, StepRollout
from stateset_agents.training.scenario_order import further_scenarios, scenarios_of_step
from stateset_agents.training.trainer import Trainer
from tests.training.runs import (
    SCENARIOS,
    LettersE,
    MadeUp,
    Remembered,
    make_agent,
    make_trainer,
    train,
)

FOUR_STEPS: dict[str, Any] = {"num_episodes": 4, "num_generations": 4, "learning_rate": 5e-2}


class KeepsGroups(TrainingCallback):
    def __init__(self) -> None:
        self.steps: list[list[TrajectoryGroup]] = []

    async def on_step_end(self, trainer: Trainer, metrics: Any) -> None:
        self.steps.append(trainer.groups)


def tokens_of(groups: Sequence[TrajectoryGroup]) -> list[tuple[int, ...]]:
    return [s.token_ids for group in groups for one in group.trajectories for s in one.samples]


def play(folder: Path, step: int, reward: LettersE | MadeUp, **settings: Any) -> StepRollout:
    """With the weights in the folder."""
    agent = make_agent(folder)
    config = TrainingConfig(gradient_accumulation_steps=1, **settings)

    async def run() -> StepRollout:
        await agent.initialize()
        environment = ConversationEnvironment(SCENARIOS, max_turns=4)
        try:
            return await RolloutPlayer(agent, environment, reward, config, lambda _: None).play(
                step
            )
        finally:
            await agent.engine.aclose()

    return asyncio.run(run())


def test_a_step_ahead_means_the_weights_before_the_last_update(tiny_model_dir: Path) -> None:
    ahead, newest = KeepsGroups(), KeepsGroups()
    train(make_trainer(tiny_model_dir, **FOUR_STEPS, off_policy_steps=1), [ahead])
    train(make_trainer(tiny_model_dir, **FOUR_STEPS), [newest])
    untrained = play(tiny_model_dir, 1, LettersE(), num_generations=4, num_episodes=4)

    assert tokens_of(ahead.steps[0]) == tokens_of(newest.steps[0])
    assert tokens_of(ahead.steps[1]) == tokens_of(untrained.groups)
    assert tokens_of(newest.steps[1]) != tokens_of(untrained.groups)


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_staleness_and_what_corrects_it_are_in_the_metrics(tiny_model_dir: Path, mode: str) -> None:
    logger = Remembered()
    settings = {"off_policy_steps": 1, "importance_sampling": mode, "importance_sampling_cap": 1.05}
    train(make_trainer(tiny_model_dir, logger=logger, **FOUR_STEPS, **settings))

    first, *others = [metrics for _, metrics in logger.steps]
    assert [metrics["rollout/staleness_steps"] for _, metrics in logger.steps] == [0, 1, 1, 1]
    assert first["policy/sampling_difference_max"] < 2e-5
    assert first["policy/sampling_ratio_max"] == pytest.approx(1, abs=2e-5)
    assert first["policy/sampling_truncated_fraction"] == 0
    assert first["policy/sampling_masked_fraction"] == 0
    held, other = ("truncated", "masked") if mode == "truncate" else ("masked", "truncated")
    for metrics in others:
        assert metrics["policy/sampling_difference_mean"] > 1e-3
        assert metrics["policy/sampling_ratio_max"] > 1.05
        assert 0.3 < metrics["policy/sampling_ratio_mean"] < metrics["policy/sampling_ratio_max"]
        assert 0 < metrics[f"policy/sampling_{held}_fraction"] < 1
        assert metrics[f"policy/sampling_{other}_fraction"] == 0


def test_a_reward_that_raises_a_step_ahead_ends_training(tiny_model_dir: Path) -> None:
    class RaisesLater(LettersE):
        def __init__(self) -> None:
            super().__init__()
            self._calls = itertools.count(1)

        async def compute_reward(
            self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
        ) -> float:
            if next(self._calls) > 4:
                raise RuntimeError("too late")
            return await super().compute_reward(turns, context)

    trainer = make_trainer(tiny_model_dir, reward=RaisesLater(), **FOUR_STEPS, off_policy_steps=1)
    with pytest.raises(RewardError, match="too late"):
        train(trainer)
    assert trainer.step == 0


def test_an_update_that_fails_ends_training_and_the_conversations_beside_it(
    tiny_model_dir: Path,
) -> None:
    trainer = make_trainer(
        tiny_model_dir,
        reward=MadeUp(1e300, 0.0),
        scale_advantages=False,
        **FOUR_STEPS,
        off_policy_steps=1,
    )
    with pytest.raises(NonFiniteLossError):
        train(trainer)


class HoldsItsUpdate(TrainingCallback):
    """Lets the update wait for `let_go`; `begun` and `ended` tell where it is."""

    def __init__(self) -> None:
        self.begun, self.let_go, self.ended = (threading.Event() for _ in range(3))

    async def on_train_start(self, trainer: Trainer) -> None:
        def wait(gradient: torch.Tensor) -> None:
            self.begun.set()
            assert self.let_go.wait(timeout=60)

        next(iter(trainer.policy.trainable.values())).register_hook(wait)
        trainer.learner.optimizer.optimizer.register_step_post_hook(lambda *_: self.ended.set())


async def test_training_that_is_cancelled_a_step_ahead_waits_for_its_update_and_saves_no_half_step(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_model_dir, **FOUR_STEPS, off_policy_steps=1)
    held = HoldsItsUpdate()
    training = asyncio.create_task(trainer.train([held]))
    await asyncio.to_thread(held.begun.wait, 60)

    with pytest.raises(CheckpointError, match="the update of step 1 is under way or was cut off"):
        trainer.save_checkpoint(tmp_path)
    training.cancel()
    await asyncio.sleep(0)
    training.cancel()  # whoever asks twice waits as well
    asyncio.get_running_loop().call_later(0.1, held.let_go.set)
    with pytest.raises(asyncio.CancelledError):
        await training

    try:
        assert held.ended.is_set()
        with pytest.raises(CheckpointError, match=r"keep the weights .* by save_policy"):
            trainer.save_checkpoint(tmp_path)
    finally:
        held.let_go.set()
        await trainer.close()


class EqualFor(LettersE):
    """The same reward for every answer to the named scenarios."""

    def __init__(self, *scenario_ids: str) -> None:
        super().__init__()
        self._equal = scenario_ids

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> float:
        assert context is not None
        if context["scenario"]["id"] in self._equal:
            return 0.5
        return await super().compute_reward(turns, context)


def test_a_group_without_spread_is_replaced_by_one_of_a_further_scenario(
    tiny_model_dir: Path,
) -> None:
    settings: dict[str, Any] = {"num_generations": 4, "num_episodes": 4, "resampling_rounds": 3}
    (planned,) = scenarios_of_step(SCENARIOS, 0, 1, 0)
    further = [one["id"] for one in itertools.islice(further_scenarios(SCENARIOS, 0, 1, 0), 3)]
    assert set(further) == {scenario["id"] for scenario in SCENARIOS} - {planned["id"]}

    once = play(tiny_model_dir, 0, EqualFor(planned["id"]), **settings)
    assert [group.group_id for group in once.groups] == [f"step-0/round-1/{further[0]}"]
    assert once.resampled_groups == 1
    plain = play(tiny_model_dir, 0, LettersE(), **{**settings, "resampling_rounds": 0})
    assert once.discarded_tokens == sum(map(len, tokens_of(plain.groups)))

    twice = play(tiny_model_dir, 0, EqualFor(planned["id"], further[0]), **settings)
    assert [group.group_id for group in twice.groups] == [f"step-0/round-2/{further[1]}"]
    assert twice.resampled_groups == 2


def test_after_the_last_round_a_group_without_spread_stays_and_is_counted(
    tiny_model_dir: Path,
) -> None:
    logger = Remembered()
    trainer = make_trainer(
        tiny_model_dir, reward=MadeUp(0.5), logger=logger, **FOUR_STEPS, resampling_rounds=2
    )
    train(trainer)

    for _, metrics in logger.steps:
        assert metrics["rollout/resampled_groups"] == 2
        assert metrics["rollout/discarded_tokens"] > 0
        assert metrics["rollout/episodes"] == 4
        assert metrics["reward/groups_without_spread"] == 1
        assert metrics["rows/trained"] == 0


def test_the_same_scenario_in_a_later_round_is_played_with_other_seeds(
    tiny_model_dir: Path,
) -> None:
    # three scenarios in every step: there is no other to go on with
    settings: dict[str, Any] = {"num_generations": 2, "num_episodes": 9}
    settings["per_device_train_batch_size"] = 3
    first = play(tiny_model_dir, 0, MadeUp(0.5), **settings, resampling_rounds=0)
    later = play(tiny_model_dir, 0, MadeUp(0.5), **settings, resampling_rounds=1)

    assert {g.scenario["id"] for g in first.groups} == {g.scenario["id"] for g in later.groups}
    assert later.resampled_groups == 3
    assert not set(tokens_of(first.groups)) & set(tokens_of(later.groups))


def test_conversations_come_back_from_json_as_they_were(tiny_model_dir: Path) -> None:
    (group,) = play(tiny_model_dir, 0, LettersE(), num_generations=2, num_episodes=4).groups
    group.trajectories[0].turns[0].metadata["made of"] = object
    group.trajectories[0].turns[0].metadata["by pair"] = {(1, 2): 0.5}
    again = group_from_json(group_to_json(group))

    assert again.trajectories[0].turns[0].metadata["made of"] == str(object)
    assert again.trajectories[0].turns[0].metadata["by pair"] == {"(1, 2)": 0.5}
    group.trajectories[0].turns[0].metadata.clear()
    again.trajectories[0].turns[0].metadata.clear()
    assert again == group
    answer = again.trajectories[1].assistant_turns[1]
    assert answer.sample is again.trajectories[1].samples[1]
