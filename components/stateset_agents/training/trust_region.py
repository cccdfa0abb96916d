"""The step of a trust region: the natural gradient, as far as the KL limit and the gain allow.

Owns Fisher-vector products, conjugate gradients and the line search. The gradient is `step`'s. It
does not know where advantages come from.

A Fisher-vector product is the difference of two gradients of KL(pi_old || pi), a little to either
side of the policy along the vector: the Hessian of that divergence at pi_old is the Fisher matrix,
and only first derivatives are needed, which the fast forward pass has. It takes float32: what
bfloat16 rounds away is as large as the difference.

Notation: B rows, T tokens, N sampled tokens, D hidden size, V vocabulary, M trainable parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch.utils.checkpoint import checkpoint

from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import micro_batches
from stateset_agents.training.logprobs import batch_logprobs, sampled_states
from stateset_agents.training.objective import weighted_loss
from stateset_agents.training.step import (
    Learner,
    StepResult,
    check_finite,
    finished_metrics,
    gradients,
    optimizer_step,
)

# A product looks as far to either side as moves the policy by about this divergence, in nats a
# token: nearer, rounding shows, and further, the third derivative.
_PROBE_KL = 1e-5
_PROBE_TRIES = 4
_FIRST_PROBE = 3e-3
# Positions whose logits are alive at once.
_CHUNK = 64
# A line search goes back by this factor.
_BACKTRACK = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class _Old:
    """A micro-batch and what the policy was before the step: states `(N, D)` and head `(V, D)`."""

    micro: TrainingBatch
    states: torch.Tensor
    head: torch.Tensor


def trust_region_step(learner: Learner, batch: TrainingBatch, *, rate: float) -> StepResult:
    """One natural-gradient step of the policy, and one optimizer step of the critic, if any.

    Schulman et al. 2015 (arXiv:1502.05477), section 6 and appendix C: x solves (F + damping) x = g,
    the step is s x with s^2 x (F + damping) x / 2 = `kl_limit`, and is halved until the objective
    has improved and the mean KL(pi_old || pi) over the step's sampled tokens, with the whole
    vocabulary in it, is within the limit. If it never is, the weights stay.

    Metrics beside `train_step`'s: `step_kl` of the step that was taken, `step_gain` (by how much
    the loss fell), `line_search_tries`, `step_taken` (0 or 1). The rate is the critic's alone.

    Raises:
        NonFiniteLossError: as `train_step`.
    """
    policy, config = learner.policy, learner.config
    batch = batch.to(policy.device)
    logprobs, sums = gradients(learner, batch)
    learner.train_mode(False)
    gradient = _taken_gradient(learner)
    check_finite(learner, float(gradient.norm()), "gradient's norm")
    with torch.no_grad():
        direction, curvature = natural_direction(learner, batch, gradient)
        taken = {"step_kl": 0.0, "step_gain": 0.0, "line_search_tries": 0.0, "step_taken": 0.0}
        if curvature > 0:
            full = -direction * math.sqrt(2 * config.kl_limit / curvature)
            taken = line_search(learner, replace(batch, old_logprobs=logprobs), full)
    optimizer_step(learner, rate)
    metrics = finished_metrics(sums, float(gradient.norm()), rate) | taken
    return StepResult(logprobs, metrics)


def natural_direction(
    learner: Learner, batch: TrainingBatch, gradient: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """X `(M,)` with (F + damping I) x = `gradient`, and x (F + damping I) x.

    `fisher_damping` is relative to the curvature along the gradient, g F g / g g, so that it means
    the same for an adapter and for all weights. F is that of `fisher_rows` rows of the batch.
    """
    config = learner.config
    length = float(gradient.norm())
    if length == 0:
        return torch.zeros_like(gradient), 0.0
    product = fisher_product(learner, _some_rows(batch, config.fisher_rows))
    unit = gradient / length
    damping = config.fisher_damping * float(unit @ product(unit))

    def damped(vector: torch.Tensor) -> torch.Tensor:
        return product(vector) + damping * vector

    direction, residual = conjugate_gradients(damped, gradient, config.fisher_iterations)
    return direction, float(direction @ (gradient - residual))


def conjugate_gradients(
    product: Callable[[torch.Tensor], torch.Tensor],
    target: torch.Tensor,
    iterations: int,
    tolerance: float = 1e-10,
) -> tuple[torch.Tensor, torch.Tensor]:
    """X `(M,)` with A x = `target` for a symmetric positive A, and what is left, `target` - A x
    (Hestenes and Stiefel 1952). It ends early where |rest|^2 falls below `tolerance` |target|^2.
    """
    solution = torch.zeros_like(target)
    rest, towards = target.clone(), target.clone()
    squared = float(rest @ rest)
    enough = tolerance * squared
    for _ in range(iterations):
        image = product(towards)
        curved = float(towards @ image)
        if squared <= enough or curved <= 0:
            break
        length = squared / curved
        solution = solution + length * towards
        rest = rest - length * image
        before, squared = squared, float(rest @ rest)
        towards = rest + (squared / before) * towards
    return solution, rest


def fisher_product(
    learner: Learner, batch: TrainingBatch
) -> Callable[[torch.Tensor], torch.Tensor]:
    """V `(M,)` to F v, F the Fisher matrix of the next-token distributions, mean over the batch's
    sampled tokens.
    """
    old = list(_before(learner, batch, share_prefix=False))
    origin = _flat(learner.policy.trainable.values())
    probe = _FIRST_PROBE

    def product(vector: torch.Tensor) -> torch.Tensor:
        nonlocal probe
        length = float(vector.norm())
        if length == 0:
            return torch.zeros_like(vector)
        unit = vector / length
        for _ in range(_PROBE_TRIES):
            ahead, moved = _kl_gradient(learner, old, origin + probe * unit)
            if _PROBE_KL / 4 <= moved <= _PROBE_KL * 4:
                break
            used, probe = probe, probe * min(1e2, math.sqrt(_PROBE_KL / max(moved, 1e-12)))
        else:
            probe = used
        behind, _ = _kl_gradient(learner, old, origin - probe * unit)
        _put(learner, origin)
        return (ahead - behind) * (length / (2 * probe))

    return product


def token_kl(
    states: torch.Tensor,
    head: torch.Tensor,
    old_states: torch.Tensor,
    old_head: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """KL(pi_old || pi) of the next-token distributions at each of N states, `(N,)`, exact."""

    def of_chunk(now: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
        ours = torch.log_softmax(now @ head.t() / temperature, dim=-1)
        theirs = torch.log_softmax(then @ old_head.t() / temperature, dim=-1)
        return (theirs.exp() * (theirs - ours)).sum(-1)

    parts = zip(states.split(_CHUNK), old_states.split(_CHUNK), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(of_chunk, *part, use_reentrant=False) for part in parts])
    return torch.cat([of_chunk(*part) for part in parts])


@torch.no_grad()
def line_search(learner: Learner, batch: TrainingBatch, full: torch.Tensor) -> dict[str, float]:
    """Move the policy by `full` `(M,)`, or by a half of it, a quarter and so on: as far as the loss
    on the batch, which has `old_logprobs`, has fallen and the KL limit holds; else leave the
    weights. Gives the metrics of `trust_region_step`.
    """
    config = learner.config
    old = list(_before(learner, batch, share_prefix=config.share_prefix))
    origin = _flat(learner.policy.trainable.values())
    before, _ = _loss_and_kl(learner, batch, old)
    share = 1.0
    for tried in range(1, config.line_search_tries + 1):
        _put(learner, origin + share * full)
        loss, divergence = _loss_and_kl(learner, batch, old)
        if loss < before and divergence <= config.kl_limit:
            return {
                "step_kl": divergence,
                "step_gain": before - loss,
                "line_search_tries": tried,
                "step_taken": 1.0,
            }
        share *= _BACKTRACK
    _put(learner, origin)
    tries = float(config.line_search_tries)
    return {"step_kl": 0.0, "step_gain": 0.0, "line_search_tries": tries, "step_taken": 0.0}


def _loss_and_kl(learner: Learner, batch: TrainingBatch, old: list[_Old]) -> tuple[float, float]:
    """The step's loss, and the mean KL from what was, with the policy as it is now."""
    config, policy = learner.config, learner.policy
    loss, divergence, count = 0.0, 0.0, 0
    parts = micro_batches(
        batch, token_budget=config.micro_batch_tokens, share_prefix=config.share_prefix
    )
    for rows, was in zip(parts, old, strict=True):
        micro = batch.select(rows.to(policy.device))
        tokens = batch_logprobs(policy, micro, share_prefix=config.share_prefix)
        loss += float(weighted_loss(tokens.logprobs, micro, learner.objective)[0])
        kl = token_kl(tokens.states, policy.head_weight, was.states, was.head, batch.temperature)
        divergence += float(kl.sum())
        count += len(kl)
    return loss, divergence / max(1, count)


