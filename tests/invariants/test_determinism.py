"""One seed, one result: whole runs, and single samples whatever else is in their batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.trajectory import TrajectoryGroup
from stateset_agents.rollout.collect import collect_groups
from tests.training.runs import SCENARIOS, Remembered, Weights, make_agent, make_trainer, train

RUN: dict[str, Any] = {
    "num_episodes": 6,
    "gradient_accumulation_steps": 2,
    "num_generations": 3,
    "num_iterations": 2,
    "lora_dropout": 0.1,
    "seed": 7,
}

_IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tests.invariants.test_determinism import run_once

save_file(run_once(Path(sys.argv[1]), off_policy_steps=0)[0], sys.argv[2])
"""


def run_once(folder: Path, off_policy_steps: int) -> tuple[Weights, list[dict[str, float]]]:
    """Weights, and metrics but for those of time. What was drawn before has no say: dropout draws
    from torch's generator.
    """
    torch.seed()
    logger = Remembered()
    weights = train(make_trainer(folder, logger=logger, **RUN, off_policy_steps=off_policy_steps))
    timed = ("seconds/", "tokens_per_second/")
    return weights, [
        {name: value for name, value in metrics.items() if not name.startswith(timed)}
        for _, metrics in logger.steps
    ]


def assert_bit_for_bit(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("off_policy_steps", [0, 1])
def test_two_runs_with_one_seed_are_identical_bit_for_bit(
    tiny_model_dir: Path, off_policy_steps: int
) -> None:
    (weights, metrics), (others, other_metrics) = (
        run_once(tiny_model_dir, off_policy_steps) for _ in range(2)
    )
    assert_bit_for_bit(weights, others)
    assert metrics == other_metrics
    assert metrics[-1]["rollout/answers_mean"] > 1


def test_a_run_in_another_process_with_another_hash_seed_is_identical_bit_for_bit(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    hash_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    out = tmp_path / "weights.safetensors"
    subprocess.run(
        [sys.executable, "-c", _IN_ANOTHER_PROCESS, str(tiny_model_dir), str(out)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
    )
    assert_bit_for_bit(load_file(out), run_once(tiny_model_dir, off_policy_steps=0)[0])


async def test_a_sample_does_not_depend_on_what_else_is_in_its_batch(tiny_model_dir: Path) -> None:
    agent = make_agent(tiny_model_dir, max_new_tokens=16)
    await agent.initialize()
    environment = ConversationEnvironment(SCENARIOS, max_turns=4)

    async def play(scenarios: list[dict[str, Any]], generations: int) -> list[TrajectoryGroup]:
        return await collect_groups(
            agent, environment, scenarios, num_generations=generations, seed=5
        )

    together = await play(SCENARIOS, 6)
    alone = [(await play([scenario], 1))[0] for scenario in reversed(SCENARIOS)][::-1]
    await agent.engine.aclose()

    for group, single in zip(together, alone, strict=True):
        pairs = zip(group.trajectories[0].samples, single.trajectories[0].samples, strict=True)
        for in_company, by_itself in pairs:
            assert in_company.prompt_token_ids == by_itself.prompt_token_ids
            assert in_company.token_ids == by_itself.token_ids
            assert in_company.logprobs == pytest.approx(by_itself.logprobs, abs=1e-5)
