"""What single algorithms read beside the settings that all of them have: a critic's, a trust
region's, a pair loss's.

Owns these settings and the checks that the chosen algorithm reads them. It does not know torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stateset_agents.settings import Settings
from stateset_agents.training.algorithms import AdvantageBaseline, AlgorithmRow

if TYPE_CHECKING:
    from stateset_agents.training.config import TrainingConfig

CriticModel = Literal["shared", "own"]
ValueLevel = Literal["token", "turn"]
KLPlacement = Literal["loss", "reward"]

_CRITIC = (
    "critic", "critic_model", "critic_learning_rate", "value_coefficient", "value_clip",
    "value_level", "discount", "trace_decay", "kl_placement",
)  # fmt: skip


class AlgorithmSettings(Settings):
    """Settings that a row of the table reads and others do not."""

    critic: CriticModel = "shared"
    """What a critic reads where the baseline is `value`: the policy's last hidden states (`shared`:
    a head of its own, hardly any memory), or those of a model of its `own` (another model's memory
    and time)."""
    critic_model: str | None = None
    """The folder of the critic's own model, which has the policy's tokenizer. None: the model that
    the policy started from."""
    critic_learning_rate: float | None = Field(default=None, gt=0)
    """The critic's peak rate. None: 1e-3 for a head, `learning_rate` for a model of its own."""
    value_coefficient: float | None = Field(default=None, ge=0)
    """Share of the value loss's gradient that reaches the policy's own weights with
    `critic: shared`. 0: none, the head alone learns. None: the algorithm's own."""
    value_clip: float | None = Field(default=None, ge=0)
    """A value is followed no further than this from the critic's estimate before the update, in
    units of reward. 0: anywhere. None: the algorithm's own."""
    value_level: ValueLevel = "token"
    """What has a value and an advantage: each `token`, or each answer (`turn`), all of whose tokens
    then share one."""
    discount: float = Field(default=1.0, ge=0, le=1)
    """gamma: what a reward is worth one decision (`value_level`) earlier. 1: the same."""
    trace_decay: float = Field(default=0.95, ge=0, le=1)
    """lambda: 1 takes what was really earned, with all its variance; 0 believes the critic's
    estimate of the next decision."""
    kl_placement: KLPlacement = "loss"
    """Where the KL term goes: a term of the `loss`, or taken off each token's `reward`, where the
    critic learns to foresee it (with a critic alone; estimated as `k1`)."""


def problems_of_critic(
    config: TrainingConfig, row: AlgorithmRow, baseline: AdvantageBaseline
) -> Iterator[str]:
    """What of the critic's settings the algorithm does not read, or cannot work with."""
    if baseline != "value":
        yield from (
            f"{name}={getattr(config, name)!r} has no effect with "
            f'advantage_baseline="{baseline}" (set, or of algorithm={config.algorithm!r}), which '
            'has no critic: leave it out, or set advantage_baseline="value"'
            for name in _changed(config, _CRITIC)
        )
        return
    if config.critic == "shared" and config.critic_model is not None:
        yield (
            f'critic_model={config.critic_model!r} has no effect with critic="shared": set '
            'critic="own", or leave critic_model out'
        )
    if config.critic == "own" and config.value_coefficient is not None:
        yield (
            f'value_coefficient={config.value_coefficient} has no effect with critic="own", '
            "which shares no weights with the policy: leave it out"
        )
    if config.turn_discount:
        yield (
            f'turn_discount={config.turn_discount} has no effect with advantage_baseline="value", '
            "which discounts from one decision to the next: set discount"
        )
    if not row.can_credit_turns:
        yield (
            'advantage_baseline="value" has an advantage for each decision and cannot work with '
            f'algorithm="{config.algorithm}", which has one ratio and one advantage per '
            'conversation: choose algorithm="gspo_token"'
        )


def problems_of_kl(config: TrainingConfig) -> Iterator[str]:
    """What cannot work with the KL term in the reward."""
    if config.kl_placement == "loss":
        return
    if not config.kl_coefficient:
        yield (
            'kl_placement="reward" has no effect with kl_coefficient=0: set kl_coefficient above '
            '0 or kl_placement="loss"'
        )
    if config.kl_bias_correction or config.kl_estimator != "k3":
        yield (
            'kl_placement="reward" takes the plain difference of log-probs off each reward, so '
            f"kl_estimator={config.kl_estimator!r} and "
            f"kl_bias_correction={config.kl_bias_correction} have no effect: leave them out"
        )


def _changed(settings: Settings, names: tuple[str, ...]) -> list[str]:
    fields: Any = type(settings).model_fields
    return [name for name in names if getattr(settings, name) != fields[name].default]
