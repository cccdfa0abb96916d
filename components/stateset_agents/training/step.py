"""The training step, on one page: micro-batches, log-probs, loss, gradients, clip, optimizer.

Owns the order of these stages and what is measured in them. The stages' names are the modules'
names. It does not know conversations, nor which algorithm it runs.

Notation: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from stateset_agents.exceptions import NonFiniteLossError
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import micro_batches
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.critic import Critic
from stateset_agents.training.logprobs import TokenLogprobs, batch_logprobs
from stateset_agents.training.losses import TokenLosses, kl_divergence
from stateset_agents.training.objective import Objective, objective_of, weighted_loss
from stateset_agents.training.policy import Policy
from stateset_agents.training.precision import LossScale
from stateset_agents.training.processes import ALONE, Processes, own_rows, whole
from stateset_agents.training.reference_cache import ReferenceCache

Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass(slots=True)
class Learner:
    """What a step works with. Make one with `make_learner`."""

    policy: Policy
    config: TrainingConfig
    objective: Objective
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    critic: Critic | None = None
    loss_scale: LossScale | None = None
    # The reference's log-probs of pairs that come again; None where none do.
    reference_cache: ReferenceCache | None = None
    processes: Processes = ALONE

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """What the optimizer changes, in its order: the policy's, then the critic's."""
        return {**self.policy.trainable, **(self.critic.trainable if self.critic else {})}

    @property
    def share_prefix(self) -> bool:
        """Forward what the rows of a group begin with once."""
        return self.config.share_prefix and self.policy.can_share_prefix

    def train_mode(self, training: bool) -> None:
        """Switch dropout on or off: on while gradients are computed, of the value loss too, and off
        for all that they are computed from, which is what was sampled, referred to or foretold.
        """
        self.policy.train_mode(training)
        if self.critic is not None:
            self.critic.train_mode(training)

    def load_trainable(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put back what `trainable` held; names and shapes must be the same."""
        self.policy.load_trainable(tensors)
        if self.critic is not None:
            self.critic.load_trainable(tensors)


@dataclass(frozen=True, slots=True, eq=False)
class StepResult:
    """What a step saw before it changed the weights.

    Attributes:
        logprobs: `(B, T)` float32, the policy's, detached; 0 where not sampled.
        metrics: numbers by name, see `train_step`.
    """

    logprobs: torch.Tensor
    metrics: dict[str, float]


