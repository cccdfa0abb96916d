"""What one optimizer step minimises: an algorithm's row with a run's own settings filled in.

Owns which function a loss's name stands for, and how policy loss, importance weights, KL term and
token weights become one number. It does not know models, conversations, nor how log-probs come
about.

Notation: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

import torch

from stateset_agents.training.algorithm_settings import KLPlacement, ValueLevel
from stateset_agents.training.algorithms import (
    ALGORITHMS,
    SETTING_OF_BOUND,
    AdvantageBaseline,
    LossAggregation,
    LossName,
    PairLoss,
)
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.config import (
    Credit,
    ImportanceSampling,
    ImportanceSamplingLevel,
    KLEstimator,
    TrainingConfig,
)
from stateset_agents.training.losses import (
    TokenLosses,
    cispo_loss,
    grpo_loss,
    gspo_loss,
    gspo_token_loss,
    importance_weights,
    kl_divergence,
    log_likelihood_loss,
    ratio_loss,
    sapo_loss,
)

LOSSES: dict[LossName, Callable[..., TokenLosses]] = {
    "token_ratio": grpo_loss,
    "sequence_ratio": gspo_loss,
    "sequence_ratio_by_token": gspo_token_loss,
    "cispo": cispo_loss,
    "sapo": sapo_loss,
    "log_likelihood": log_likelihood_loss,
    "ratio": ratio_loss,
}

_Value = TypeVar("_Value")


class LossFunction(Protocol):
    """A per-token policy loss whose bounds are filled in; every tensor is `(B, T)`."""

    def __call__(
        self,
        policy_logprobs: torch.Tensor,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        loss_mask: torch.Tensor,
    ) -> TokenLosses:
        """See `losses.grpo_loss`."""
        ...


@dataclass(frozen=True, slots=True)
class Objective:
    """A run's objective; the fields are `TrainingConfig`'s of the same name, with nothing left to
    the algorithm, but for `loss`, which has its bounds filled in; it is None for an algorithm on
    pairs, which `pair_step` trains with `pair_loss`.
    """

    loss: LossFunction | None
    trust_region: bool
    pair_loss: PairLoss
    pair_beta: float
    pair_label_smoothing: float
    loss_aggregation: LossAggregation
    advantage_baseline: AdvantageBaseline
    scale_advantages: bool
    credit: Credit
    turn_discount: float
    resampling_rounds: int
    overlong_buffer: float
    num_iterations: int
    value_level: ValueLevel
    kl_coefficient: float
    kl_placement: KLPlacement
    kl_estimator: KLEstimator
    kl_bias_correction: bool
    importance_sampling: ImportanceSampling
    importance_sampling_level: ImportanceSamplingLevel
    importance_sampling_cap: float | None
    importance_sampling_floor: float


def objective_of(config: TrainingConfig) -> Objective:
    """The objective of a run: what the config leaves None is the algorithm's default."""
    row = ALGORITHMS[config.algorithm]
    bounds = {
        bound: _either(getattr(config, SETTING_OF_BOUND[bound]), default)
        for bound, default in row.bounds.items()
    }
    return Objective(
        loss=None if row.on_pairs else partial(LOSSES[row.loss], **bounds),
        trust_region=row.trust_region,
        pair_loss=config.pair_loss,
        pair_beta=config.pair_beta,
        pair_label_smoothing=config.pair_label_smoothing,
        loss_aggregation=_either(config.loss_aggregation, row.loss_aggregation),
        advantage_baseline=_either(config.advantage_baseline, row.advantage_baseline),
        scale_advantages=_either(config.scale_advantages, row.scale_advantages),
        credit=config.credit,
        turn_discount=config.turn_discount,
        resampling_rounds=_either(config.resampling_rounds, row.resampling_rounds),
        overlong_buffer=_either(config.overlong_buffer, row.overlong_buffer),
        num_iterations=_either(config.num_iterations, row.num_iterations),
        value_level=config.value_level,
        kl_coefficient=config.kl_coefficient,
        kl_placement=config.kl_placement,
        kl_estimator=config.kl_estimator,
        kl_bias_correction=config.kl_bias_correction,
        importance_sampling=config.importance_sampling,
        importance_sampling_level=config.importance_sampling_level,
        importance_sampling_cap=config.importance_sampling_cap,
        importance_sampling_floor=config.importance_sampling_floor,
    )


def imitation_of(objective: Objective) -> Objective:
    """The objective under which a step on advantage 1 is one of imitation: on-policy, the gradient
    of the surrogate is that of the negative log-likelihood, and nothing is held back or corrected.
    """
    return replace(
        objective,
        loss=partial(grpo_loss, clip_left=0.2, clip_right=0.2),
        kl_coefficient=0.0,
        importance_sampling_cap=None,
    )


def weighted_loss(
    policy_logprobs: torch.Tensor, batch: TrainingBatch, objective: Objective
) -> tuple[torch.Tensor, TokenLosses]:
    """The (micro-)batch's part of the step's loss, a scalar, and the policy loss by token.

    sum over sampled tokens of loss_weight * (importance weight * policy loss + kl_coefficient * KL)
    (with the KL term in the reward, it has been taken off there)
    """
    old = policy_logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    assert objective.loss is not None  # pairs have a step of their own
    losses = objective.loss(policy_logprobs, old, batch.advantages, batch.loss_mask)
    per_token = losses.loss
    if objective.importance_sampling_cap is not None:
        per_token = per_token * importance_weights(
            old,
            batch.sampling_logprobs,
            batch.loss_mask,
            cap=objective.importance_sampling_cap,
            floor=objective.importance_sampling_floor,
            mode=objective.importance_sampling,
            level=objective.importance_sampling_level,
        )
    in_loss = objective.kl_coefficient > 0 and objective.kl_placement == "loss"
    if in_loss and batch.reference_logprobs is not None:
        per_token = per_token + objective.kl_coefficient * kl_divergence(
            policy_logprobs,
            batch.reference_logprobs,
            batch.loss_mask,
            estimator=objective.kl_estimator,
            old_logprobs=old if objective.kl_bias_correction else None,
        )
    return (batch.loss_weights * per_token).sum(), losses


def _either(setting: _Value | None, default: _Value) -> _Value:
    return default if setting is None else setting
