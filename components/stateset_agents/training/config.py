"""The settings of policy training: `train` in `params.yaml`, `TrainingConfig` in the Python API.

Owns every number that the optimisation reads, and the check that they can work together. It does
not know torch (loading a configuration stays cheap) nor what an algorithm computes; an algorithm's
vetted defaults stand in `algorithms.py` and hold where a setting is None here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.algorithm_settings import (
    AlgorithmSettings,
    problems_of_critic,
    problems_of_kl,
    problems_of_pairs,
    problems_of_trust_region,
    unread_settings,
)
from stateset_agents.training.algorithms import (
    ALGORITHMS,
    SETTING_OF_BOUND,
    AdvantageBaseline,
    Algorithm,
    AlgorithmRow,
    LossAggregation,
)
from stateset_agents.training.model_size import estimated_parameters
from stateset_agents.training.monitoring_settings import (
    MONITORING_SETTINGS,
    MonitoringSettings,
    problems_of_monitoring,
)

Credit = Literal["episode", "turn"]
ImportanceSampling = Literal["truncate", "mask"]
ImportanceSamplingLevel = Literal["token", "sequence"]
KLEstimator = Literal["k1", "k2", "k3"]
LearningRateSchedule = Literal["constant", "linear", "cosine"]

# They say when to look and to save, not what is computed: a run may be resumed with others.
SETTINGS_WITHOUT_EFFECT_ON_WEIGHTS = MONITORING_SETTINGS | {
    "kl_sample_rows",
    "sampling_difference_limit",
}


class TrainingConfig(AlgorithmSettings, MonitoringSettings):
    """How a policy is trained.

    An episode is one scenario visited: a group of `num_generations` conversations. One optimizer
    step takes `per_device_train_batch_size * gradient_accumulation_steps` groups. They are played
    side by side and the loss is normalised over all of them, so the product alone counts, not how
    it is shared out; memory is `micro_batch_tokens`' to decide.
    """

    algorithm: Algorithm = "grpo"
    """A row of the table in `algorithms.py`; `docs/algorithms.md` says when to use which. A setting
    below whose default is None takes the row's."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides adapter initialisation, dropout, the order of scenarios and every sample."""

    num_episodes: int = Field(default=1000, ge=1)
    """Scenarios visited in one epoch; a shorter list of scenarios is gone through again."""
    num_epochs: int = Field(default=1, ge=1)
    """Times that `num_episodes` scenarios are visited."""
    per_device_train_batch_size: int = Field(default=1, ge=1)
    """Groups in one optimizer step, before they are multiplied by the next setting."""
    gradient_accumulation_steps: int = Field(default=4, ge=1)
    """Times `per_device_train_batch_size` groups before one optimizer step."""
    num_generations: int = Field(default=16, ge=1)
    """Conversations per scenario: the group G that an advantage compares. 1 only where the baseline
    is not the group's."""
    warm_start_steps: int = Field(default=0, ge=0)
    """Steps of imitation of demonstrations before the first conversation is played. 0: none."""
    warm_start_batch_size: int = Field(default=16, ge=1)
    """Demonstrations in one such step."""
    num_iterations: int | None = Field(default=None, ge=1)
    """Optimizer steps on one batch of conversations; above 1 the later ones are off-policy. None:
    the algorithm's own."""
    off_policy_steps: int = Field(default=0, ge=0, le=1)
    """1: the conversations of a step are sampled with the weights before the previous step's
    update, so that playing and updating may overlap; importance sampling corrects for it. 0: with
    the newest weights."""
    resampling_rounds: int | None = Field(default=None, ge=0)
    """Groups whose rewards are all equal teach nothing; they are replaced by groups of further
    scenarios, at most so many times in one step (DAPO's dynamic sampling). 0: never. None: the
    algorithm's own."""

    learning_rate: float = Field(default=5e-6, gt=0)
    """Peak learning rate. LoRA usually wants ten to a hundred times that of full weights."""
    lr_schedule: LearningRateSchedule = "constant"
    """What follows the warm-up: stay, or fall to 0 along a line or half a cosine."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of the optimizer steps in which the learning rate rises from 0. 0: none."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's mean of gradients."""
    adam_beta2: float = Field(default=0.99, ge=0, lt=1)
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Added to AdamW's denominator."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay per unit of learning rate. 0: none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient's norm over all parameters is scaled down to this."""

    max_prompt_length: int = Field(default=512, ge=1)
    """Tokens before the first sampled one. A conversation with a longer opening is left out of
    training and counted (`rows/prompt_too_long`): cut on the left it would be another prompt."""
    max_completion_length: int = Field(default=512, ge=1)
    """Tokens from the first sampled one on, the user's words between answers included. What lies
    beyond is not trained on and counted (`rows/cut_tokens`). The main limit on memory."""

    advantage_baseline: AdvantageBaseline | None = None
    """What is taken off a reward: the mean of its `group`, of the group's other conversations
    (`leave_one_out`), of the whole step (`batch`), nothing (`none`), or what a critic expected
    (`value`), decision by decision. None: the algorithm's own."""
    scale_advantages: bool | None = None
    """Divide by the standard deviation of what the baseline was taken from. None: the algorithm's
    own."""
    overlong_buffer: float | None = Field(default=None, ge=0, lt=1)
    """Share of `max_new_tokens` at its end in which an answer's length costs reward: nothing where
    the buffer begins, 1 where the answer was cut off (DAPO's overlong shaping). 0: never. None: the
    algorithm's own."""
    credit: Credit = "episode"
    """What an answer's tokens are credited with: the reward of the whole conversation (`episode`),
    or their own turn's, compared with the same turn of the group's other conversations (`turn`;
    needs a reward that tells turns apart, and an algorithm other than `gspo`)."""
    turn_discount: float = Field(default=0.0, ge=0, le=1)
    """With `credit: turn`, the share of each later turn's reward that an answer is credited with.
    0: its own turn alone; 1: all that follows."""
    loss_aggregation: LossAggregation | None = None
    """How tokens' losses become the step's. `sequence_mean`: every conversation counts the same;
    `token_mean`: every token of the step; `sequence_sum`: tokens summed, divided by conversations;
    `fixed_length`: that, divided by `max_completion_length`; `token_sum`: a plain sum. None: the
    algorithm's own."""
    clip_range_left: float | None = Field(default=None, gt=0, lt=1)
    """Lower clip: ratios below 1 - this do not push further down. None: the algorithm's own."""
    clip_range_right: float | None = Field(default=None, gt=0)
    """Upper clip: ratios above 1 + this do not push further up. None: the algorithm's own."""
    ratio_cap: float | None = Field(default=None, gt=1)
    """Above this ratio an answer that was bad is not pushed down any harder ("two-sided clipping",
    `delta` elsewhere). None: no cap."""
    sapo_temperature_positive: float | None = Field(default=None, gt=0)
    """How fast `sapo`'s gate closes on what was good. None: the algorithm's own."""
    sapo_temperature_negative: float | None = Field(default=None, gt=0)
    """How fast `sapo`'s gate closes on what was not. None: the algorithm's own."""
    kl_coefficient: float = Field(
        default=0.0, ge=0, validation_alias=AliasChoices("kl_coefficient", "beta", "kl_penalty")
    )
    """Weight of the KL divergence to the reference policy in the loss (`beta`, `kl_penalty`).
    0: no reference pass but for the small sample that the metrics show."""
    kl_estimator: KLEstimator = "k3"
    """How the divergence is estimated from one sample; `losses.kl_divergence` has the formulas."""
    kl_bias_correction: bool = False
    """Weigh each token's divergence by its ratio to the old policy, so that its gradient is that of
    the KL divergence itself off-policy as well (DeepSeek-V3.2, arXiv:2512.02556)."""
    kl_sample_rows: int = Field(default=2, ge=0)
    """Rows per step on which KL is measured when its weight is 0. 0: not measured, and full
    training keeps no frozen copy of the base model."""
    importance_sampling: ImportanceSampling = "truncate"
    """What corrects for the engine's log-probs differing from training's: a token's loss is weighed
    by the ratio of the two, which is `truncate`d at the cap, or taken to be 0 where it leaves the
    band between floor and cap (`mask`). `losses.importance_weights` has the papers."""
    importance_sampling_level: ImportanceSamplingLevel = "token"
    """A ratio for each `token`, or one for all that was sampled in one context (`sequence`)."""
    importance_sampling_cap: float | None = Field(default=2.0, gt=0)
    """Highest ratio. None: no correction."""
    importance_sampling_floor: float = Field(default=0.0, ge=0)
    """Lowest ratio with `importance_sampling: mask`, such as 0.5. 0: none."""
    sampling_difference_limit: float = Field(default=0.1, gt=0)
    """A run warns when the engine's log-probs differ from training's by more than this, in nats, on
    the mean of a step's tokens."""

    bf16: bool = True
    """Compute in bfloat16, on hardware that has it; what the optimizer changes stays float32.
    False: all in float32."""
    fp16: bool = False
    """Compute in float16, with dynamic loss scaling, in place of bfloat16: for GPUs older than it.
    Hardware that is slower at it than at float32 (most processors) gets float32 and a warning."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens, padding included, that go through the model at once; a longer row goes alone.
    Changes memory and speed, not the gradient."""
    share_prefix: bool = True
    """Forward what the conversations of a group begin with once. Changes speed, not the result."""

    use_lora: bool = False
    """Train a low-rank adapter instead of all weights."""
    lora_r: int = Field(default=16, ge=1)
    """The adapter's rank."""
    lora_alpha: float = Field(default=32, gt=0)
    """The adapter's update is scaled by lora_alpha / lora_r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input during the update; the policy that samples has none."""
    lora_target_modules: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the layers to adapt (`["q_proj", "v_proj"]`), or every linear layer but the head."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        self._choose_precision()
        problems = [
            *self._problems_of_algorithm(ALGORITHMS[self.algorithm]),
            *self._problems_of_corrections(),
            *problems_of_monitoring(self),
            *problems_of_kl(self),
            *problems_of_pairs(self, ALGORITHMS[self.algorithm]),
            *problems_of_trust_region(self, ALGORITHMS[self.algorithm]),
        ]
        if self.bf16 and self.fp16:
            problems.append(
                "bf16=True and fp16=True contradict each other, a run computes in one format: set "
                "bf16=True (wherever the hardware has it) or fp16=True, and the other False"
            )
        if self.lora_dropout and not self.use_lora:
            problems.append(
                f"lora_dropout={self.lora_dropout} has no effect with use_lora=False: "
                "set use_lora=True or lora_dropout=0"
            )
        if self.turn_discount and self.credit == "episode":
            problems.append(
                f'turn_discount={self.turn_discount} has no effect with credit="episode": '
                'set credit="turn" or turn_discount=0'
            )
        if self.lora_target_modules != "all-linear" and not self.lora_target_modules:
            problems.append(
                'lora_target_modules=[] adapts nothing: name layers, or give "all-linear"'
            )
        problems += self._problems_of_length()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _choose_precision(self) -> None:
        """`fp16` takes the place of a `bf16` that nobody has set."""
        if self.fp16 and "bf16" not in self.model_fields_set:
            self.__dict__["bf16"] = False  # an assignment would check again, and never end

    def _problems_of_length(self) -> Iterator[str]:
        if self.groups_per_step > self.num_episodes:
            yield (
                f"one optimizer step takes {self.groups_per_step} scenarios "
                f"(per_device_train_batch_size={self.per_device_train_batch_size} x "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}) but "
                f"num_episodes={self.num_episodes}: raise num_episodes or lower one of the factors"
            )

    def _problems_of_algorithm(self, row: AlgorithmRow) -> Iterator[str]:
        if self.credit == "turn" and not row.can_credit_turns and not row.on_pairs:
            yield (
                f'credit="turn" cannot work with algorithm="{self.algorithm}", which has one ratio '
                'and one advantage per conversation: set credit="episode" or '
                'algorithm="gspo_token"'
            )
        for bound, setting in SETTING_OF_BOUND.items():
            value = getattr(self, setting)
            if value is not None and bound not in row.bounds:
                takes = ", ".join(SETTING_OF_BOUND[name] for name in row.bounds)
                yield (
                    f'{setting}={value} has no effect with algorithm="{self.algorithm}", whose '
                    f"loss takes {takes}: leave it out"
                )
        if row.on_policy and (self.num_iterations or 1) > 1:
            yield (
                f'num_iterations={self.num_iterations} cannot work with algorithm="{self.algorithm}'
                '", whose loss is right for the policy that sampled alone: leave it out, or choose '
                'algorithm="ppo", which clips'
            )
        baseline = self.advantage_baseline or row.advantage_baseline
        yield from problems_of_critic(self, row, baseline)
        compared = self.num_generations
        if baseline == "batch":
            compared *= self.groups_per_step
        if baseline not in ("none", "value") and compared < 2:
            whom = "step" if baseline == "batch" else "group"
            yield (
                f'num_generations={self.num_generations} leaves advantage_baseline="{baseline}" '
                f"(set, or of algorithm={self.algorithm!r}) one conversation per {whom}, which has "
                "nothing to be compared with: raise num_generations, or set another "
                "advantage_baseline"
            )
        if self.resampling_rounds and self.num_generations == 1:
            yield (
                f"resampling_rounds={self.resampling_rounds} cannot work with num_generations=1: a "
                "group of one never has spread; set resampling_rounds=0"
            )

    def _problems_of_corrections(self) -> Iterator[str]:
        if self.kl_bias_correction and not self.kl_coefficient:
            yield (
                "kl_bias_correction=True has no effect with kl_coefficient=0: set kl_coefficient "
                "above 0 or kl_bias_correction=False"
            )
        cap, floor = self.importance_sampling_cap, self.importance_sampling_floor
        if cap is None and self.importance_sampling == "mask":
            yield (
                'importance_sampling="mask" has no band without importance_sampling_cap: set a cap '
                'such as 5.0, or importance_sampling="truncate" for no correction'
            )
        if cap is None and self.off_policy_steps:
            yield (
                f"off_policy_steps={self.off_policy_steps} needs importance sampling, which "
                "importance_sampling_cap=None turns off: set a cap such as 2.0, or "
                "off_policy_steps=0"
            )
        if floor and self.importance_sampling == "truncate":
            yield (
                f'importance_sampling_floor={floor} has no effect with importance_sampling="'
                'truncate", which lowers weights alone: set importance_sampling="mask" or '
                "importance_sampling_floor=0"
            )
        if cap is not None and floor >= cap:
            yield (
                f"importance_sampling_floor={floor} is not below importance_sampling_cap={cap}, so "
                "no token would count: lower the floor or raise the cap"
            )

    @property
    def groups_per_step(self) -> int:
        """Scenarios in one optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def total_steps(self) -> int:
        """Batches of conversations in the whole run; a last one that would be smaller is left
        out, since its advantages would weigh more.
        """
        return self.num_episodes * self.num_epochs // self.groups_per_step

    @property
    def beta(self) -> float:
        """The guide's name for `kl_coefficient`."""
        return self.kl_coefficient

    @beta.setter
    def beta(self, value: float) -> None:
        self.kl_coefficient = value

    @property
    def kl_penalty(self) -> float:
        """The guide's other name for `kl_coefficient`."""
        return self.kl_coefficient

    @kl_penalty.setter
    def kl_penalty(self, value: float) -> None:
        self.kl_coefficient = value


