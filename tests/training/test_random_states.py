"""Random generators go on where they were, and each process has its own."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from stateset_agents.training.random_states import (
    random_states,
    restore_random_states,
    seed_generators,
    seed_of_process,
)


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_random_states_come_back_after_json() -> None:
    saved = json.dumps(random_states())
    expected = draw()
    restore_random_states(json.loads(saved))
    assert draw() == expected


def test_the_same_seed_begins_all_generators_anew() -> None:
    seed_generators(7)
    expected = draw()
    seed_generators(7)
    assert draw() == expected


def test_the_first_process_has_the_runs_seed_and_every_other_one_of_its_own() -> None:
    assert seed_of_process(7, rank=0) == seed_of_process(7, rank=0, step=3) == 7
    others = {seed_of_process(7, rank, step) for rank in (1, 2, 3) for step in (0, 5)}
    assert len(others | {7}) == 7


def test_states_of_gpus_that_are_not_here_are_left_out_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = torch.cuda.device_count()
    states = random_states()
    states["cuda"] = [*states["cuda"], states["torch"]]
    expected = draw()

    restore_random_states(states)

    assert draw() == expected
    assert f"{here + 1} GPUs were saved and this machine shows {here}" in caplog.text
