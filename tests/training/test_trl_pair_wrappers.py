"""TRL's trainers of pairs: an agent and a reward come to prefer what the pairs prefer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.data.schemas import PreferencePair
from stateset_agents.exceptions import ConfigurationError, DataError, ModelSourceError
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.pair_losses import PairLogprobs, pair_loss
from stateset_agents.training.trl_config import pair_settings
from stateset_agents.training.trl_dpo_wrapper import TRLDPOTrainerWrapper
from stateset_agents.training.trl_pairs import conversational_rows
from stateset_agents.training.trl_reward_wrapper import SequenceReward, TRLRewardTrainerWrapper
from tests.training.runs import Remembered, make_agent

PAIRS = [
    {
        "prompt": f"Where is order {number}?",
        "chosen": "Could you please tell me the order number?",
        "rejected": "I cannot log in.",
    }
    for number in range(4)
]
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_epochs": 12,
    "learning_rate": 3e-3,
    "warmup_ratio": 0,
    "bf16": False,
    "logging_steps": 1,
    "save_steps": 0,
    "max_prompt_length": 64,
    "max_completion_length": 64,
}


def turns(question: str, answer: str) -> list[ConversationTurn]:
    return [
        ConversationTurn(role="user", content=question),
        ConversationTurn(role="assistant", content=answer),
    ]


def spoken(agent: MultiTurnAgent) -> str:
    async def speak() -> str:
        await agent.initialize()
        agent.config.seed = 0
        return await agent.generate_response([{"role": "user", "content": "Where is order 1?"}])

    return asyncio.run(speak())


@pytest.mark.parametrize("use_lora", [False, True], ids=["all weights", "adapter"])
def test_dpo_makes_the_agent_prefer_what_was_chosen(
    tiny_model_dir: Path, tmp_path: Path, use_lora: bool
) -> None:
    logger = Remembered()
    rate = {"use_lora": use_lora, "learning_rate": 3e-2 if use_lora else 3e-3}
    wrapper = TRLDPOTrainerWrapper(
        agent=make_agent(tiny_model_dir),
        preference_data=PAIRS,
        config=TrainingConfig(**{**SETTINGS, **rate}),
        output_dir=tmp_path / "trl",
        logger=logger,
    )
    agent = asyncio.run(wrapper.train())

    assert agent is wrapper.agent
    losses = [metrics["loss"] for _, metrics in logger.steps if "loss" in metrics]
    assert len(losses) == 12
    # before anything is learned policy and reference are one, so h is 0 in our formula as in TRL's
    zero = torch.zeros(1)
    alike = PairLogprobs(zero, zero, zero, zero, zero + 1, zero + 1)
    first = pair_loss(alike, variant="sigmoid", beta=0.1).item()
    assert losses[0] == pytest.approx(first, abs=1e-5)
    assert losses[-1] < 0.7 * losses[0]
    assert spoken(agent) != spoken(make_agent(tiny_model_dir))
    wrapper.save(tmp_path / "final")
    assert (tmp_path / "final" / "tokenizer_config.json").is_file()


def test_a_reward_trained_by_trl_scores_the_chosen_higher_and_survives_the_disk(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    wrapper = TRLRewardTrainerWrapper(
        model_name=tiny_model_dir,
        preference_data=PAIRS,
        config=TrainingConfig(**SETTINGS),
        output_dir=tmp_path / "trl",
    )
    reward = asyncio.run(wrapper.train())
    conversations = [
        (turns(PAIRS[0]["prompt"], PAIRS[0][part]), {}) for part in ("chosen", "rejected")
    ]

    good, bad = (one.score for one in asyncio.run(reward.compute_rewards(conversations)))
    assert 0 <= bad < good - 0.2
    assert good <= 1
    reward.save(tmp_path / "reward")
    loaded = SequenceReward.load(tmp_path / "reward", weight=0.5)
    assert loaded.weight == 0.5
    assert loaded.max_length == 128
    again = asyncio.run(loaded.compute_rewards(conversations))
    assert [one.score for one in again] == pytest.approx([good, bad], abs=1e-6)


def test_a_pair_of_texts_is_one_of_messages_and_a_pair_of_the_project_stays_what_it_is() -> None:
    messages = {
        "prompt": [{"role": "user", "content": "a"}],
        "chosen": [{"role": "assistant", "content": "b"}],
        "rejected": [{"role": "assistant", "content": "c"}],
    }
    texts = {"prompt": "a", "chosen": "b", "rejected": "c"}
    pair = PreferencePair(id="one", **messages)
    assert conversational_rows([texts, messages, pair]) == [messages] * 3


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "there are no preference pairs"),
        ([{"prompt": "a", "chosen": "b"}], "pair 0: has no 'rejected'"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], "chosen equals rejected"),
        ([{"prompt": "a", "chosen": 3, "rejected": "b"}], "pair 0: chosen"),
    ],
)
def test_what_is_no_pair_is_named(pairs: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        conversational_rows(pairs)


def settings_of(**ours: Any) -> dict[str, Any]:
    return pair_settings(
        TrainingConfig(**ours), pairs=10, trainer="DPOTrainer", overrides={"padding_free": False}
    )


def test_settings_of_pairs_are_trls() -> None:
    found = settings_of(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_epochs=4,
        warmup_ratio=0.25,
        max_prompt_length=100,
        max_completion_length=28,
        learning_rate=1e-4,
        lr_schedule="linear",
    )
    expected = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 4,
        "warmup_steps": 3,  # a quarter of 4 epochs of 3 steps
        "max_length": 128,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "linear",
        "padding_free": False,
    }
    assert {name: found[name] for name in expected} == expected


def test_what_has_no_meaning_for_pairs_or_no_counterpart_is_an_error(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="num_generations=4 has no counterpart in TRL's"):
        settings_of(num_generations=4)
    with pytest.raises(ConfigurationError, match="use_lora=False"):
        TRLRewardTrainerWrapper(tiny_model_dir, PAIRS, TrainingConfig(**SETTINGS, use_lora=True))
    with pytest.raises(ConfigurationError, match="a stub has no weights"):
        TRLDPOTrainerWrapper(
            make_agent(tiny_model_dir, use_stub_model=True), PAIRS, TrainingConfig(**SETTINGS)
        )
    with pytest.raises(ModelSourceError, match=r"is not a folder: name one that save\(\)"):
        SequenceReward.load(tiny_model_dir / "nothing")
