"""The steps of the line in the order in which they run, with how long and how often.

What a step reads and writes is in `dvc.yaml`; a test holds this order against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

StepName = Literal[
    "fetch_base_model",
    "validate_scenarios",
    "train_reward_model",
    "tune",
    "train_policy",
    "evaluate_policy",
    "register_model",
    "promote_model",
]

MINUTE = 60.0
HOUR = 60 * MINUTE


@dataclass(frozen=True, slots=True)
class Step:
    """How one step is run.

    `retries` are for a step that was killed or crashed. One that ended with an error of its own
    (wrong data, a floor that was missed) would end with it again and is not tried again.
    """

    name: StepName
    retries: int
    retry_delay_seconds: float
    time_limit_seconds: float


STEPS: tuple[Step, ...] = (
    Step("fetch_base_model", 2, 10.0, 1 * HOUR),
    Step("validate_scenarios", 1, 2.0, 30 * MINUTE),
    Step("train_reward_model", 1, 5.0, 6 * HOUR),
    Step("tune", 2, 5.0, 240 * HOUR),  # a retry goes on with the study
    Step("train_policy", 2, 5.0, 72 * HOUR),  # a retry goes on from the last checkpoint
    Step("evaluate_policy", 1, 5.0, 12 * HOUR),
    Step("register_model", 2, 10.0, 1 * HOUR),
    Step("promote_model", 2, 10.0, 30 * MINUTE),
)


def steps_until(last: StepName) -> tuple[Step, ...]:
    """The steps up to `last`, itself included."""
    return STEPS[: get_args(StepName).index(last) + 1]
