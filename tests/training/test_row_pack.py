"""A packed micro-batch gives each row what it would have had in a forward pass of its own."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from stateset_agents.training.logprobs import batch_logprobs
from stateset_agents.training.policy import Policy
from stateset_agents.training.row_pack import Block, PackAttention, RowPack, pack_rows
from tests.training.made import make_advantages, make_config, make_rows, to_batch

SIZES = {
    "vocab_size": 480,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.1,
}
GPT2 = GPT2Config(vocab_size=480, n_embd=64, n_layer=2, n_head=4, n_positions=128)
PACKED = [GPT2, Qwen2Config(**SIZES), Qwen3Config(**SIZES), MistralConfig(**SIZES)]
UNPACKED = [MistralConfig(**SIZES, sliding_window=16), Gemma2Config(**SIZES)]


def pack_of(prefix: int, lengths: list[int], block: int) -> RowPack:
    """Rows of those lengths after a prefix, in blocks of at most `block` queries."""
    blocks, first = [], 0
    for number, length in enumerate([prefix, *lengths]):
        last = first + length
        for start in range(first, last, block):
            end = min(start + block, last)
            blocks.append(Block(start, end, first, last, sees_prefix=number > 0))
        first = last
    nothing = torch.empty(0, dtype=torch.int64)
    return RowPack(nothing, nothing, nothing, prefix, tuple(blocks))


def row_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, prefix: int, lengths: list[int]
) -> torch.Tensor:
    """torch's attention on each row with its own copy of the prefix, `(N, heads, width)`."""
    parts, first = [], prefix
    for length in [0, *lengths]:
        seen = [*range(prefix), *range(first, first + length)]
        whole = scaled_dot_product_attention(
            query[None, :, seen],
            key[None, :, seen],
            value[None, :, seen],
            is_causal=True,
            scale=1.0,
            enable_gqa=True,
        )[0]
        parts.append(whole[:, prefix:] if length else whole)
        first += length
    return torch.cat(parts, dim=1).transpose(0, 1)


@pytest.mark.parametrize("block", [256, 3])
@pytest.mark.parametrize(("prefix", "lengths"), [(5, [4, 1, 7]), (9, [2])])
def test_attention_and_its_gradients_are_those_of_each_row_alone(
    prefix: int, lengths: list[int], block: int
) -> None:
    generator = torch.Generator().manual_seed(3)
    tokens = prefix + sum(lengths)
    inputs = [
        torch.randn(heads, tokens, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    ]
    weights = torch.randn(tokens, 4, 8, generator=generator, dtype=torch.float64)

    found = PackAttention.apply(*inputs, pack_of(prefix, lengths, block))
    expected = row_by_row(*inputs, prefix, lengths)

    torch.testing.assert_close(found, expected)
    found_gradients = torch.autograd.grad((found * weights).sum(), inputs)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_pack_holds_the_prefix_once_and_no_token_after_which_nothing_is_predicted() -> None:
    rows = make_rows(groups=1, generations=2)
    batch = to_batch(rows, make_advantages(rows))
    prefix = 23
    ends = [max(n for n, sampled in enumerate(row.loss_mask) if sampled) for row in rows]

    pack = pack_rows(batch, prefix)

    own = [list(row.token_ids[prefix:end]) for row, end in zip(rows, ends, strict=True)]
    assert pack.token_ids.tolist() == [*rows[0].token_ids[:prefix], *own[0], *own[1]]
    assert pack.positions.tolist() == [*range(ends[0]), *range(prefix, ends[1])]
    states = [
        (row.token_ids[place - 1], place - 1)
        for row in rows
        for place, sampled in enumerate(row.loss_mask)
        if sampled
    ]
    assert [
        (int(pack.token_ids[place]), int(pack.positions[place])) for place in pack.predicting
    ] == states


@pytest.mark.parametrize("config", PACKED, ids=type)
def test_other_families_are_packed_too(config: PreTrainedConfig) -> None:
    policy = policy_of(config)

    assert policy.longest_packed_row >= 128
    assert_log_probs_are_those_of_the_whole_logits(policy)


@pytest.mark.parametrize("config", UNPACKED, ids=type)
def test_a_model_whose_attention_is_another_is_not_packed_and_trains_all_the_same(
    config: PreTrainedConfig,
) -> None:
    policy = policy_of(config)

    assert policy.longest_packed_row <= 16
    assert_log_probs_are_those_of_the_whole_logits(policy)


def policy_of(config: PreTrainedConfig) -> Policy:
    torch.manual_seed(1)
    config.final_logit_softcapping = None
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if isinstance(config, Gemma2Config) else "sdpa"
    )
    return Policy(model, make_config())


def assert_log_probs_are_those_of_the_whole_logits(policy: Policy) -> None:
    rows = make_rows(groups=1)
    batch = to_batch(rows, make_advantages(rows))

    with torch.no_grad():
        tokens = batch_logprobs(policy, batch, share_prefix=True)
        logits = policy.model(input_ids=batch.token_ids).logits[:, :-1] / 0.9

    chosen = logits.log_softmax(-1).gather(2, batch.token_ids[:, 1:, None])[..., 0]
    sampled = batch.loss_mask[:, 1:]
    torch.testing.assert_close(
        tokens.logprobs[:, 1:][sampled], chosen[sampled], rtol=1e-4, atol=1e-4
    )
