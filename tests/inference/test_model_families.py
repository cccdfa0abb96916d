"""The engine serves other decoder models than Llama, and says which it cannot."""

from __future__ import annotations

import asyncio

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from stateset_agents.exceptions import EngineError
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.engine import GenerationRequest, GenerationResult, SamplingParams
from stateset_agents.inference.packed_linear import PackedLinear, can_pack, pack_linears
from stateset_agents.inference.stub_engine import ByteTokenizer
from stateset_agents.inference.transformers_engine import TransformersEngine

SIZES = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.1,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
GPT2 = GPT2Config(
    vocab_size=258,
    n_embd=64,
    n_layer=2,
    n_head=4,
    n_positions=256,
    initializer_range=0.1,
    bos_token_id=256,
    eos_token_id=257,
)


def model_of(config: PreTrainedConfig) -> torch.nn.Module:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.mark.parametrize(
    "config", [GPT2, Qwen3Config(**SIZES), MistralConfig(**SIZES, sliding_window=96)], ids=type
)
def test_greedy_answers_are_those_of_transformers_generate(config: PreTrainedConfig) -> None:
    prompts = [tuple(b"Where is my parcel?"), tuple(b"Where is it?"), tuple(b"Hello, hello.")]
    expected = [
        model_of(config)
        .generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :]
        .tolist()
        for prompt in prompts
    ]
    engine = TransformersEngine(model_of(config), ChatTokenizer(ByteTokenizer()))

    async def ask() -> list[GenerationResult]:
        params = SamplingParams(20, temperature=0.0)
        asked = [GenerationRequest(prompt, params) for prompt in (*prompts, prompts[0])]
        results = await asyncio.gather(*(engine.generate(one) for one in asked))
        await engine.aclose()
        return results

    results = asyncio.run(ask())
    assert [list(result.token_ids) for result in results] == [*expected, expected[0]]


def test_a_failed_answer_leaves_nothing_in_the_cache_that_the_next_one_reads() -> None:
    # Positions from 50 on are broken: a long prompt fails, a short one in its slot must not.
    model = model_of(GPT2)
    with torch.no_grad():
        model.transformer.wpe.weight[50:] = float("nan")
    engine = TransformersEngine(model, ChatTokenizer(ByteTokenizer()))
    long, short = (
        GenerationRequest(tuple(b"Hello" * times), SamplingParams(3, temperature=0.0))
        for times in (11, 7)
    )

    async def ask() -> tuple[GenerationResult, GenerationResult]:
        before = await engine.generate(short)
        with pytest.raises(EngineError, match="not finite"):
            await engine.generate(long)
        after = await engine.generate(short)
        await engine.aclose()
        return before, after

    before, after = asyncio.run(ask())
    assert before == after


def test_within_its_sliding_window_a_model_has_its_context() -> None:
    model = model_of(MistralConfig(**SIZES, sliding_window=96, max_position_embeddings=512))
    assert TransformersEngine(model, ChatTokenizer(ByteTokenizer())).max_context_tokens == 96


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Gemma2Config(**SIZES), "asks attention for softcap"),
        (
            BloomConfig(vocab_size=258, hidden_size=64, n_layer=1, n_head=4),
            "does not use transformers' attention interface",
        ),
    ],
    ids=type,
)
def test_a_model_with_another_kind_of_attention_is_refused(
    config: PreTrainedConfig, message: str
) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with pytest.raises(EngineError, match=message):
        TransformersEngine(model, ChatTokenizer(ByteTokenizer()))


def test_packed_weights_give_the_same_products_and_follow_their_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(48, 80), torch.nn.Linear(80, 32, bias=False))
    model.to(torch.bfloat16).requires_grad_(False)
    names = dict(model.named_parameters())
    inputs = torch.randn(2, 5, 48, dtype=torch.bfloat16)
    expected = model(inputs)
    packed = pack_linears(model)
    assert [type(linear) for linear in packed] == [PackedLinear] * (2 * can_pack(names["0.weight"]))
    assert {name: id(value) for name, value in model.named_parameters()} == {
        name: id(value) for name, value in names.items()
    }
    torch.testing.assert_close(model(inputs), expected)
    names["1.weight"].mul_(2)
    for linear in packed:
        linear.pack()
    torch.testing.assert_close(model(inputs), 2 * expected)
