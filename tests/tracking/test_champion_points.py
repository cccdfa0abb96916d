"""What the version in service was trained with, as a search tries it first."""

from __future__ import annotations

from pathlib import Path

from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.mlflow_run import start_run
from stateset_agents.tracking.registry import register_version
from stateset_agents.training.hpo import get_search_space
from stateset_agents.training.hpo.config import points_within
from stateset_agents.training.hpo.spaces import parse_space
from tasks.tune import points_of_champion

SETTINGS = {
    "train": {
        "learning_rate": 5e-05,
        "num_generations": 8,
        "clip_range_left": 0.2,
        "clip_range_right": 0.2,
        "kl_coefficient": 0.0,
        "lr_schedule": "linear",
        "scale_advantages": True,
        "max_grad_norm": None,
    },
    "agent": {"temperature": 0.7},
    "rewards": {"temperature": 99},
}


def test_it_is_tried_first_as_far_as_it_lies_in_the_space(
    tracking: TrackingConfig, tiny_model_dir: Path
) -> None:
    assert points_of_champion(tracking) == []
    with start_run(tracking, "train_policy", params=SETTINGS) as train:
        pass
    with start_run(tracking, "register_model") as run:
        version = register_version(tracking, run, tiny_model_dir, tags={"run.train": train.run_id})
    assert points_of_champion(tracking) == []  # registered, and not in service
    run.client.set_registered_model_alias(version.name, "champion", version.version)
    points = points_of_champion(tracking)
    assert points_within(points, parse_space("grpo")) == [
        {"learning_rate": 5e-05, "num_generations": 8, "clip_range": 0.2, "temperature": 0.7}
    ]
    (full,) = points_within(points, parse_space(get_search_space("full")))
    assert (full["lr_schedule"], full["scale_advantages"]) == ("linear", True)
    assert "max_grad_norm" not in full
