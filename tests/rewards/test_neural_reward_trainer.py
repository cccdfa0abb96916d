"""`NeuralRewardTrainer`: from pairs and from ratings, saved, loaded, used in `train`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import ConfigurationError, DataError, TrainingError
from stateset_agents.rewards.learned import LearnedReward
from stateset_agents.training.neural_reward_trainer import NeuralRewardTrainer
from stateset_agents.training.rated_reward_model import area_under_curve
from stateset_agents.training.reward_model_calibration import fit_rated_calibration
from stateset_agents.training.reward_model_config import RewardModelConfig
from stateset_agents.training.train import train
from tests.training.runs import SCENARIOS, make_agent

QUICK: dict[str, Any] = {
    "trained_layers": 1,
    "dtype": "float32",
    "num_epochs": 6,
    "learning_rate": 3e-3,
    "head_learning_rate": 3e-3,
    "batch_pairs": 6,
    "pack_tokens": 512,
}
ITEMS = ("lamp", "shirt", "parcel", "phone")


def _asked(number: int) -> str:
    return f"My {ITEMS[number % 4]} number {number} came broken."


def _good(number: int) -> str:
    return "Could you please tell me your order number?" + " Thank you." * (number % 2)


def _bad(number: int) -> str:
    return "I do not know." + " It is what it is, sorry for that." * (1 - number % 2)


PAIRS = [(_asked(n), _good(n), _bad(n)) for n in range(40)]
RATED = [
    {"prompt": _asked(n // 2), "completion": answer(n // 2), "label": answer is _good}
    for n, answer in enumerate([_good, _bad] * 30)
]


async def test_ratings_whose_only_bad_one_is_kept_back_are_refused_before_training(
    tiny_model_dir: Path,
) -> None:
    given = [{"prompt": _asked(n), "completion": _good(n), "label": n < 24} for n in range(25)]
    # with this seed the last answer is among the ten that are kept back for calibration
    settings = {**QUICK, "calibration_share": 0.4, "seed": 1}
    with pytest.raises(DataError, match="kept back for calibration hold all of the other kind"):
        await NeuralRewardTrainer(tiny_model_dir, given, heldout_data=RATED, **settings).train()


def _turns(answer: str) -> list[ConversationTurn]:
    return [
        ConversationTurn(role="user", content=_asked(77)),
        ConversationTurn(role="assistant", content=answer),
    ]


async def test_a_reward_from_pairs_prefers_what_people_did_and_comes_back_from_its_folder(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    trainer = NeuralRewardTrainer(
        model_name=str(tiny_model_dir), preference_data=PAIRS, save_dir=tmp_path / "reward", **QUICK
    )

    reward = await trainer.train()

    assert trainer.metrics["heldout_pairs"] == 8
    assert trainer.metrics["heldout_accuracy"] == 1.0
    assert trainer.metrics["length_baseline_accuracy"] < 0.8
    loaded = LearnedReward.load(tmp_path / "reward", dtype="float32")
    for answer in (_good(77), _bad(77)):
        first = await reward.compute_reward(_turns(answer))
        second = await loaded.compute_reward(_turns(answer))
        assert first.score == pytest.approx(second.score, abs=1e-5)
    assert (await reward.compute_reward(_turns(_good(77)))).score > 0.6
    assert (await reward.compute_reward(_turns(_bad(77)))).score < 0.4
    # safetensors and JSON alone: loading runs no code
    kinds = {path.suffix for path in (tmp_path / "reward").iterdir()}
    assert kinds <= {".safetensors", ".json", ".jinja"}
    await _trains_an_agent(reward, tiny_model_dir)


async def _trains_an_agent(reward: LearnedReward, folder: Path) -> None:
    """What comes out goes into `train` as it is."""
    agent = await train(
        make_agent(folder),
        ConversationEnvironment(SCENARIOS, max_turns=2),
        reward,
        num_episodes=1,
        num_generations=2,
        gradient_accumulation_steps=1,
        bf16=False,
        kl_sample_rows=0,
    )
    await agent.engine.aclose()


async def test_a_reward_from_rated_answers_gives_the_probability_of_a_good_rating(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    trainer = NeuralRewardTrainer(tiny_model_dir, RATED, weight=0.5, **QUICK)

    reward = await trainer.train()
    reward.save(tmp_path / "saved")

    assert trainer.metrics["heldout_auc"] == 1.0
    assert trainer.metrics["length_baseline_auc"] < 0.8
    assert reward.weight == 0.5
    assert (await reward.compute_reward(_turns(_good(77)))).score > 0.6
    assert (await reward.compute_reward(_turns(_bad(77)))).score < 0.4
    card = json.loads((tmp_path / "saved" / "reward_model.json").read_text())
    assert card["calibration"]["temperature"] == trainer.metrics["temperature"]


async def test_a_model_with_fewer_layers_than_the_default_trains_what_it_has(
    tiny_model_dir: Path,
) -> None:
    settings = {name: value for name, value in QUICK.items() if name != "trained_layers"}

    trainer = NeuralRewardTrainer(tiny_model_dir, PAIRS, **{**settings, "num_epochs": 1})

    assert trainer.config.trained_layers > 2  # what the tiny model has
    await trainer.train()
    asked_for = NeuralRewardTrainer(tiny_model_dir, PAIRS, trained_layers=3)
    with pytest.raises(ConfigurationError, match="trained_layers is 3, and 2 layers are used"):
        await asked_for.train()


async def test_a_floor_that_is_not_reached_is_an_error_and_nothing_is_written(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    # what is right is drawn by lot, so nothing can be learned
    lot = [pair if n % 3 else (pair[0], pair[2], pair[1]) for n, pair in enumerate(PAIRS)]
    trainer = NeuralRewardTrainer(
        tiny_model_dir,
        lot,
        save_dir=tmp_path / "reward",
        min_heldout_accuracy=1.0,
        **{**QUICK, "num_epochs": 1},
    )

    with pytest.raises(TrainingError, match="min_heldout_accuracy is 1"):
        await trainer.train()
    assert not (tmp_path / "reward").exists()
    assert trainer.metrics["heldout_accuracy"] < 1


async def test_a_reward_that_knows_no_more_than_length_is_warned_of(
    tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    longer = [(f"Question {n}?", "Yes, " * 8 + "it is.", "No.") for n in range(20)]
    trainer = NeuralRewardTrainer(tiny_model_dir, longer, **{**QUICK, "num_epochs": 1})

    with caplog.at_level(logging.WARNING):
        await trainer.train()

    assert "no better than by length alone" in caplog.text


async def test_held_out_preferences_are_of_conversations_that_were_not_trained_on(
    tiny_model_dir: Path,
) -> None:
    # two pairs for each question: four questions of twenty are held out, both pairs of each
    twice = [*PAIRS[:20], *[(asked, f"{better} Really.", worse) for asked, better, worse in
             PAIRS[:20]]]  # fmt: skip
    trainer = NeuralRewardTrainer(tiny_model_dir, twice, **{**QUICK, "num_epochs": 1})

    await trainer.train()

    assert trainer.metrics["heldout_pairs"] == 8
    assert trainer.metrics["train_pairs"] + trainer.metrics["calibration_pairs"] == 32


def test_what_cannot_be_trained_on_is_refused_before_anything_is_loaded() -> None:
    rated = {"prompt": "q", "completion": "a", "label": 1}
    with pytest.raises(DataError, match="preference 0"):
        NeuralRewardTrainer("gpt2", [{"text": "x"}])
    with pytest.raises(DataError, match="of two kinds"):
        NeuralRewardTrainer("gpt2", [("better", "worse")], heldout_data=[rated])
    with pytest.raises(ConfigurationError, match="beside it learning_rate"):
        NeuralRewardTrainer("gpt2", [("a", "b")], config=RewardModelConfig(), learning_rate=1e-3)
    with pytest.raises(ConfigurationError, match="num_epoch"):
        NeuralRewardTrainer("gpt2", [("a", "b")], num_epoch=2)


async def test_too_few_preferences_say_how_many_it_takes(tiny_model_dir: Path) -> None:
    with pytest.raises(DataError, match="15 preferences were given; at least 16 are needed, 8 to"):
        NeuralRewardTrainer(tiny_model_dir, PAIRS[:15])
    with pytest.raises(DataError, match=r"5 training preference pairs were given; .* at least 8"):
        await NeuralRewardTrainer(tiny_model_dir, PAIRS[:5], heldout_data=PAIRS[5:13]).train()
    good = [one for one in RATED if one["label"]]
    with pytest.raises(DataError, match="good ones and bad ones"):
        await NeuralRewardTrainer(tiny_model_dir, good).train()


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], 0.75),  # scikit-learn's own example
        ([1.0, 1.0, 1.0, 1.0], 0.5),
        ([0.0, 0.0, 1.0, 1.0], 1.0),
        ([0.5, 0.0, 0.5, 1.0], 0.875),  # a tie counts a half
    ],
)
def test_the_area_under_the_curve(scores: list[float], expected: float) -> None:
    good = torch.tensor([False, False, True, True])

    assert area_under_curve(torch.tensor(scores), good) == pytest.approx(expected)


def test_ratings_are_calibrated_to_probabilities() -> None:
    # of those at -2 a quarter is good, of those at 4 three quarters: the logit rises by 2 ln 3 over
    # 6, so the temperature is 6 / (2 ln 3), and the middle is 1; Platt's targets pull a little
    scores = torch.tensor([-2.0, 4.0]).repeat_interleave(400)
    labels = torch.cat([torch.arange(400) < 100, torch.arange(400) < 300]).double()

    calibration = fit_rated_calibration(scores, labels)

    assert calibration.temperature == pytest.approx(6 / (2 * torch.log(torch.tensor(3.0)).item()),
                                                    rel=0.02)  # fmt: skip
    assert calibration.centre == pytest.approx(1.0, abs=0.02)