def make_learner(
    policy: Policy,
    config: TrainingConfig,
    critic: Critic | None = None,
    processes: Processes = ALONE,
) -> Learner:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over the policy's float32 parameters
    and the critic's, which have a rate of their own.
    """
    accelerator = Accelerator(cpu=policy.device.type == "cpu")
    groups: list[dict[str, Any]] = [{"params": list(policy.trainable.values())}]
    if critic is not None:
        factor = critic.learning_rate / config.learning_rate
        groups.append({"params": list(critic.trainable.values()), "rate_factor": factor})
    optimizer = torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
    prepared = accelerator.prepare_optimizer(optimizer)
    scale = LossScale() if policy.dtype is torch.float16 else None
    learner = Learner(policy, config, objective_of(config), prepared, accelerator, critic, scale)
    learner.processes = processes
    return learner


def learning_rate(step: int, config: TrainingConfig) -> float:
    """The rate of batch `step` (from 0): a linear rise over the warm-up, then the schedule."""
    warmup = math.ceil(config.warmup_ratio * config.total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.total_steps - warmup)
    if config.lr_schedule == "linear":
        return config.learning_rate * (1 - progress)
    if config.lr_schedule == "cosine":
        return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
    return config.learning_rate


def train_step(learner: Learner, batch: TrainingBatch, *, rate: float) -> StepResult:
    """One optimizer step on a whole batch, however it is cut into micro-batches and shared out
    over processes, which all have the batch and get the same result: `gradients`, then
    `optimizer_step`.

    Metrics (means over sampled tokens): `loss` (the sum that is minimised), `entropy` in nats,
    `clipped_fraction`, `ratio_max`, `kl_to_reference` (when the objective has a KL term),
    `value_loss` (with a critic; not part of `loss`),
    `sampling_difference_mean` and `_max` (absolute, engine's log-probs against these), `grad_norm`
    before clipping, `learning_rate`, `loss_scale` (in float16).

    Raises:
        NonFiniteLossError: loss or gradient is NaN or infinite. The weights are as they were.
    """
    batch = batch.to(learner.policy.device)
    logprobs, sums = unscaled(learner, lambda: gradients(learner, batch))
    norm = optimizer_step(learner, rate)
    return StepResult(logprobs, finished_metrics(sums, norm, rate))


def gradients(learner: Learner, batch: TrainingBatch) -> tuple[torch.Tensor, dict[str, float]]:
    """Stages 1 to 4: the policy's log-probs `(B, T)` and what was measured, for `finished_metrics`;
    gradients are there, times the loss scale, the whole batch's in every process.

    Raises:
        NonFiniteLossError: as `train_step`.
    """
    policy = learner.policy
    logprobs = torch.zeros_like(batch.sampling_logprobs)
    sums: dict[str, float] = defaultdict(float)
    if learner.loss_scale is not None:
        sums["loss_scale"] = learner.loss_scale.value

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        micro = batch.select(rows.to(policy.device))
        # 2. log-probs of what was sampled
        tokens = batch_logprobs(policy, micro, share_prefix=learner.share_prefix)
        logprobs[rows, : micro.token_ids.shape[1]] = tokens.logprobs.detach().float()
        # 3. loss, already weighed against the rest of the batch
        loss, losses = weighted_loss(tokens.logprobs, micro, learner.objective)
        _measure(sums, loss, losses, tokens, micro, learner.objective)
        if learner.critic is not None and micro.returns is not None:
            value_loss = learner.critic.loss(
                tokens.states, micro, share_prefix=learner.share_prefix
            )
            sums["value_loss"] += value_loss.item()
            loss = loss + value_loss
        return loss

    # 1. micro-batches: rows of like length, the groups' shared prefixes once
    # 4. gradients add up over the micro-batches, then over the processes
    sums["passes"] = add_up_gradients(learner, _own_micro_batches(learner, batch), loss_of)
    _add_up_processes(learner, logprobs, sums)
    check_finite(learner, sums["loss"] + sums.get("value_loss", 0.0), "loss")
    return logprobs, sums


def add_up_gradients(
    learner: Learner, parts: Iterable[Part], loss_of: Callable[[Part], torch.Tensor]
) -> int:
    """Leave the gradients of the sum of the parts' losses, times the loss scale; how many parts
    there were. A part's activations are gone before the next one's are there.
    """
    scale = 1.0 if learner.loss_scale is None else learner.loss_scale.value
    learner.optimizer.zero_grad()
    learner.train_mode(True)
    count = 0
    for part in parts:
        learner.accelerator.backward(loss_of(part) * scale)
        count += 1
    return count


def unscaled(learner: Learner, computed: Callable[[], Result]) -> Result:
    """What `computed`, which leaves gradients, gives, and the gradients without the loss scale. In
    float16 it may take several times, until none overflows.
    """
    result = computed()
    scale = learner.loss_scale
    while scale is not None and not scale.unscale(learner.trainable.values()):
        result = computed()
    return result


def optimizer_step(learner: Learner, rate: float) -> float:
    """The end of a step, when gradients are there; the policy gradient's norm before clipping.

    The critic's gradient is clipped by itself, so that a value far off does not slow the policy.

    Raises:
        NonFiniteLossError: as `train_step`.
    """
    policy, limit = learner.policy, learner.config.max_grad_norm
    # 5. clip
    learner.train_mode(False)
    norm = float(whole(learner.accelerator.clip_grad_norm_(policy.trainable.values(), limit)))
    check_finite(learner, norm, "gradient's norm")
    if learner.critic is not None:
        critics = learner.accelerator.clip_grad_norm_(learner.critic.trainable.values(), limit)
        check_finite(learner, float(critics), "critic's gradient's norm")
    # 6. optimizer, then the weights that compute follow the float32 ones
    for group in learner.optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    policy.refresh()
    if learner.critic is not None:
        learner.critic.refresh()
    return norm


def reference_logprobs(learner: Learner, batch: TrainingBatch) -> torch.Tensor:
    """`(B, T)` float32: what the policy that training started from gives the sampled tokens."""
    policy = learner.policy
    batch = batch.to(policy.device)
    result = torch.zeros_like(batch.sampling_logprobs)
    with policy.reference():
        for rows in _own_micro_batches(learner, batch):
            micro = batch.select(rows.to(policy.device))
            tokens = batch_logprobs(policy, micro, share_prefix=learner.share_prefix)
            result[rows, : micro.token_ids.shape[1]] = tokens.logprobs.float()
    learner.processes.add_up([result])
    return result


def measured_kl(learner: Learner, batch: TrainingBatch, logprobs: torch.Tensor) -> float:
    """Mean KL (k3) per sampled token on `kl_sample_rows` rows spread over the batch; `logprobs` is
    `StepResult.logprobs`.
    """
    batch = batch.to(learner.policy.device)
    count = min(learner.config.kl_sample_rows, len(batch.row_lengths))
    rows = torch.linspace(0, len(batch.row_lengths) - 1, count).round().to(torch.int64)
    sample = replace(batch.select(rows), shared_prefix_lengths=torch.zeros(count, dtype=torch.long))
    width = sample.token_ids.shape[1]
    reference = reference_logprobs(learner, sample)
    divergence = kl_divergence(logprobs[rows, :width], reference, sample.loss_mask)
    return float(divergence.sum() / sample.loss_mask.sum())


def _own_micro_batches(learner: Learner, batch: TrainingBatch) -> Iterator[torch.Tensor]:
    """Row indices of the batch `(b,)` of each micro-batch that is this process's."""
    own = own_rows(batch, learner.processes)
    for rows in micro_batches(
        batch.select(own.to(batch.token_ids.device)),
        token_budget=learner.config.micro_batch_tokens,
        share_prefix=learner.share_prefix,
    ):
        yield own[rows]


def _add_up_processes(learner: Learner, logprobs: torch.Tensor, sums: dict[str, float]) -> None:
    """Make gradients, log-probs and sums those of the whole batch, in place. A parameter that no
    process has a gradient of has none afterwards either.
    """
    if learner.processes.count == 1:
        return
    trainable = learner.trainable
    own = {name for name, parameter in trainable.items() if parameter.grad is not None}
    told = learner.processes.gather((dict(sums), own))
    if learner.policy.reduces_gradients:
        passes = [int(theirs.get("passes", 0)) for theirs, _ in told]
        for _ in range(passes[learner.processes.rank], max(passes)):
            learner.policy.idle_pass()
        told = [(theirs, set()) for theirs, _ in told]
    gradients = []
    for name in (name for name in trainable if any(name in theirs for _, theirs in told)):
        parameter = trainable[name]
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    learner.processes.add_up([logprobs, *gradients])
    for name in {name for theirs, _ in told for name in theirs}:
        values = [theirs.get(name, 0.0) for theirs, _ in told]
        is_sum = not name.endswith("_max") and name != "loss_scale"
        sums[name] = sum(values) if is_sum else max(values)


def _measure(
    sums: dict[str, float],
    loss: torch.Tensor,
    losses: TokenLosses,
    tokens: TokenLogprobs,
    micro: TrainingBatch,
    objective: Objective,
) -> None:
    sampled = micro.loss_mask
    sums["tokens"] += int(sampled.sum())
    sums["loss"] += loss.item()
    sums["entropy"] += float(tokens.entropy.sum())
    sums["clipped"] += int(losses.clipped.sum())
    sums["ratio_max"] = max(sums["ratio_max"], float(losses.ratio[sampled].max()))
    difference = (tokens.logprobs.detach() - micro.sampling_logprobs)[sampled].abs()
    sums["difference"] += float(difference.sum())
    sums["difference_max"] = max(sums["difference_max"], float(difference.max()))
    if micro.reference_logprobs is not None:
        divergence = kl_divergence(
            tokens.logprobs.detach(),
            micro.reference_logprobs,
            sampled,
            estimator=objective.kl_estimator,
        )
        sums["kl"] += float(divergence.sum())


def finished_metrics(sums: dict[str, float], norm: float, rate: float) -> dict[str, float]:
    """`train_step`'s metrics."""
    tokens = max(1.0, sums["tokens"])
    metrics = {
        "loss": sums["loss"],
        "entropy": sums["entropy"] / tokens,
        "clipped_fraction": sums["clipped"] / tokens,
        "ratio_max": sums["ratio_max"],
        "sampling_difference_mean": sums["difference"] / tokens,
        "sampling_difference_max": sums["difference_max"],
        "grad_norm": norm,
        "learning_rate": rate,
    }
    if "loss_scale" in sums:
        metrics["loss_scale"] = sums["loss_scale"]
    if "kl" in sums:
        metrics["kl_to_reference"] = sums["kl"] / tokens
    if "value_loss" in sums:
        metrics["value_loss"] = sums["value_loss"]
    return metrics


def check_finite(learner: Learner, value: float, what: str) -> None:
    """Let nothing that is not finite reach the weights.

    Raises:
        NonFiniteLossError: the value is NaN or infinite; gradients are gone.
    """
    if math.isfinite(value):
        return
    learner.optimizer.zero_grad()
    learner.train_mode(False)
    raise NonFiniteLossError(
        f"the {what} is {value}; the optimizer was not stepped and the weights are as before. "
        "Look at the last metrics: rewards, log-probs and learning_rate; a lower learning_rate or "
        "max_grad_norm, or bf16=False, are what usually helps"
    )
