"""Every algorithm of the table finds a policy that is known to be best."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateset_agents.training.algorithms import ALGORITHMS
from tests.training.learning import SEEDS, learn


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_reaches_the_best_policy_from_five_seeds(
    tiny_model_dir: Path, algorithm: str
) -> None:
    for seed in SEEDS:
        assert learn(tiny_model_dir, algorithm, seed).reached, seed
