"""The engine's own forward pass computes what transformers' modules compute."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from stateset_agents.inference.attention import ATTENTION_NAME, Row, plan_attention
from stateset_agents.inference.engine import (
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from stateset_agents.inference.forward import Forward, ModuleForward, forward_of
from stateset_agents.inference.llama_forward import LlamaForward
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.inference.slot_cache import LayerShape, SlotCache
from stateset_agents.inference.transformers_engine import TransformersEngine

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "grouped queries, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "one key head a query head, untied": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
    "biases everywhere": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "wide heads, scaled positions": LlamaConfig(**SIZES, head_dim=32, rope_parameters=LLAMA_3_ROPE),
    "Mistral": MistralConfig(**SIZES),
    "Qwen 2": Qwen2Config(**SIZES),
    "Qwen 3": Qwen3Config(**SIZES, head_dim=16),
}


def model_of(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def logits_of(forward: Forward, model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """Of every position: a piece of 21 tokens, then the rest one by one."""
    first = model.model.layers[0].self_attn
    shape = LayerShape(model.config.num_key_value_heads, first.head_dim, first.head_dim)
    shapes = dict.fromkeys(range(model.config.num_hidden_layers), shape)
    own, shared = (
        SlotCache(shapes, slots=2, capacity=64, dtype=model.dtype, device=model.device)
        for _ in range(2)
    )
    logits = []
    start = 0
    with torch.inference_mode():
        for count in (21, *[1] * (len(ids) - 21)):
            plan = plan_attention([Row(1, start, count)], own, shared, model.device)
            tokens = torch.tensor(ids[start : start + count])
            logits.append(forward(tokens, plan, torch.arange(count)))
            start += count
    return torch.cat(logits)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers_own_forward(name: str) -> None:
    model = model_of(CONFIGS[name])
    ids = torch.randint(0, 97, (30,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    assert LlamaForward.serves(model)
    got = logits_of(LlamaForward(model, pack_weights=False), model, ids)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_module_with_our_attention_inside_gives_the_same_logits(name: str) -> None:
    model = model_of(CONFIGS[name])
    ids = torch.randint(0, 97, (30,), generator=torch.Generator().manual_seed(2)).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    model.set_attn_implementation(ATTENTION_NAME)
    got = logits_of(ModuleForward(model, pack_weights=False), model, ids)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_written_to_are_those_that_answer(dtype: torch.dtype) -> None:
    model, other = (model_of(CONFIGS["biases everywhere"], dtype) for _ in range(2))
    ids = list(range(30))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.25)
    forward = LlamaForward(model, pack_weights=True)
    before = logits_of(forward, model, ids)
    with torch.no_grad():
        for parameter, changed in zip(model.parameters(), other.parameters(), strict=True):
            parameter.copy_(changed)
    forward.pack()
    after = logits_of(forward, model, ids)
    assert not torch.equal(before, after)
    assert torch.equal(after, logits_of(LlamaForward(other, pack_weights=True), other, ids))


def subclassed() -> LlamaForCausalLM:
    class Capped(LlamaForCausalLM):
        pass

    return Capped(LlamaConfig(**SIZES))


def with_an_adapter() -> LlamaForCausalLM:
    class Adapted(torch.nn.Linear):
        pass

    model = model_of(LlamaConfig(**SIZES))
    model.model.layers[1].mlp.up_proj = Adapted(64, 96, bias=False)
    return model


def with_a_hook() -> LlamaForCausalLM:
    model = model_of(LlamaConfig(**SIZES))
    model.model.layers[0].register_forward_hook(lambda *_: None)
    return model


def with_one_bias() -> LlamaForCausalLM:
    model = model_of(LlamaConfig(**SIZES))
    model.model.layers[0].self_attn.k_proj = torch.nn.Linear(64, 32)
    return model


def with_another_activation() -> LlamaForCausalLM:
    return model_of(LlamaConfig(**SIZES, hidden_act="gelu"))


@pytest.mark.parametrize(
    "make", [subclassed, with_an_adapter, with_a_hook, with_one_bias, with_another_activation]
)
def test_a_model_that_computes_something_else_goes_through_its_own_module(make: object) -> None:
    model = make()  # type: ignore[operator]
    assert not LlamaForward.serves(model)
    assert isinstance(forward_of(model, pack_weights=False), ModuleForward)


async def converse(engine: TransformersEngine, number: int) -> list[GenerationResult]:
    """Three turns in bfloat16, beside others that end at other times."""
    tokenizer = engine.tokenizer
    prompt = tokenizer.render([{"role": "user", "content": "Where is my parcel?"}])
    results = []
    for turn in range(3):
        params = SamplingParams(5 + number % 4, seed=10 * number + turn, temperature=0.8)
        asked = GenerationRequest(
            tuple(prompt), params, conversation_id=str(number), group_id=str(number // 4)
        )
        results.append(await engine.generate(asked))
        question = [{"role": "user", "content": "And the lamp?" * (1 + (number + turn) % 3)}]
        last = results[-1]
        prompt = [
            *prompt,
            *last.token_ids,
            *tokenizer.continuation(last.token_ids, last.finish_reason, question),
        ]
    return results


def test_two_runs_of_many_conversations_are_the_same_bit_for_bit(tiny_model_dir: Path) -> None:
    async def play() -> list[list[GenerationResult]]:
        model = load_model(tiny_model_dir, dtype="bfloat16")
        engine = TransformersEngine(model, load_tokenizer(tiny_model_dir), max_batch_size=5)
        played = await asyncio.gather(*(converse(engine, number) for number in range(8)))
        await engine.aclose()
        return played

    assert asyncio.run(play()) == asyncio.run(play())
