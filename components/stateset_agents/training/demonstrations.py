"""A warm start: imitate good answers before reinforcement learning explores.

A policy can only be reinforced in what it samples. A small model that never asks for an order
number by itself would have to stumble on it; a few steps of imitation make it likely enough to be
found, and reinforcement decides when it is right. This is the first stage of Ouyang et al. 2022
(arXiv:2203.02155).

Owns demonstrations as rows of a `TrainingBatch`, and their order. It does not know files, nor the
optimizer: the step is `step.train_step`, since the gradient of a policy-gradient loss at advantage
1, on-policy, is that of the negative log-likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stateset_agents.core.trajectory import Message
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import StepRow, StepRows, make_batch
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.scenario_order import scenarios_of_step


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A conversation so far, oldest message first, and an answer to imitate."""

    messages: tuple[Message, ...]
    answer: str


def demonstration_batch(
    demonstrations: Sequence[Demonstration],
    step: int,
    tokenizer: ChatTokenizer,
    config: TrainingConfig,
) -> TrainingBatch:
    """The batch of imitation step `step` (from 0): `warm_start_batch_size` rows, advantage 1 on
    every token of an answer, the token that ends it included; all tokens weigh the same.

    Log-probs are at temperature 1: what is imitated was not sampled at any.
    """
    chosen = scenarios_of_step(demonstrations, step, config.warm_start_batch_size, config.seed)
    rows = StepRows(rows=[_row(one, number, tokenizer) for number, one in enumerate(chosen)])
    return make_batch(
        rows,
        torch.ones(len(chosen), dtype=torch.float64),
        loss_aggregation="token_mean",
        max_completion_length=config.max_completion_length,
        pad_token_id=tokenizer.pad_token_id,
        temperature=1.0,
        keep_all_rows=True,
    )


def _row(demonstration: Demonstration, number: int, tokenizer: ChatTokenizer) -> StepRow:
    prompt = tokenizer.render(demonstration.messages)
    answer = tokenizer.encode_answer(demonstration.answer)
    return StepRow(
        token_ids=(*prompt, *answer),
        loss_mask=(False,) * len(prompt) + (True,) * len(answer),
        sampling_logprobs=(0.0,) * (len(prompt) + len(answer)),
        trajectory=number,
        group=number,  # nothing is shared: every demonstration has a context of its own
        turn_index=(-1,) * len(prompt) + (0,) * len(answer),
    )