def _before(learner: Learner, batch: TrainingBatch, *, share_prefix: bool) -> Iterator[_Old]:
    config, policy = learner.config, learner.policy
    with torch.no_grad():
        head = policy.head_weight.detach().clone()
        for rows in micro_batches(
            batch, token_budget=config.micro_batch_tokens, share_prefix=share_prefix
        ):
            micro = batch.select(rows.to(policy.device))
            yield _Old(micro, sampled_states(policy, micro, share_prefix=share_prefix), head)


@torch.enable_grad()
def _kl_gradient(
    learner: Learner, old: list[_Old], parameters: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Gradient `(M,)` and value of the mean KL(pi_old || pi) at `parameters`."""
    policy = learner.policy
    _put(learner, parameters)
    count = sum(len(was.states) for was in old)
    divergence = 0.0
    for was in old:
        states = sampled_states(policy, was.micro, share_prefix=False)
        kl = (
            token_kl(states, policy.head_weight, was.states, was.head, was.micro.temperature).sum()
            / count
        )
        learner.accelerator.backward(kl)
        divergence += kl.item()
    return _taken_gradient(learner), divergence


def _some_rows(batch: TrainingBatch, count: int) -> TrainingBatch:
    """`count` rows spread over the batch, as rows that share nothing; 0: all of them."""
    every = len(batch.row_lengths)
    wanted = min(count, every) if count else every
    rows = torch.linspace(0, every - 1, wanted, device=batch.token_ids.device).round().long()
    chosen = batch.select(rows)
    return replace(chosen, shared_prefix_lengths=torch.zeros_like(chosen.shared_prefix_lengths))


def _taken_gradient(learner: Learner) -> torch.Tensor:
    """The policy's gradient `(M,)`, taken away from its parameters, so that the optimizer, which
    is the critic's here, leaves them alone.
    """
    parts = []
    for parameter in learner.policy.trainable.values():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parts.append(grad.reshape(-1))
        parameter.grad = None
    return torch.cat(parts)


def _flat(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.detach().reshape(-1) for value in parameters])


@torch.no_grad()
def _put(learner: Learner, vector: torch.Tensor) -> None:
    start = 0
    for parameter in learner.policy.trainable.values():
        end = start + parameter.numel()
        parameter.copy_(vector[start:end].view_as(parameter))
        start = end
    learner.policy.refresh()
