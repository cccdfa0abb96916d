"""Preference pairs in the place of played conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.loading import load_tokenizer
from stateset_agents.rollout.rows import trajectory_rows
from stateset_agents.training.batching import step_rows
from stateset_agents.training.callbacks import CheckpointCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.preferences import Preference, preference_group
from stateset_agents.training.step_batch import make_step_batch
from stateset_agents.training.trainer import Trainer
from stateset_agents.training.update import update
from tests.training.runs import SCENARIOS, LettersE, Remembered, make_agent, train


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def pair(number: int = 0) -> Preference:
    return Preference(
        (said("user", f"Where is order {number}?"),),
        (said("assistant", "On its way."), said("user", "Thanks."), said("assistant", "Bye!")),
        (said("assistant", "No."),),
    )


def make_trainer(folder: Path, logger: Any = None, count: int = 3, **settings: Any) -> Trainer:
    config = {
        "algorithm": "dpo", "pairs_from": "preferences", "num_episodes": 6,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "use_lora": True, "bf16": False,
        "logging_steps": 1, "warmup_ratio": 0.0,
    }  # fmt: skip
    return Trainer(
        make_agent(folder),
        ConversationEnvironment(SCENARIOS, max_turns=4),
        LettersE(),
        TrainingConfig(**{**config, **settings}),
        logger=logger,
        preferences=[pair(number) for number in range(count)],
    )


def test_every_answer_of_a_continuation_is_trained_on_in_its_context(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)

    chosen, rejected = preference_group(pair(), "g", tokenizer).trajectories

    assert (chosen.episode_reward, rejected.episode_reward) == (1.0, 0.0)
    (row,) = trajectory_rows(chosen)  # the second answer's context extends the first's
    trained = [t for t, sampled in zip(row.token_ids, row.loss_mask, strict=True) if sampled]
    assert trained == [*tokenizer.encode_answer("On its way."), *tokenizer.encode_answer("Bye!")]
    # what leads to the second answer is what a chat would have had
    last = len(row.token_ids) - len(tokenizer.encode_answer("Bye!"))
    assert list(row.token_ids[:last]) == tokenizer.render([*pair().messages, *pair().chosen[:2]])


def test_pairs_are_learnt_and_nothing_is_played(tiny_model_dir: Path) -> None:
    logger = Remembered()

    train(make_trainer(tiny_model_dir, logger, num_episodes=24))

    first, last = logger.steps[0][1], logger.steps[-1][1]
    assert first["policy/loss"] == pytest.approx(0.693147, rel=1e-4)
    assert last["policy/loss"] < 0.8 * first["policy/loss"]
    assert last["policy/pair_accuracy"] == 1
    assert last["seconds/rollout"] == 0


def test_the_reference_is_asked_once_for_each_pair(tiny_model_dir: Path) -> None:
    """The cache is what a second visit reads: a reference that it does not hold, nobody asks."""
    trainer = make_trainer(tiny_model_dir, num_episodes=12)
    train(trainer)
    learner = trainer.learner
    groups = [preference_group(pair(n), f"0.{n}", trainer.agent.tokenizer) for n in range(3)]
    rows = step_rows(groups, trainer.config)
    batch = make_step_batch(
        rows,
        learner.objective,
        trainer.config,
        pad_token_id=trainer.agent.tokenizer.pad_token_id,
        temperature=1.0,
    )
    cache = learner.reference_cache
    assert cache is not None
    for group in range(3):
        kept = batch.select((batch.group_index == group).nonzero().squeeze(1))
        assert cache.get(kept) is not None
        # a policy that had never moved from what the cache says has lost nothing on any pair
        cache.put(kept, torch.full_like(kept.sampling_logprobs, -100.0))
    metrics = update(learner, batch, 0.0)

    assert metrics["chosen_reward"] > 10  # against the -100 nats a token of the cache


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    whole = train(make_trainer(tiny_model_dir), [CheckpointCallback(tmp_path, 1, keep=9)])

    resumed = train(make_trainer(tiny_model_dir), [], tmp_path / "step_2")

    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"count": 0}, "needs preference pairs, and none were given"),
        ({"pairs_from": "rollouts"}, "3 preference pairs were given"),
        ({"algorithm": "grpo", "pairs_from": "rollouts"}, "plays scenarios"),
        ({"algorithm": "grpo"}, "which is not trained on pairs"),
    ],
)
def test_pairs_without_an_algorithm_for_them_and_the_reverse_are_errors(
    tiny_model_dir: Path, settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        make_trainer(tiny_model_dir, **settings)
