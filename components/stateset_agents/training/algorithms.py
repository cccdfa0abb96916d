"""The table of algorithms: an algorithm is a row of vetted defaults and the name of a loss.

Owns what distinguishes one algorithm from another, and the names that settings may take because of
it. The rollout and the trainer do not know which one runs; a new one is a row here, its name in
`Algorithm`, and a function in `losses.py` where its loss is new. It does not know torch, so that
loading a configuration stays cheap: `objective.py` puts functions to the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Algorithm = Literal[
    "grpo",
    "dr_grpo",
    "bnpo",
    "dapo",
    "gspo",
    "gspo_token",
    "cispo",
    "sapo",
    "rloo",
    "reinforce++",
    "ppo",
    "a2c",
    "trpo",
    "dpo",
]
AdvantageBaseline = Literal["group", "leave_one_out", "batch", "none", "value"]
LossAggregation = Literal[
    "sequence_mean", "token_mean", "fixed_length", "sequence_sum", "token_sum"
]
LossName = Literal[
    "token_ratio",
    "sequence_ratio",
    "sequence_ratio_by_token",
    "cispo",
    "sapo",
    "log_likelihood",
    "ratio",
    "pair",
]
PairLoss = Literal["sigmoid", "hinge", "ipo", "robust", "sigmoid_norm"]

# A loss's own parameters, and the settings in which a run may give others than the algorithm's.
SETTING_OF_BOUND: dict[str, str] = {
    "clip_left": "clip_range_left",
    "clip_right": "clip_range_right",
    "ratio_cap": "ratio_cap",
    "temperature_positive": "sapo_temperature_positive",
    "temperature_negative": "sapo_temperature_negative",
}


@dataclass(frozen=True, slots=True)
class AlgorithmRow:
    """One algorithm: its loss and the defaults of its paper.

    Attributes:
        loss: of `objective.LOSSES`, or `pair`: one of `pair_losses`, on pairs of conversations.
        bounds: the loss's own parameters by name, and their defaults; None = no such bound.
        loss_aggregation: how tokens are weighed against each other.
        advantage_baseline: what is taken off a reward.
        scale_advantages: whether it is then divided by the standard deviation.
        resampling_rounds: how often groups without spread are replaced by other scenarios' groups.
        overlong_buffer: the share of an answer's room in which length begins to cost; 0 = none.
        num_iterations: optimizer steps on one batch of conversations.
        on_policy: True where the loss corrects for nothing that happened since sampling, so that
            one optimizer step is all that a batch allows.
        trust_region: True where the policy takes natural-gradient steps within a KL limit instead
            of the optimizer's.
        value_coefficient: the share of the value loss that reaches the policy's weights.
        value_clip: how far a value is followed from its old estimate; 0 = anywhere.
    """

    loss: LossName
    bounds: Mapping[str, float | None]
    loss_aggregation: LossAggregation = "sequence_mean"
    advantage_baseline: AdvantageBaseline = "group"
    scale_advantages: bool = True
    resampling_rounds: int = 0
    overlong_buffer: float = 0.0
    num_iterations: int = 1
    on_policy: bool = False
    trust_region: bool = False
    value_coefficient: float = 0.1
    value_clip: float = 0.0

    @property
    def can_credit_turns(self) -> bool:
        """False where one ratio, and so one advantage, stands for the whole conversation."""
        return self.loss not in ("sequence_ratio", "pair")

    @property
    def on_pairs(self) -> bool:
        """True where two conversations are compared, and no advantage is computed."""
        return self.loss == "pair"


def _clips(left: float, right: float) -> dict[str, float | None]:
    return {"clip_left": left, "clip_right": right, "ratio_cap": None}


ALGORITHMS: dict[Algorithm, AlgorithmRow] = {
    # arXiv:2402.03300, with the wider upper clip of DAPO, which keeps exploration alive
    "grpo": AlgorithmRow("token_ratio", _clips(0.2, 0.28)),
    # arXiv:2503.20783: neither a conversation's length nor a group's spread weighs anything
    "dr_grpo": AlgorithmRow(
        "token_ratio", _clips(0.2, 0.2), loss_aggregation="fixed_length", scale_advantages=False
    ),
    # GRPO normalised by the tokens of the batch
    "bnpo": AlgorithmRow("token_ratio", _clips(0.2, 0.2), loss_aggregation="token_mean"),
    # arXiv:2503.14476: clip-higher, token-level loss, dynamic sampling, overlong shaping (section
    # 4.1: a buffer of 4,096 in 20,480 tokens)
    "dapo": AlgorithmRow(
        "token_ratio",
        _clips(0.2, 0.28),
        loss_aggregation="token_mean",
        resampling_rounds=3,
        overlong_buffer=0.2,
    ),
    # clips of section 5.1 of arXiv:2507.18071
    "gspo": AlgorithmRow("sequence_ratio", _clips(3e-4, 4e-4)),
    "gspo_token": AlgorithmRow("sequence_ratio_by_token", _clips(3e-4, 4e-4)),
    # arXiv:2506.13585 leaves its bound open; 5 in all is what Khatri et al. 2025 (arXiv:2510.13786)
    # scaled with
    "cispo": AlgorithmRow(
        "cispo", {"clip_left": None, "clip_right": 4.0}, loss_aggregation="token_mean"
    ),
    # temperatures of arXiv:2511.20347
    "sapo": AlgorithmRow("sapo", {"temperature_positive": 1.0, "temperature_negative": 1.05}),
    # Ahmadian et al. 2024 (arXiv:2402.14740): the others' mean as baseline; a conversation is one
    # action, so its log-probs are summed; the clip matters off-policy only
    "rloo": AlgorithmRow(
        "token_ratio",
        _clips(0.2, 0.2),
        loss_aggregation="sequence_sum",
        advantage_baseline="leave_one_out",
        scale_advantages=False,
    ),
    # Hu 2025 (arXiv:2501.03262): rewards normalised over the whole batch
    "reinforce++": AlgorithmRow(
        "token_ratio", _clips(0.2, 0.2), loss_aggregation="token_mean", advantage_baseline="batch"
    ),
    # Schulman et al. 2017 (arXiv:1707.06347), with advantages whitened over the step as in its
    # code; clips of 0.2, four epochs and a tenth of the value loss are what TRL had
    "ppo": AlgorithmRow(
        "token_ratio",
        _clips(0.2, 0.2),
        loss_aggregation="token_mean",
        advantage_baseline="value",
        num_iterations=4,
        value_clip=0.2,
    ),
    # Mnih et al. 2016 (arXiv:1602.01783), without the asynchronous actors
    "a2c": AlgorithmRow(
        "log_likelihood",
        {},
        loss_aggregation="token_mean",
        advantage_baseline="value",
        scale_advantages=False,
        on_policy=True,
    ),
    # Schulman et al. 2015 (arXiv:1502.05477), with the critic and the estimator of
    # arXiv:1506.02438; the critic leaves the policy's weights alone, or its steps would leave the
    # region
    "trpo": AlgorithmRow(
        "ratio",
        {},
        loss_aggregation="token_mean",
        advantage_baseline="value",
        on_policy=True,
        trust_region=True,
        value_coefficient=0.0,
    ),
    # Rafailov et al. 2023 (arXiv:2305.18290); log-probs are summed over a conversation's tokens
    "dpo": AlgorithmRow(
        "pair", {}, loss_aggregation="token_sum", advantage_baseline="none", scale_advantages=False
    ),
}
