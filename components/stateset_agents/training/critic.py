"""The critic: what is still to be gained, before each decision of a conversation.

Owns where a value function's states come from (the policy's own last layer, or a model of the
critic's own), its loss, and the advantages that follow from its estimates. The head and the
recursion are `core.value_function`'s. It does not know the policy's loss.

Notation: B rows, T tokens, N sampled tokens, D hidden size, J trajectories, K decisions of the
longest of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from stateset_agents.core.value_estimates import whitened
from stateset_agents.core.value_function import ValueFunction
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.inference.model_names import model_folder
from stateset_agents.training.algorithms import ALGORITHMS
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import micro_batches
from stateset_agents.training.checkpoint import digest
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.logprobs import sampled_states, scattered
from stateset_agents.training.policy import Policy

# A head begins at 0 and has few parameters: it wants far more than the model does.
HEAD_LEARNING_RATE = 1e-3


class Critic:
    """A value function with the states that it reads.

    Attributes:
        value_function: the head and the discounts.
        trunk: the critic's own model; None where it reads the policy's last states.
        learning_rate: the peak rate of what `trainable` holds.
    """

    def __init__(
        self,
        value_function: ValueFunction,
        *,
        learning_rate: float,
        trunk: Policy | None = None,
        trunk_gradient: float = 0.0,
        value_clip: float = 0.0,
    ) -> None:
        """`trunk_gradient` is the share of the value loss's gradient that reaches the policy's
        states, `value_clip` how far from its old estimate a value is followed (0: anywhere).
        """
        self.value_function = value_function
        self.trunk = trunk
        self.learning_rate = learning_rate
        self._trunk_gradient = trunk_gradient
        self._value_clip = value_clip

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """By name; names begin with `critic.`, so that they are not the policy's."""
        head = {f"critic.{n}": p for n, p in self.value_function.named_parameters()}
        own = {} if self.trunk is None else self.trunk.trainable
        return {**head, **{f"critic.trunk.{name}": value for name, value in own.items()}}

    @torch.no_grad()
    def load_trainable(self, tensors: dict[str, torch.Tensor]) -> None:
        """Put back what `trainable` held; names and shapes must be the same."""
        for name, parameter in self.trainable.items():
            parameter.copy_(tensors[name])
        self.refresh()

    def train_mode(self, training: bool) -> None:
        """Switch the dropout of its own model's adapter on or off, see `Learner.train_mode`."""
        if self.trunk is not None:
            self.trunk.train_mode(training)

    def refresh(self) -> None:
        """Bring the computing weights of its own model up to date."""
        if self.trunk is not None:
            self.trunk.refresh()

    def loss(
        self, states: torch.Tensor, batch: TrainingBatch, *, share_prefix: bool
    ) -> torch.Tensor:
        """A (micro-)batch's part of the step's value loss, a scalar: half the mean over decisions
        of (V - R)^2, or with `value_clip` c of max((V - R)^2, (clip(V, V_old - c, V_old + c) -
        R)^2), as in Schulman et al.'s code for arXiv:1707.06347.

        `states` (N, D) are the policy's; a critic with a model of its own computes its own instead.
        """
        assert batch.returns is not None  # `with_advantages` has run
        assert batch.old_values is not None
        assert batch.value_weights is not None
        if self.trunk is not None:
            states = sampled_states(self.trunk, batch, share_prefix=share_prefix)
        else:
            kept = states.detach()
            states = kept + self._trunk_gradient * (states - kept) if self._trunk_gradient else kept
        values = scattered(self.value_function.values(states), batch.loss_mask)
        return value_loss(
            values, batch.old_values, batch.returns, batch.value_weights, clip=self._value_clip
        )


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    value_weights: torch.Tensor,
    *,
    clip: float,
) -> torch.Tensor:
    """See `Critic.loss`; every tensor is `(B, T)`, `clip` 0 is none."""
    error = (values - returns).square()
    if clip:
        held = torch.clamp(values, old_values - clip, old_values + clip)
        error = torch.maximum(error, (held - returns).square())
    return 0.5 * (value_weights * error).sum()


def config_with_value_function(
    config: TrainingConfig, value_function: ValueFunction
) -> TrainingConfig:
    """The same settings with a value function that was passed in as the baseline.

    Raises:
        ConfigurationError: they ask for another baseline, another critic or other discounts.
    """
    defaults = type(config).model_fields
    own = {
        "critic": "shared",
        "discount": value_function.gamma,
        "trace_decay": value_function.gae_lambda,
        "advantage_baseline": "value",
    }
    problems = [
        f"{name}={getattr(config, name)!r} contradicts the value_function that was passed, which "
        f"makes it {value!r}: leave one of them out"
        for name, value in own.items()
        if getattr(config, name) not in (defaults[name].default, value)
    ]
    if problems:
        raise ConfigurationError(problems)
    # all at once: one by one they would contradict each other
    return type(config)(**{**config.model_dump(exclude_unset=True), **own})


def value_function_fingerprint(value_function: ValueFunction | None) -> dict[str, str]:
    """What tells a run with this value function from another's, its first weights left out: those
    of a resumed run are the checkpoint's. Nothing without one.
    """
    if value_function is None:
        return {}
    kind = type(value_function)
    shapes = {name: list(value.shape) for name, value in value_function.named_parameters()}
    return {"value function": digest([kind.__module__, kind.__qualname__, shapes])}