# What a profile changes of the defaults; the caller's own settings win.
PROFILES: dict[str, dict[str, Any]] = {
    # small steps, close to the policy that sampled and to the one that training started from
    "conservative": {
        "learning_rate": 1e-6,
        "clip_range_left": 0.1,
        "clip_range_right": 0.1,
        "kl_coefficient": 0.05,
        "max_grad_norm": 0.5,
        "warmup_ratio": 0.2,
    },
    "balanced": {},
    # larger steps, and room upwards for what is rare and good
    "aggressive": {
        "learning_rate": 2e-5,
        "clip_range_left": 0.2,
        "clip_range_right": 0.4,
        "max_grad_norm": 2.0,
        "warmup_ratio": 0.03,
    },
    # what the newest papers combine: DAPO's sampling and token weights, two steps on a batch
    "experimental": {
        "algorithm": "dapo",
        "learning_rate": 1e-5,
        "num_iterations": 2,
        "lr_schedule": "cosine",
        "importance_sampling": "mask",
        "importance_sampling_cap": 5.0,
        "importance_sampling_floor": 0.5,
    },
}

# What the conversations of a domain ask for.
DOMAINS: dict[str, dict[str, Any]] = {
    # short answers that have to stay with a policy
    "customer_service": {"max_completion_length": 512, "kl_coefficient": 0.02},
    # steps to follow: long answers, long histories
    "technical_support": {"max_prompt_length": 1024, "max_completion_length": 1024},
    # many ways to be good: wider groups, more room upwards
    "sales": {"num_generations": 24, "clip_range_left": 0.2, "clip_range_right": 0.4},
}

