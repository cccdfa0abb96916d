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
from stateset_agents.training.pair_step import pair_step
from stateset_agents.training.step import (
    Learner,
    measured_kl,
    reference_logprobs,
    train_step,
)
from stateset_agents.training.trust_region import trust_region_step


def update(learner: Learner, batch: TrainingBatch, rate: float) -> dict[str, float]:
    """`num_iterations` optimizer steps; without a single row that teaches something none, and the
    weights stay.

    The first step's own log-probs are the old ones of those that follow, and what importance
    sampling compares with the engine's. Metrics are the first's, the clipped fraction the last's.

    Raises:
        NonFiniteLossError: as `train_step`.
    """
    objective = learner.objective
    if not len(batch.row_lengths):
        return {}
    if objective.loss is None:
        return _update_on_pairs(learner, batch, rate)
    if objective.kl_coefficient > 0:
        batch = replace(batch, reference_logprobs=reference_logprobs(learner, batch))
    if learner.critic is not None:
        batch = _valued(learner, learner.critic, batch)
    one_step = trust_region_step if objective.trust_region else train_step
    first = one_step(learner, batch, rate=rate)
    batch = replace(batch, old_logprobs=first.logprobs)
    metrics = first.metrics | sampling_metrics(batch, objective) | value_metrics(batch)
    for _ in range(1, objective.num_iterations):
        last = train_step(learner, batch, rate=rate).metrics
        metrics |= {name: last[name] for name in ("clipped_fraction", "ratio_max")}
    if "kl_to_reference" not in metrics and learner.config.kl_sample_rows > 0:
        metrics["kl_to_reference"] = measured_kl(learner, batch, first.logprobs)
    return metrics


def _update_on_pairs(learner: Learner, batch: TrainingBatch, rate: float) -> dict[str, float]:
    """Steps on pairs, the reference's log-probs computed once for all of them. Metrics are the
    first's, before the weights moved.
    """
    batch = replace(batch, reference_logprobs=_reference_of_pairs(learner, batch))
    metrics = pair_step(learner, batch, rate=rate)
    for _ in range(1, learner.objective.num_iterations):
        pair_step(learner, batch, rate=rate)
    return metrics


def _reference_of_pairs(learner: Learner, batch: TrainingBatch) -> torch.Tensor:
    """The reference's log-probs `(B, T)`, pair by pair, those of a pair that was seen before from
    the cache. Each pair goes through the model alone: what it gets does not depend on its company,
    so a resumed run, whose cache is empty, has the same.
    """
    result = torch.zeros_like(batch.sampling_logprobs)
    cache = learner.reference_cache
    for group in batch.group_index.unique().tolist():
        rows = (batch.group_index == group).nonzero().squeeze(1)
        pair = batch.select(rows)
        known = None if cache is None else cache.get(pair)
        if known is None:
            known = reference_logprobs(learner, pair).to(pair.token_ids.device)
            if cache is not None:
                cache.put(pair, known)
        result[rows, : known.shape[1]] = known
    return result


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
