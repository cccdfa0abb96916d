"""What may not change a whole run, and what its rows must hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stateset_agents.training.algorithms import ALGORITHMS
from tests.training.runs import Remembered, make_trainer, train

ONE_STEP = {"num_episodes": 8, "num_generations": 2}


def test_eight_groups_at_once_equal_eight_accumulated_bit_for_bit(tiny_model_dir: Path) -> None:
    weights = [
        train(
            make_trainer(
                tiny_model_dir,
                **ONE_STEP,
                per_device_train_batch_size=at_once,
                gradient_accumulation_steps=8 // at_once,
            )
        )
        for at_once in (8, 1)
    ]

    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_sampled_token_and_no_other_is_trained_on(
    tiny_model_dir: Path, algorithm: str
) -> None:
    logger = Remembered()
    settings = {"num_episodes": 1, "resampling_rounds": 0}
    # with a KL term no row is left out, and a group of two is a pair
    settings |= (
        {"num_generations": 2} if ALGORITHMS[algorithm].on_pairs else {"kl_coefficient": 0.01}
    )

    train(make_trainer(tiny_model_dir, logger=logger, algorithm=algorithm, **settings))

    [(_, metrics)] = logger.steps
    assert metrics["rollout/answers_mean"] > 1
    assert metrics["rows/trained_tokens"] == metrics["rollout/sampled_tokens"]
    assert metrics["rows/tokens"] > metrics["rows/trained_tokens"]