_CLIPS = frozenset({"clip_range_left", "clip_range_right"})

# From this size on, float32 masters and Adam's states (16 bytes a parameter) outgrow one device.
LORA_FROM_PARAMETERS = 1e9
LORA_LEARNING_RATE_FACTOR = 20


def config_for_profile(profile: str, **settings: Any) -> TrainingConfig:
    """The defaults, what the profile changes, and then `settings`.

    `conservative` (a fifth of the learning rate, clips half as wide, a KL term), `balanced` (the
    defaults), `aggressive` (four times the learning rate, a wider upper clip),
    `experimental` (DAPO, two steps on a batch, masked importance sampling).

    Raises:
        ConfigurationError: an unknown profile, or settings that cannot work.
    """
    return _config_over(_named(PROFILES, "profile", profile), settings)


def get_config_for_task(
    task: str, model_name: str | None = None, *, profile: str = "balanced", **settings: Any
) -> TrainingConfig:
    """What works for a domain: `customer_service`, `technical_support` or `sales`.

    Args:
        task: the domain.
        model_name: a folder or a name that tells the size (`llama-7b`); from a billion parameters
            on an adapter is trained, at twenty times the learning rate. None: full weights.
        profile: what the domain's settings are laid over.
        **settings: of `TrainingConfig`; they win.

    Raises:
        ConfigurationError: an unknown domain or profile, or settings that cannot work.
    """
    chosen = {
        **_named(PROFILES, "profile", profile),
        **_named(DOMAINS, "task", task),
    }
    size = estimated_parameters(model_name) if model_name else None
    if size is not None and size >= LORA_FROM_PARAMETERS:
        rate = chosen.get("learning_rate", TrainingConfig.model_fields["learning_rate"].default)
        chosen |= {"use_lora": True, "learning_rate": rate * LORA_LEARNING_RATE_FACTOR}
    return _config_over(chosen, settings)


def _config_over(chosen: dict[str, Any], settings: dict[str, Any]) -> TrainingConfig:
    """A table's clips are a token ratio's; another loss keeps its own, which are of another size
    (GSPO's are a thousand times tighter) or none. What an algorithm does not read is left out.
    """
    row = ALGORITHMS.get(settings.get("algorithm", chosen.get("algorithm", "grpo")))
    if row is not None:
        unread = unread_settings(row) | (_CLIPS if row.loss != "token_ratio" else frozenset())
        chosen = {name: value for name, value in chosen.items() if name not in unread}
    said = {name for key in settings if (name := _field_of(key))}
    return TrainingConfig(**{name: chosen[name] for name in chosen if name not in said}, **settings)


def _field_of(key: str) -> str | None:
    """The field that a key or another spelling of it (`beta` for `kl_coefficient`) sets."""
    for name, field in TrainingConfig.model_fields.items():
        alias = field.validation_alias
        if key == name or (isinstance(alias, AliasChoices) and key in alias.choices):
            return name
    return None


def _named(table: dict[str, dict[str, Any]], what: str, name: str) -> dict[str, Any]:
    if name not in table:
        raise ConfigurationError(f"{what} {name!r} is unknown; choose from {', '.join(table)}")
    return table[name]
