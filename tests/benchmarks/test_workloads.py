"""Workloads: exact lengths, and counts of what they compute and move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.batches import random_batch
from benchmarks.counting import ModelSizes, decode_bytes, sizes_of, update_flops
from benchmarks.our_step import training_config
from benchmarks.scaling import POINTS
from benchmarks.workloads import (
    MULTI_TURN,
    STEP_WORKLOADS,
    EndlessTokenizer,
    Workload,
    between,
    opening,
    scenarios,
    tiny,
)
from stateset_agents.inference.loading import load_model
from stateset_agents.training.model_check import check_model
from tests.tiny_model import make_tiny_model, make_tiny_tokenizer


@pytest.mark.parametrize("workload", STEP_WORKLOADS, ids=lambda workload: workload.name)
def test_prompts_and_users_words_have_exactly_the_lengths_that_are_claimed(
    workload: Workload,
) -> None:
    workload, tokenizer = tiny(workload), EndlessTokenizer(make_tiny_tokenizer())
    for scenario in scenarios(workload, tokenizer):
        assert len(tokenizer.render(opening(scenario))) == workload.prompt_tokens
        for turn in range(workload.turns - 1):
            assert len(between(scenario, turn, tokenizer)) == workload.user_tokens


LONGEST_OF_SMOLLM2 = 8192  # its config's max_position_embeddings


@pytest.mark.parametrize(
    ("positions", "workloads"),
    [
        (LONGEST_OF_SMOLLM2, [*STEP_WORKLOADS, *(one for each in POINTS.values() for one in each)]),
        (2048, [tiny(workload) for workload in STEP_WORKLOADS]),  # what quick runs measure with
    ],
)
def test_every_workload_is_trained_with_lengths_that_it_needs_and_its_model_has(
    positions: int, workloads: list[Workload]
) -> None:
    with torch.device("meta"):  # of the model nothing but its positions is asked
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=positions))
    for workload in workloads:
        config = training_config(workload, {})
        check_model(model, config)
        assert config.max_prompt_length >= workload.prompt_tokens
        longest = config.max_prompt_length + config.max_completion_length
        assert workload.conversation_tokens <= longest <= positions


def test_conversations_of_different_groups_share_no_prompt() -> None:
    tokenizer = EndlessTokenizer(make_tiny_tokenizer())
    found = [tuple(tokenizer.render(opening(s))) for s in scenarios(tiny(MULTI_TURN), tokenizer)]
    assert len(set(found)) == len(found)


def test_a_random_batch_has_the_workloads_tokens_and_trains_on_the_sampled_ones() -> None:
    batch = random_batch(MULTI_TURN, 1000)
    assert batch.token_ids.shape == (16, 256 + 4 * 24 + 3 * 24)
    assert batch.loss_mask.sum() == MULTI_TURN.sampled_tokens == 16 * 4 * 24
    assert not batch.loss_mask[:, :256].any()
    assert batch.loss_mask[:, 256:280].all()
    assert not batch.loss_mask[:, 280:304].any()
    first, second = batch.token_ids[0, :256], batch.token_ids[8, :256]
    assert (batch.token_ids[:8, :256] == first).all()
    assert not (first == second).all()


def test_sizes_are_those_of_the_model(tmp_path: Path) -> None:
    sizes = sizes_of(load_model(make_tiny_model(tmp_path), dtype="float32"), rank=2)
    # q, o: 64 x 64; k, v: 32 x 64; gate, up, down: 128 x 64; two layers
    assert sizes.linear == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64)
    assert sizes.adapter == 2 * 2 * (2 * (64 + 64) + 2 * (32 + 64) + 3 * (128 + 64))
    assert sizes.head == 480 * 64
    assert (sizes.layers, sizes.query_width, sizes.key_value_width) == (2, 64, 32)
    assert sizes.bytes_per_number == 4


def test_work_is_counted_with_every_shared_prefix_once() -> None:
    sizes = ModelSizes(
        linear=100,
        adapter=10,
        head=1000,
        layers=2,
        query_width=8,
        key_value_width=4,
        bytes_per_number=2,
    )
    # one group of two rows: a prefix of 3 that is shared, 1 prompt token and 2 sampled ones each
    workload = Workload("x", prompt_tokens=4, turns=1, answer_tokens=2, group=2, rows=2)
    tokens, sampled = 3 + 2 * 3, 2 * 2
    pairs = (1 + 2 + 3) + 2 * (4 + 5 + 6)
    expected = tokens * (400 + 40) + 4 * 1000 * sampled + 12 * 8 * 2 * pairs
    assert update_flops(sizes, workload) == expected
    moved = (100 + 1000) + 2 * 2 * 4 * (4 + 2 * 1.5)
    assert decode_bytes(sizes, workload, own_tokens=1.5) == 2 * moved
