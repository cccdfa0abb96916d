"""The update: what a batch of conversations does to the weights.

Owns what comes before, between and after the optimizer steps on one batch: reference log-probs, the
critic's estimates, epochs, what is measured. A single step is `step.train_step`. It does not know
conversations, nor which algorithm it runs.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.critic import Critic, estimated_values, with_advantages
from stateset_agents.training.metrics import sampling_metrics, value_metrics
from stateset_agents.training.step import (
    Learner,
    measured_kl,
    reference_logprobs,
    train_step,
)


def update(learner: Learner, batch: TrainingBatch, rate: float) -> dict[str, float]:
    """`num_iterations` optimizer steps; without a single row that teaches something none, and the
    weights stay.

    The first step's own log-probs are the old ones of those that follow, and what importance
    sampling compares with the engine's. Metrics are the first's, the clipped fraction the last's.

    Raises:
        NonFiniteLossError: as `train_step`.
    """
    if not len(batch.row_lengths):
        return {}
    objective = learner.objective
    if objective.kl_coefficient > 0:
        batch = replace(batch, reference_logprobs=reference_logprobs(learner, batch))
    if learner.critic is not None:
        batch = _valued(learner, learner.critic, batch)
    first = train_step(learner, batch, rate=rate)
    batch = replace(batch, old_logprobs=first.logprobs)
    metrics = first.metrics | sampling_metrics(batch, objective) | value_metrics(batch)
    for _ in range(1, objective.num_iterations):
        last = train_step(learner, batch, rate=rate).metrics
        metrics |= {name: last[name] for name in ("clipped_fraction", "ratio_max")}
    if "kl_to_reference" not in metrics and learner.config.kl_sample_rows > 0:
        metrics["kl_to_reference"] = measured_kl(learner, batch, first.logprobs)
    return metrics


def _valued(learner: Learner, critic: Critic, batch: TrainingBatch) -> TrainingBatch:
    """The batch with advantages from the critic as it is before the update.

    With the KL term in the reward each token loses kl_coefficient (log pi_sampling - log pi_ref) of
    it (Ouyang et al. 2022, arXiv:2203.02155, equation 2).
    """
    batch = batch.to(learner.policy.device)
    objective = learner.objective
    if objective.kl_coefficient > 0 and objective.kl_placement == "reward":
        assert batch.rewards is not None  # `make_step_batch` gives them where there is a critic
        assert batch.reference_logprobs is not None
        divergence = batch.sampling_logprobs - batch.reference_logprobs
        cost = torch.where(batch.loss_mask, divergence, torch.zeros_like(divergence))
        batch = replace(batch, rewards=batch.rewards - objective.kl_coefficient * cost)
    values = estimated_values(critic, learner.policy, batch, learner.config)
    return with_advantages(batch, values, critic.value_function, scale=objective.scale_advantages)
