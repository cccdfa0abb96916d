"""Steps that go wrong in part: what each means, that it is counted, and that training goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.exceptions import RewardError
from stateset_agents.training.trainer import Trainer
from tests.tiny_model import make_tiny_tokenizer
from tests.training.runs import (
    MadeUp,
    Remembered,
    Weights,
    make_trainer,
    train,
)

ALGORITHMS = ["grpo", "gspo", "dapo", "dr_grpo"]
SMALL: dict[str, Any] = {"num_episodes": 2, "num_generations": 4, "warmup_ratio": 0}


def assert_finite(weights: Weights) -> None:
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


def moved(trainer: Trainer, before: Weights) -> bool:
    return any(not torch.equal(before[n], value) for n, value in trainer.policy.trainable.items())


def weights_of(trainer: Trainer) -> Weights:
    return {name: value.detach().clone() for name, value in trainer.policy.trainable.items()}


@pytest.fixture(scope="module")
def silent_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that most often samples the stop token at once.

    One channel of the hidden state is large whatever was said, and the head gives it to that token.
    """
    folder = tmp_path_factory.mktemp("silent_model")
    tokenizer = make_tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = 10.0
        model.get_output_embeddings().weight[tokenizer.eos_token_id, 0] = 1.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_empty_replies_train_like_others(silent_model_dir: Path, algorithm: str) -> None:
    logger = Remembered()
    trainer = make_trainer(silent_model_dir, logger=logger, algorithm=algorithm, **SMALL)
    before = weights_of(trainer)

    assert_finite(train(trainer))

    assert moved(trainer, before)
    answers = [
        answer
        for group in trainer.groups
        for trajectory in group.trajectories
        for answer in trajectory.assistant_turns
    ]
    silent = [answer for answer in answers if answer.content == ""]
    assert silent
    assert all(answer.sample is not None and len(answer.sample.token_ids) == 1 for answer in silent)
    for _, metrics in logger.steps:
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["rows/trained"] + metrics["rows/without_advantage"] == 4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_step_in_which_all_rewards_are_equal_leaves_the_weights_alone(
    silent_model_dir: Path, algorithm: str
) -> None:
    logger = Remembered()
    trainer = make_trainer(
        silent_model_dir, reward=MadeUp(0.5), logger=logger, algorithm=algorithm,
        resampling_rounds=0, overlong_buffer=0, **SMALL,
    )  # fmt: skip
    before = weights_of(trainer)

    train(trainer)

    assert not moved(trainer, before)
    for _, metrics in logger.steps:
        assert (metrics["rows/trained"], metrics["reward/groups_without_spread"]) == (0, 1)
        assert "policy/loss" not in metrics


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("algorithm", ["grpo", "gspo"])
def test_a_reward_that_is_not_finite_leaves_its_conversation_out(
    tiny_model_dir: Path, odd: float, algorithm: str
) -> None:
    logger = Remembered()
    trainer = make_trainer(
        tiny_model_dir, reward=MadeUp(1.0, odd, 0.0, 0.5), logger=logger, algorithm=algorithm,
        **SMALL,
    )  # fmt: skip

    assert_finite(train(trainer))

    for _, metrics in logger.steps:
        assert metrics["reward/nonfinite"] == 1
        assert metrics["rollout/failed"] == 0
        assert metrics["reward/mean"] == 0.5
        # of the three that are left, the one at the mean teaches nothing
        assert (metrics["rows/trained"], metrics["rows/without_advantage"]) == (2, 1)
        assert all(math.isfinite(value) for value in metrics.values())


def test_rewards_of_which_none_is_finite_end_training_and_name_the_reward(
    tiny_model_dir: Path,
) -> None:
    with pytest.raises(RewardError, match="'made up' gave no finite number"):
        train(make_trainer(tiny_model_dir, reward=MadeUp(math.nan), **SMALL))


class FailsFor(MultiTurnAgent):
    """Raises wherever a user says the word."""

    word = "order 1"

    async def generate_response(self, messages: Any) -> str:
        if any(self.word in message["content"] for message in messages):
            raise RuntimeError("no answer")
        return await super().generate_response(messages)


class SpeaksByItself(MultiTurnAgent):
    """Answers without the model, so nothing is sampled."""

    async def generate_response(self, messages: Any) -> str:
        return "Yes."


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_step_in_which_nothing_was_sampled_leaves_the_weights_alone(
    tiny_model_dir: Path, algorithm: str
) -> None:
    logger = Remembered()
    trainer = make_trainer(
        tiny_model_dir,
        agent=SpeaksByItself,
        reward=MadeUp(1.0, 0.0),
        logger=logger,
        algorithm=algorithm,
        **SMALL,
    )
    before = weights_of(trainer)

    train(trainer)

    assert not moved(trainer, before)
    for _, metrics in logger.steps:
        assert (metrics["rows/empty_trajectories"], metrics["rows/trained"]) == (4, 0)
        assert metrics["reward/mean"] == 0.5


def test_a_group_that_failed_whole_leaves_the_others_to_train(tiny_model_dir: Path) -> None:
    logger = Remembered()
    settings = {**SMALL, "num_episodes": 3, "gradient_accumulation_steps": 3}
    trainer = make_trainer(tiny_model_dir, agent=FailsFor, logger=logger, **settings)
    before = weights_of(trainer)

    assert_finite(train(trainer))

    ((_, metrics),) = logger.steps
    assert (metrics["rollout/episodes"], metrics["rollout/failed"]) == (12, 4)
    assert metrics["rows/trained"] + metrics["rows/without_advantage"] == 8
    assert moved(trainer, before)


def test_an_overlong_conversation_is_trained_on_up_to_the_limit(tiny_model_dir: Path) -> None:
    logger = Remembered()
    one_step = {**SMALL, "num_episodes": 1}
    trainer = make_trainer(tiny_model_dir, logger=logger, max_completion_length=5, **one_step)

    assert_finite(train(trainer))

    ((_, metrics),) = logger.steps
    # the user's words between the answers are longer than 5 tokens
    first = [
        len(one.samples[0].token_ids) for group in trainer.groups for one in group.trajectories
    ]
    within = sum(min(5, tokens) for tokens in first)
    assert metrics["rollout/truncated_fraction"] > 0
    assert metrics["rows/cut_tokens"] == metrics["rollout/sampled_tokens"] - within
    assert 0 < metrics["rows/trained_tokens"] <= within


def test_answers_that_were_cut_off_cost_what_the_buffer_says(tiny_model_dir: Path) -> None:
    logger = Remembered()
    one_step = {**SMALL, "num_episodes": 1}
    trainer = make_trainer(
        tiny_model_dir, reward=MadeUp(0.5), logger=logger, overlong_buffer=0.5, **one_step
    )

    train(trainer)

    # 8 tokens at most: 4 cost nothing, then a quarter each
    lost = [
        sum(max(0, len(sample.token_ids) - 4) / 4 for sample in one.samples) / len(one.samples)
        for group in trainer.groups
        for one in group.trajectories
    ]
    _, metrics = logger.steps[-1]
    assert metrics["reward/overlong_penalty_mean"] == pytest.approx(sum(lost) / len(lost))
    assert metrics["reward/mean"] == 0.5
    assert (metrics["rows/trained"] > 0) == (len(set(lost)) > 1)
