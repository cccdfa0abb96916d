"""Killed with SIGKILL and resumed, training ends with the weights of an uninterrupted run."""

from __future__ import annotations

import random
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.training.callbacks import CheckpointCallback, EarlyStoppingCallback
from stateset_agents.training.checkpoint import latest_checkpoint
from tests.training.runs import (
    KILLS,
    FewLevels,
    LettersE,
    Moment,
    Remembered,
    Weights,
    finished_weights,
    make_trainer,
    run_in_process,
    train,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "grpo, adapter": {"algorithm": "grpo", "use_lora": True, "lora_dropout": 0.1},
    "gspo, full": {"algorithm": "gspo", "use_lora": False, "kl_coefficient": 0.05},
    "grpo, adapter, a step ahead": {"use_lora": True, "lora_dropout": 0.1, "off_policy_steps": 1},
}


def assert_bit_for_bit(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_killed_again_and_again_ends_where_an_uninterrupted_one_does(
    tiny_model_dir: Path, tmp_path: Path, variant: str
) -> None:
    settings = VARIANTS[variant]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    assert run_in_process(tiny_model_dir, whole, settings, kill=None) == 0

    for kill in (("rollout", 0), ("update", 1), ("writing", 2), ("rollout", 2), ("naming", 3)):
        assert run_in_process(tiny_model_dir, broken, settings, kill) == -9, kill
    assert latest_checkpoint(broken / "checkpoints") == broken / "checkpoints" / "step_2"
    assert run_in_process(tiny_model_dir, broken, settings, kill=None) == 0

    assert_bit_for_bit(finished_weights(whole), finished_weights(broken))
    leftovers = [path.name for path in (broken / "checkpoints").iterdir()]
    assert sorted(leftovers) == ["step_3", "step_4"]


NUM_MOMENTS = 25
# Two epochs of four steps, two optimizer steps each.
TWO_EPOCHS = {"num_episodes": 4, "num_epochs": 2, "num_iterations": 2, "num_generations": 3}
TOTAL_STEPS = 8
EVERY_VARIANT: dict[str, dict[str, Any]] = {
    "grpo, adapter": {"algorithm": "grpo", "use_lora": True, "lora_dropout": 0.1},
    "grpo, full": {"algorithm": "grpo", "use_lora": False, "save_steps": 3},
    "gspo, adapter": {"algorithm": "gspo", "use_lora": True, "save_steps": 2},
    "gspo, full": {"algorithm": "gspo", "use_lora": False, "kl_coefficient": 0.05},
    "grpo, adapter, a step ahead": {
        "use_lora": True,
        "lora_dropout": 0.1,
        "off_policy_steps": 1,
        "save_steps": 2,
    },
    "gspo, full, a step ahead, groups replaced": {
        "algorithm": "gspo",
        "use_lora": False,
        "off_policy_steps": 1,
        "importance_sampling": "mask",
        "resampling_rounds": 2,
        "reward": FewLevels(),
    },
}


def random_moment(rng: random.Random, work: Path, seconds: float) -> Moment:
    """Half of them are named points of a step that is still to come, and half are just some time
    within what is left of the run.
    """
    newest = latest_checkpoint(work / "checkpoints")
    done = 0 if newest is None else int(newest.name.removeprefix("step_"))
    if rng.random() < 0.5:
        return rng.uniform(0, seconds * (1 - done / (TOTAL_STEPS + 1)))
    step = rng.randrange(done + 1, TOTAL_STEPS) if done + 1 < TOTAL_STEPS else done
    return rng.choice([*KILLS]), step


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("variant", EVERY_VARIANT)
def test_killed_at_25_random_moments_a_run_ends_where_an_uninterrupted_one_does(
    tiny_model_dir: Path, tmp_path: Path, variant: str
) -> None:
    settings = {**TWO_EPOCHS, **EVERY_VARIANT[variant]}
    rng = random.Random(variant)
    whole, timed = tmp_path / "whole", tmp_path / "timed"
    for work in (whole, timed):  # only the second one's processes start at once
        work.mkdir()
        started = time.perf_counter()
        assert run_in_process(tiny_model_dir, work, settings, kill=None) == 0
        seconds = time.perf_counter() - started
    assert_bit_for_bit(finished_weights(whole), finished_weights(timed))

    kills: list[Moment] = []
    for run in count():
        if len(kills) >= NUM_MOMENTS:
            break
        broken = tmp_path / f"broken-{run}"
        broken.mkdir()
        for left in (3, 2, 1, 0):
            moment = random_moment(rng, broken, seconds) if left else None
            if not kills:
                moment = "edge", TOTAL_STEPS // 2  # of the first epoch
            code = run_in_process(tiny_model_dir, broken, settings, moment)
            if code == 0:  # the moment was after the end, or there is none to come
                break
            assert code == -9, moment
            assert moment is not None
            kills.append(moment)
        assert_bit_for_bit(finished_weights(whole), finished_weights(broken))
    assert len({kill[0] for kill in kills if isinstance(kill, tuple)}) >= 4, kills


@pytest.mark.parametrize("off_policy_steps", [0, 1])
def test_what_a_resumed_run_logs_is_what_the_uninterrupted_one_did(
    tiny_model_dir: Path, tmp_path: Path, off_policy_steps: int
) -> None:
    settings = {"off_policy_steps": off_policy_steps}
    whole, resumed = Remembered(), Remembered()
    every = CheckpointCallback(tmp_path, keep=9)
    train(make_trainer(tiny_model_dir, logger=whole, **settings), [every])
    train(make_trainer(tiny_model_dir, logger=resumed, **settings), [], tmp_path / "step_2")

    assert [step for step, _ in resumed.steps] == [3, 4]
    for (_, first), (_, second) in zip(whole.steps[2:], resumed.steps, strict=True):
        timeless = {name for name in first if not name.startswith(("seconds/", "tokens_per_"))}
        assert {name: first[name] for name in timeless} == {n: second[n] for n in timeless}


def test_early_stopping_goes_on_counting_after_a_resume(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    class Constant(LettersE):
        async def compute_reward(self, turns: Any, context: Any = None) -> float:
            return 0.5

    def stopping() -> EarlyStoppingCallback:
        return EarlyStoppingCallback(patience=2)

    whole = make_trainer(tiny_model_dir, reward=Constant())
    train(whole, [CheckpointCallback(tmp_path, keep=9), stopping()])
    resumed = make_trainer(tiny_model_dir, reward=Constant())
    train(resumed, [stopping()], tmp_path / "step_2")

    assert whole.step == resumed.step == 3
    assert resumed.stop_reason == "reward/mean has not risen above 0.5 for 2 steps"