def make_critic(
    policy: Policy, config: TrainingConfig, model_name: str, given: ValueFunction | None = None
) -> Critic | None:
    """The critic that the config asks for, around `given` if there is one; None where the baseline
    is no value.

    Raises:
        ConfigurationError: a value function of another width, a critic's model of another
            vocabulary, or a value function beside a critic's own model.
    """
    row = ALGORITHMS[config.algorithm]
    if (config.advantage_baseline or row.advantage_baseline) != "value":
        return None
    clip = row.value_clip if config.value_clip is None else config.value_clip
    if config.critic == "shared":
        width = policy.head_weight.shape[1]
        head = given or _make_head(width, config)
        head.check_fits(width, f"the model {model_name}")
        share = (
            row.value_coefficient if config.value_coefficient is None else config.value_coefficient
        )
        return Critic(
            head.to(policy.device),
            learning_rate=config.critic_learning_rate or HEAD_LEARNING_RATE,
            trunk_gradient=row.value_coefficient if share is None else share,
            value_clip=clip,
        )
    if config.critic_model is not None:
        _check_reads_alike(config.critic_model, model_name)
    trunk = _own_model(policy, config, config.critic_model or model_name)
    return Critic(
        _make_head(trunk.head_weight.shape[1], config).to(policy.device),
        learning_rate=config.critic_learning_rate or config.learning_rate,
        trunk=trunk,
        value_clip=clip,
    )


def _make_head(width: int, config: TrainingConfig) -> ValueFunction:
    return ValueFunction(width, gamma=config.discount, gae_lambda=config.trace_decay)


def _check_reads_alike(critic_model: str, model_name: str) -> None:
    """A folder without a tokenizer (weights alone were saved) is taken at its size of vocabulary.

    Raises:
        ConfigurationError: the two folders' tokenizers give some text another id.
    """
    folder = model_folder(critic_model)
    if not (folder / "tokenizer_config.json").is_file():
        return
    theirs, ours = (load_tokenizer(one).hf.get_vocab() for one in (folder, model_name))
    if theirs != ours:
        _, text = min((token, text) for text, token in ours.items() ^ theirs.items())
        raise ConfigurationError(
            f"critic_model={critic_model!r} has another vocabulary than the policy {model_name}: "
            f"{text!r} is token {theirs.get(text, 'none')} there and {ours.get(text, 'none')} "
            "here; a critic reads the policy's token ids, so name a model with the same tokenizer, "
            "or leave critic_model out"
        )


def _own_model(policy: Policy, config: TrainingConfig, model_name: str) -> Policy:
    """A model that is trained as the policy is, whole or by an adapter, and keeps no reference."""
    model = load_model(model_name, dtype=policy.dtype, device=str(policy.device))
    theirs, ours = (m.get_input_embeddings().num_embeddings for m in (model, policy.model))
    if theirs != ours:
        raise ConfigurationError(
            f"critic_model={model_name!r} has a vocabulary of {theirs} tokens and the policy one "
            f"of {ours}: a critic reads the policy's token ids, so name a model with the same "
            "tokenizer, or leave critic_model out"
        )
    as_the_policy = {
        "kl_coefficient": 0.0,
        "kl_sample_rows": 0,
        "bf16": policy.dtype is torch.bfloat16,
        "fp16": policy.dtype is torch.float16,
    }
    return Policy(model, config.model_copy(update=as_the_policy))


@torch.no_grad()
def estimated_values(
    critic: Critic, policy: Policy, batch: TrainingBatch, config: TrainingConfig
) -> torch.Tensor:
    """What follows before each sampled token of a whole batch, `(B, T)` float32, 0 elsewhere.

    Nothing is dropped out of it: between two steps neither policy nor critic is in training mode,
    and chance that no answer depended on would be in the advantages.
    """
    share = config.share_prefix
    result = torch.zeros_like(batch.sampling_logprobs)
    for rows in micro_batches(batch, token_budget=config.micro_batch_tokens, share_prefix=share):
        micro = batch.select(rows.to(policy.device))
        states = sampled_states(critic.trunk or policy, micro, share_prefix=share)
        values = scattered(critic.value_function.values(states), micro.loss_mask)
        result[rows, : values.shape[1]] = values
    return result


def with_advantages(
    batch: TrainingBatch, values: torch.Tensor, value_function: ValueFunction, *, scale: bool
) -> TrainingBatch:
    """Fill in `advantages`, `old_values` and `returns` from `values` (B, T).

    Each trajectory is one chain of decisions, whatever rows it lies in: `value_function.advantages`
    gets rewards and values `(J, K)` and a mask of the decisions there are. All tokens of a decision
    have its advantage. With `scale` the decisions' advantages have mean 0 and variance 1 over the
    step.
    """
    assert batch.decision_index is not None  # `with_decisions` has run
    assert batch.rewards is not None
    assert batch.value_weights is not None
    sampled, first = batch.loss_mask, batch.value_weights > 0
    longest = int(batch.decision_index.max()) + 1
    chains = int(batch.trajectory_index.max()) + 1
    place = batch.trajectory_index[:, None] * longest + batch.decision_index
    earned = values.new_zeros(chains * longest).index_add_(
        0, place[sampled], batch.rewards[sampled].to(values.dtype)
    )
    estimated = values.new_zeros(chains * longest)
    estimated[place[first]] = values[first]
    there = torch.zeros(chains * longest, dtype=torch.bool, device=values.device)
    there[place[first]] = True
    advantages, returns = value_function.advantages(
        *(part.view(chains, longest) for part in (earned, estimated, there))
    )
    if scale:
        advantages = whitened(advantages, there.view(chains, longest))

    def by_token(of_decision: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        spread = of_decision.reshape(-1).to(torch.float32)[place]
        return torch.where(where, spread, torch.zeros_like(spread))

    return replace(
        batch,
        advantages=by_token(advantages, sampled),
        old_values=torch.where(first, values, torch.zeros_like(values)).to(torch.float32),
        returns=by_token(returns, first),
    )
