"""What single algorithms read beside the settings that all of them have: a critic's, a trust
region's, a pair loss's.

Owns these settings and the checks that the chosen algorithm reads them. It does not know torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from stateset_agents.settings import Settings
from stateset_agents.training.algorithms import AdvantageBaseline, AlgorithmRow, PairLoss

if TYPE_CHECKING:
    from stateset_agents.training.config import TrainingConfig

CriticModel = Literal["shared", "own"]
ValueLevel = Literal["token", "turn"]
KLPlacement = Literal["loss", "reward"]
PairSource = Literal["rollouts", "preferences"]

_CRITIC = (
    "critic", "critic_model", "critic_learning_rate", "value_coefficient", "value_clip",
    "value_level", "discount", "trace_decay", "kl_placement",
)  # fmt: skip
_TRUST_REGION = (
    "kl_limit", "fisher_iterations", "fisher_damping", "fisher_rows", "line_search_tries",
)  # fmt: skip
_PAIRS = ("pairs_from", "pair_loss", "pair_beta", "pair_label_smoothing")
# What decides advantages, and corrects them: a loss on pairs has none.
_NOT_ON_PAIRS = (
    "advantage_baseline", "scale_advantages", "credit", "loss_aggregation", "kl_coefficient",
    "importance_sampling", "importance_sampling_level", "importance_sampling_cap",
    "importance_sampling_floor",
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

    kl_limit: float = Field(default=0.01, gt=0)
    """`trpo`'s trust region: the mean KL divergence of a step, in nats a token."""
    fisher_iterations: int = Field(default=10, ge=1)
    """Conjugate-gradient iterations for `trpo`'s direction; each costs two forward and backward
    passes of `fisher_rows`."""
    fisher_damping: float = Field(default=0.1, ge=0)
    """Added to the Fisher matrix, relative to its curvature along the gradient. Higher turns the
    step from the natural gradient towards the plain one."""
    fisher_rows: int = Field(default=8, ge=0)
    """Rows, spread over the batch, that the Fisher matrix is taken from. 0: all. The limit is
    checked on all rows, whatever this is."""
    line_search_tries: int = Field(default=10, ge=1)
    """A step is halved until it is within `kl_limit` and an improvement, so often at most; then the
    weights stay as they were."""

    pairs_from: PairSource = "rollouts"
    """Where the pairs of `dpo` come from: the best and the worst conversation of each group that is
    played (`rollouts`), or preference pairs that are there already (`preferences`), of which an
    episode is one; nothing is played then, and no reward asked for."""
    pair_loss: PairLoss = "sigmoid"
    """`dpo`'s loss; `pair_losses.pair_loss` has the formulas and papers."""
    pair_beta: float = Field(default=0.1, gt=0)
    """How strongly `dpo` holds to the reference policy: higher stays closer."""
    pair_label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of pairs that are taken to be the wrong way round, with `pair_loss: robust`."""


def unread_settings(row: AlgorithmRow) -> frozenset[str]:
    """Settings that all other algorithms have and this one cannot take."""
    once = {"num_iterations"} if row.on_policy else set()
    return frozenset({*once, *(_NOT_ON_PAIRS if row.on_pairs else ())})


def problems_of_critic(
    config: TrainingConfig, row: AlgorithmRow, baseline: AdvantageBaseline
) -> Iterator[str]:
    """What of the critic's settings the algorithm does not read, or cannot work with."""
    if baseline != "value" or row.on_pairs:
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


def problems_of_pairs(config: TrainingConfig, row: AlgorithmRow) -> Iterator[str]:
    """What of the pairs' settings, or with pairs of the others, the algorithm does not read."""
    names, why = (
        (_NOT_ON_PAIRS, f"algorithm={config.algorithm!r}, which compares two conversations")
        if row.on_pairs
        else (_PAIRS, f"algorithm={config.algorithm!r}, which is not trained on pairs")
    )
    for name in _changed(config, names):
        if name != "importance_sampling_cap" or config.importance_sampling_cap is not None:
            yield f"{name}={getattr(config, name)!r} has no effect with {why}: leave it out"
    if row.on_pairs and config.pairs_from == "rollouts" and config.num_generations < 2:
        yield (
            f"num_generations={config.num_generations} leaves no pair to be made of a group: set "
            'it to 2 or more, or pairs_from="preferences"'
        )
    if config.pair_label_smoothing and config.pair_loss != "robust":
        yield (
            f"pair_label_smoothing={config.pair_label_smoothing} has no effect with "
            f'pair_loss="{config.pair_loss}": set pair_loss="robust" or pair_label_smoothing=0'
        )


def problems_of_trust_region(config: TrainingConfig, row: AlgorithmRow) -> Iterator[str]:
    """What a trust region cannot work with, or of its settings the algorithm does not read."""
    if not row.trust_region:
        for name in _changed(config, _TRUST_REGION):
            yield (
                f"{name}={getattr(config, name)!r} has no effect with "
                f'algorithm="{config.algorithm}", which has no trust region: leave it out'
            )
        return
    if config.bf16 or config.fp16:
        yield (
            f'algorithm="{config.algorithm}" takes differences of gradients that 16 bits round '
            "away: set bf16=False and fp16=False"
        )
    if config.lora_dropout:
        yield (
            f"lora_dropout={config.lora_dropout} makes another policy of every pass, and "
            f'algorithm="{config.algorithm}" measures how far one has moved: set lora_dropout=0'
        )
    if config.value_coefficient:
        yield (
            f"value_coefficient={config.value_coefficient} would move the policy beside its trust "
            "region: leave it out"
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
