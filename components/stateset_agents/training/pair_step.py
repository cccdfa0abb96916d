"""The step on pairs: whole pairs, log-probs, pair loss, gradients, and the end of any step.

Owns how the rows of a batch become pairs, and what is measured of them. The formulas are
`pair_losses`'. It does not know where pairs come from.

In a batch of pairs a group is a pair, and `advantages` tells its sides apart: above 0 on the tokens
of the chosen answers, below 0 on those of the rejected ones.

Notation: B rows, T tokens, P pairs.
"""

from __future__ import annotations

from collections import defaultdict

import torch

from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.logprobs import batch_logprobs
from stateset_agents.training.pair_losses import PairLogprobs, pair_loss
from stateset_agents.training.step import (
    Learner,
    add_up_gradients,
    check_finite,
    optimizer_step,
    unscaled,
)


def pair_step(learner: Learner, batch: TrainingBatch, *, rate: float) -> dict[str, float]:
    """One optimizer step on the mean loss of a batch of pairs with `reference_logprobs`.

    Metrics: `loss`, `pair_accuracy` (share of pairs in which the policy has moved towards the
    chosen side), `pair_margin` (mean of pair_beta times the difference of log-ratios, the implicit
    reward of Rafailov et al. 2023, arXiv:2305.18290), `chosen_reward` and `rejected_reward` (its
    two sides), `entropy` in nats a token, `pairs`, `grad_norm`, `learning_rate`,
    `loss_scale` (in float16).

    Raises:
        NonFiniteLossError: as `train_step`.
    """
    batch = batch.to(learner.policy.device)
    sums = unscaled(learner, lambda: _gradients(learner, batch))
    norm = optimizer_step(learner, rate)
    pairs = sums["pairs"]
    means = ("pair_accuracy", "chosen_reward", "rejected_reward", "pair_margin")
    return {
        "loss": sums["loss"],
        **{name: sums[name] / pairs for name in means},
        "entropy": sums["entropy"] / max(1, int(batch.loss_mask.sum())),
        "pairs": pairs,
        "grad_norm": norm,
        "learning_rate": rate,
        **({"loss_scale": sums["loss_scale"]} if learner.loss_scale is not None else {}),
    }


def _gradients(learner: Learner, batch: TrainingBatch) -> dict[str, float]:
    """Gradients are there, times the loss scale; sums over the pairs of what was measured."""
    policy, objective = learner.policy, learner.objective
    groups = batch.group_index.unique().tolist()
    sums: dict[str, float] = defaultdict(float)
    if learner.loss_scale is not None:
        sums["loss_scale"] = learner.loss_scale.value

    def loss_of(group: int) -> torch.Tensor:
        micro = batch.select((batch.group_index == group).nonzero().squeeze(1))
        tokens = batch_logprobs(policy, micro, share_prefix=learner.share_prefix)
        pair = pair_logprobs(tokens.logprobs, micro)
        loss = pair_loss(
            pair,
            variant=objective.pair_loss,
            beta=objective.pair_beta,
            label_smoothing=objective.pair_label_smoothing,
        ).sum() / len(groups)
        _measure(sums, loss.item(), pair, objective.pair_beta)
        sums["entropy"] += float(tokens.entropy.sum())
        return loss

    sums["pairs"] = add_up_gradients(learner, groups, loss_of)
    check_finite(learner, sums["loss"], "loss")
    return sums


def pair_logprobs(logprobs: torch.Tensor, micro: TrainingBatch) -> PairLogprobs:
    """The rows `(B, T)` of one pair as a `PairLogprobs` of P = 1: a side's tokens are summed,
    whatever rows they lie in.
    """
    reference = micro.reference_logprobs
    assert reference is not None  # computed once, before the first step on the batch
    chosen = micro.loss_mask & (micro.advantages > 0)
    rejected = micro.loss_mask & (micro.advantages < 0)

    def summed(values: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        return torch.where(side, values, torch.zeros_like(values)).sum()[None]

    return PairLogprobs(
        chosen=summed(logprobs, chosen),
        rejected=summed(logprobs, rejected),
        reference_chosen=summed(reference, chosen),
        reference_rejected=summed(reference, rejected),
        chosen_tokens=chosen.sum()[None],
        rejected_tokens=rejected.sum()[None],
    )


def _measure(sums: dict[str, float], loss: float, pair: PairLogprobs, beta: float) -> None:
    sums["loss"] += loss
    chosen = beta * float((pair.chosen - pair.reference_chosen).detach())
    rejected = beta * float((pair.rejected - pair.reference_rejected).detach())
    sums["chosen_reward"] += chosen
    sums["rejected_reward"] += rejected
    sums["pair_margin"] += chosen - rejected
    sums["pair_accuracy"] += chosen > rejected
