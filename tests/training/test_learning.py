"""Every algorithm of the table finds a policy that is known to be best."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateset_agents.training.algorithms import ALGORITHMS, Algorithm
from tests.training.learning import SEEDS, STATED, learn


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_reaches_the_best_policy_from_five_seeds(
    tiny_model_dir: Path, algorithm: Algorithm
) -> None:
    taken = [learn(tiny_model_dir, algorithm, seed).conversations for seed in SEEDS]

    assert [n for n in taken if n is None or n > STATED] == [], taken
