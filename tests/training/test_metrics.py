"""Metrics of a step, against values worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from stateset_agents.training.metrics import sampling_metrics
from stateset_agents.training.objective import objective_of
from tests.training.made import make_config, make_rows, to_batch

# pi_old / pi_sampling of the four sampled tokens of two rows.
RATIOS = ((0.25, 1.0), (3.0, 2.0))


@pytest.mark.parametrize(
    ("settings", "truncated", "masked"),
    [
        ({"importance_sampling_cap": None}, 0, 0),
        ({"importance_sampling_cap": 2.0}, 0.25, 0),
        ({"importance_sampling_cap": 1.5}, 0.5, 0),
        ({"importance_sampling_cap": 2.0, "importance_sampling": "mask"}, 0, 0.25),
        (
            {
                "importance_sampling_cap": 2.0,
                "importance_sampling_floor": 0.5,
                "importance_sampling": "mask",
            },
            0,
            0.5,
        ),
    ],
)
def test_ratios_and_the_share_that_was_held_back(
    settings: dict[str, Any], truncated: float, masked: float
) -> None:
    found = sampling_metrics(batch_of(), objective_of(make_config(**settings)))

    assert found == pytest.approx(
        {
            "sampling_ratio_mean": (0.25 + 1 + 3 + 2) / 4,
            "sampling_ratio_max": 3.0,
            "sampling_truncated_fraction": truncated,
            "sampling_masked_fraction": masked,
        }
    )


def test_by_sequence_a_ratio_is_the_product_over_its_row() -> None:
    settings = {"importance_sampling_level": "sequence", "importance_sampling_cap": 5.0}
    found = sampling_metrics(batch_of(), objective_of(make_config(**settings)))

    assert found == pytest.approx(
        {
            "sampling_ratio_mean": (0.25 + 0.25 + 6 + 6) / 4,
            "sampling_ratio_max": 6.0,
            "sampling_truncated_fraction": 0.5,
            "sampling_masked_fraction": 0,
        }
    )


def batch_of() -> Any:
    rows = [
        replace(row, loss_mask=(False, True, False, True), token_ids=(1, 2, 3, 4), turn_index=())
        for row in make_rows(groups=1, generations=2)
    ]
    rows = [replace(row, sampling_logprobs=(0.0, -1.0, 0.0, -2.0)) for row in rows]
    batch = to_batch(rows, torch.ones(2, dtype=torch.float64))
    old = [
        [math.nan, -1.0 + math.log(first), math.nan, -2.0 + math.log(second)]
        for first, second in RATIOS
    ]
    return replace(batch, old_logprobs=torch.tensor(old))
