"""The in-process engine against transformers itself, on the tiny model in float32."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from stateset_agents.exceptions import ContextLengthError, EngineError
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.engine import (
    FinishReason,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.inference.transformers_engine import TransformersEngine

MakeEngine = Callable[..., TransformersEngine]
TEXTS = (
    "Where is my parcel?",
    "I want to return the lamp, it came broken, and I am not happy about that at all.",
    "Hello",
    "Please reset the password with the link in the mail. What does the shipping cost?",
    "order 48213",
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> ChatTokenizer:
    return load_tokenizer(tiny_model_dir)


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path) -> torch.nn.Module:
    return load_model(tiny_model_dir, dtype="float32")


@pytest.fixture
def make_engine(tiny_model_dir: Path, tokenizer: ChatTokenizer) -> Iterator[MakeEngine]:
    engines: list[TransformersEngine] = []

    def make(**options: int) -> TransformersEngine:
        model = load_model(tiny_model_dir, dtype="float32")
        engines.append(TransformersEngine(model, tokenizer, **options))
        return engines[-1]

    yield make
    for engine in engines:
        asyncio.run(engine.aclose())


def prompt_of(tokenizer: ChatTokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.render([{"role": "user", "content": text}]))


def run(
    engine: TransformersEngine, requests: Sequence[GenerationRequest]
) -> list[GenerationResult]:
    async def all_at_once() -> list[GenerationResult]:
        return await asyncio.gather(*(engine.generate(request) for request in requests))

    return asyncio.run(all_at_once())


def request(prompt: Sequence[int], *, seed: int = 0, **options: object) -> GenerationRequest:
    names = ("conversation_id", "group_id")
    identity = {name: options.pop(name, None) for name in names}
    options.setdefault("max_new_tokens", 24)
    return GenerationRequest(tuple(prompt), SamplingParams(seed=seed, **options), **identity)  # type: ignore[arg-type]


def logprobs_of(
    model: torch.nn.Module, prompt: Sequence[int], answer: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """From one plain pass over prompt and answer, with transformers' own attention."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
    picked = torch.log_softmax(logits / temperature, dim=-1)
    return picked.gather(1, torch.tensor(answer).unsqueeze(1)).squeeze(1)


def assert_close(one: Sequence[float], other: Sequence[float]) -> None:
    torch.testing.assert_close(
        torch.tensor(one).double(), torch.tensor(other).double(), atol=1e-5, rtol=0
    )


def assert_same(one: Sequence[GenerationResult], other: Sequence[GenerationResult]) -> None:
    for first, second in zip(one, other, strict=True):
        assert first.token_ids == second.token_ids
        assert first.finish_reason == second.finish_reason
        assert_close(first.logprobs, second.logprobs)


def test_greedy_answers_are_those_of_transformers_generate(
    make_engine: MakeEngine, tokenizer: ChatTokenizer, reference: torch.nn.Module
) -> None:
    prompts = [prompt_of(tokenizer, text) for text in TEXTS]
    results = run(make_engine(), [request(prompt, temperature=0.0) for prompt in prompts])
    for prompt, result in zip(prompts, results, strict=True):
        expected = reference.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[
            0, len(prompt) :
        ]
        assert result.token_ids == tuple(expected.tolist())
        assert_close(result.logprobs, logprobs_of(reference, prompt, result.token_ids).tolist())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_logprobs_are_those_of_a_plain_pass_at_the_sampling_temperature(
    make_engine: MakeEngine,
    tokenizer: ChatTokenizer,
    reference: torch.nn.Module,
    temperature: float,
) -> None:
    prompts = [prompt_of(tokenizer, text) for text in TEXTS]
    results = run(
        make_engine(),
        [
            request(prompt, seed=seed, temperature=temperature, top_p=0.9, group_id="g")
            for seed, prompt in enumerate(prompts)
        ],
    )
    for prompt, result in zip(prompts, results, strict=True):
        expected = logprobs_of(reference, prompt, result.token_ids, temperature)
        assert_close(result.logprobs, expected.tolist())


def test_a_sample_does_not_depend_on_its_batch(
    make_engine: MakeEngine, tokenizer: ChatTokenizer
) -> None:
    requests = [
        request(prompt_of(tokenizer, TEXTS[index % 5]), seed=index, max_new_tokens=8 + 5 * index)
        for index in range(10)
    ]
    alone = [run(make_engine(), [one])[0] for one in requests[:3]]
    together = run(make_engine(max_batch_size=10), requests)
    in_small_batches = run(make_engine(max_batch_size=3), requests)
    assert_same(alone, together[:3])
    assert_same(together, in_small_batches)


def test_the_same_requests_give_the_same_bits(
    make_engine: MakeEngine, tokenizer: ChatTokenizer
) -> None:
    requests = [request(prompt_of(tokenizer, text), seed=3, top_k=20) for text in TEXTS]
    assert run(make_engine(), requests) == run(make_engine(), requests)


def test_a_group_that_shares_its_prompt_answers_as_if_it_did_not(
    make_engine: MakeEngine, tokenizer: ChatTokenizer
) -> None:
    prompts = [prompt_of(tokenizer, text) for text in (TEXTS[1], TEXTS[3])]
    engine = make_engine()
    shared = run(
        engine,
        [
            request(prompts[number % 2], seed=number, group_id=f"group {number % 2}")
            for number in range(12)
        ],
    )
    plain = [
        run(make_engine(), [request(prompts[number % 2], seed=number)])[0] for number in range(12)
    ]
    assert_same(shared, plain)


async def converse(
    engine: TransformersEngine, name: str | None, group: str | None, seed: int, turns: int = 4
) -> list[GenerationResult]:
    tokenizer = engine.tokenizer
    prompt = prompt_of(tokenizer, TEXTS[1])
    results = []
    for turn in range(turns):
        result = await engine.generate(
            request(
                prompt,
                seed=100 * seed + turn,
                max_new_tokens=6 + seed % 5,
                conversation_id=name,
                group_id=group,
            )
        )
        results.append(result)
        follow = [{"role": "user", "content": TEXTS[(seed + turn) % 5]}]
        suffix = tokenizer.continuation(result.token_ids, result.finish_reason, follow)
        prompt = (*prompt, *result.token_ids, *suffix)
    return results


def conversations(
    engine: TransformersEngine, *, count: int, kept: bool, grouped: bool = False
) -> list[GenerationResult]:
    async def play() -> list[list[GenerationResult]]:
        return await asyncio.gather(
            *(
                converse(engine, f"c{n}" if kept else None, "g" if grouped else None, n)
                for n in range(count)
            )
        )

    return [result for episode in asyncio.run(play()) for result in episode]


def test_keeping_keys_and_values_between_turns_changes_nothing(make_engine: MakeEngine) -> None:
    recomputed = conversations(make_engine(), count=6, kept=False)
    assert_same(recomputed, conversations(make_engine(), count=6, kept=True))
    assert_same(recomputed, conversations(make_engine(), count=6, kept=True, grouped=True))


def test_a_kept_conversation_computes_only_its_new_tokens(
    make_engine: MakeEngine, tokenizer: ChatTokenizer
) -> None:
    engine = make_engine()
    first = prompt_of(tokenizer, TEXTS[1])
    run(engine, [request(first, conversation_id="c", max_new_tokens=1)])
    before = engine.computed_tokens
    run(engine, [request((*first, 9, 9, 9), conversation_id="c", max_new_tokens=1)])
    assert engine.computed_tokens - before == 3
    engine.release("c")
    run(engine, [request((*first, 9, 9, 9), conversation_id="c", max_new_tokens=1)])
    assert engine.computed_tokens - before == 3 + len(first) + 3


def test_a_group_computes_its_prompt_once(
    make_engine: MakeEngine, tokenizer: ChatTokenizer
) -> None:
    engine = make_engine()
    prompt = prompt_of(tokenizer, TEXTS[1])
    run(engine, [request(prompt, seed=n, group_id="g", max_new_tokens=1) for n in range(8)])
    assert engine.computed_tokens == len(prompt) - 1 + 8


@pytest.mark.parametrize("options", [{"max_cached_sequences": 3}, {"max_step_tokens": 7}])
def test_too_few_slots_and_prompts_in_pieces_change_nothing(
    make_engine: MakeEngine, options: dict[str, int]
) -> None:
    roomy = conversations(make_engine(), count=7, kept=True, grouped=True)
    tight = make_engine(max_batch_size=4, **options)
    assert_same(roomy, conversations(tight, count=7, kept=True, grouped=True))


def test_slots_grow_with_their_conversations_within_the_memory_allowed(
    make_engine: MakeEngine, tokenizer: ChatTokenizer
) -> None:
    long_prompt = prompt_of(tokenizer, " ".join(TEXTS * 9))
    assert len(long_prompt) > 512
    token_bytes = 2 * 2 * 16 * 2 * 4  # layers, heads, width, key and value, float32
    engine = make_engine(cache_bytes=4 * 1024 * token_bytes)
    requests = [
        request(long_prompt[:40], seed=1, max_new_tokens=60),
        *(request(long_prompt, seed=n, conversation_id=f"c{n}") for n in range(4)),
    ]
    alone = [run(make_engine(), [one])[0] for one in requests]
    assert_same(alone, run(engine, requests))
    assert engine.max_context_tokens == 1536


def test_shared_prompts_stay_within_a_quarter_of_the_memory_whatever_came_before(
    make_engine: MakeEngine, tokenizer: ChatTokenizer
) -> None:
    token_bytes = 2 * 2 * 16 * 2 * 4  # layers, heads, width, key and value, float32
    engine = make_engine(cache_bytes=4096 * token_bytes)
    long_prompt = prompt_of(tokenizer, " ".join(TEXTS * 9))[:700]
    for prompt, groups in ((long_prompt[:40], 12), (long_prompt, 1)):
        run(
            engine,
            [
                request(prompt, group_id=f"{len(prompt)} {n % groups}", max_new_tokens=1)
                for n in range(2 * groups)
            ],
        )
        assert engine._shared.slots >= groups
        assert engine._shared.slots * engine._shared.capacity <= 1024


def test_an_answer_ends_at_a_stop_token_and_includes_it(
    make_engine: MakeEngine, tokenizer: ChatTokenizer
) -> None:
    stop = next(iter(tokenizer.stop_token_ids))
    results = run(
        make_engine(),
        [
            request(prompt_of(tokenizer, "Hello"), seed=seed, max_new_tokens=300, temperature=1.5)
            for seed in range(12)
        ],
    )
    ended = [result for result in results if result.finish_reason is FinishReason.STOP]
    assert ended
    for result in results:
        place = result.token_ids.index(stop) if stop in result.token_ids else None
        if result.finish_reason is FinishReason.STOP:
            assert place == len(result.token_ids) - 1
        else:
            assert place is None
            assert len(result.token_ids) == 300


def test_new_weights_answer_as_a_new_engine_does(
    make_engine: MakeEngine, tokenizer: ChatTokenizer, reference: torch.nn.Module
) -> None:
    changed = {name: value * 1.1 for name, value in reference.state_dict().items()}
    fresh = make_engine()
    fresh.update_weights(changed.items())
    expected = conversations(fresh, count=3, kept=True, grouped=True)
    engine = make_engine()
    old = conversations(engine, count=3, kept=True, grouped=True)
    engine.update_weights(changed.items())
    assert_same(expected, conversations(engine, count=3, kept=True, grouped=True))
    assert [result.token_ids for result in old] != [result.token_ids for result in expected]


def test_new_weights_in_the_middle_of_an_answer_recompute_what_it_has(
    make_engine: MakeEngine, tokenizer: ChatTokenizer, reference: torch.nn.Module
) -> None:
    engine = make_engine()
    prompt = prompt_of(tokenizer, TEXTS[0])
    same = list(reference.state_dict().items())

    async def disturbed() -> list[GenerationResult]:
        asked = [
            asyncio.create_task(engine.generate(request(prompt, seed=n, group_id="g")))
            for n in range(4)
        ]
        while engine.computed_tokens < 2 * len(prompt):
            await asyncio.sleep(0)
        engine.update_weights(same)
        return await asyncio.gather(*asked)

    calm = run(make_engine(), [request(prompt, seed=n, group_id="g") for n in range(4)])
    assert_same(calm, asyncio.run(disturbed()))


def test_weights_that_do_not_fit_are_refused_whole(
    make_engine: MakeEngine, tokenizer: ChatTokenizer, reference: torch.nn.Module
) -> None:
    engine = make_engine()
    asked = [request(prompt_of(tokenizer, TEXTS[0]), temperature=0.0)]
    before = run(engine, asked)
    name, value = next(iter(reference.state_dict().items()))
    with pytest.raises(EngineError, match="'nonsense' is not a parameter"):
        engine.update_weights([(name, value * 3), ("nonsense", value)])
    with pytest.raises(EngineError, match="has shape"):
        engine.update_weights([(name, value[1:])])
    assert run(engine, asked) == before


def test_a_prompt_that_leaves_no_room_is_refused(
    make_engine: MakeEngine, tokenizer: ChatTokenizer
) -> None:
    engine = make_engine()
    with pytest.raises(ContextLengthError, match="exceed the context of 2048"):
        run(engine, [request([5] * 2000, max_new_tokens=49)])
    with pytest.raises(EngineError, match="temperature is -1"):
        run(engine, [request([5], temperature=-1.0, max_new_tokens=0)])


def test_a_failed_forward_pass_fails_those_who_wait_and_no_one_after(
    make_engine: MakeEngine, tokenizer: ChatTokenizer, reference: torch.nn.Module
) -> None:
    engine = make_engine(max_batch_size=2)
    asked = [request(prompt_of(tokenizer, text)) for text in TEXTS]
    good = run(engine, asked)
    name, value = next(iter(reference.state_dict().items()))
    engine.update_weights([(name, torch.full_like(value, float("nan")))])

    async def outcomes() -> list[object]:
        calls = (engine.generate(one) for one in asked)
        return await asyncio.gather(*calls, return_exceptions=True)

    failed = asyncio.run(outcomes())
    assert [type(item) for item in failed] == [EngineError] * len(asked)
    assert "not finite" in str(failed[0])
    engine.update_weights([(name, value)])
    assert_same(good, run(engine, asked))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temperature": 1e-40}, "temperature is 1e-40, must be 0"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty is 1e-40"),
    ],
)
def test_a_request_whose_logits_would_overflow_is_refused_and_fails_no_other(
    make_engine: MakeEngine, tokenizer: ChatTokenizer, option: dict[str, float], message: str
) -> None:
    engine = make_engine()
    prompt = prompt_of(tokenizer, TEXTS[0])

    async def both() -> list[object]:
        calls = (engine.generate(request(prompt, **some)) for some in ({}, option))
        return await asyncio.gather(*calls, return_exceptions=True)

    good, refused = asyncio.run(both())
    assert isinstance(good, GenerationResult)
    assert isinstance(refused, EngineError)
    assert message in str(refused)


@pytest.mark.parametrize("strange", [-1, 480])
def test_a_prompt_with_a_token_that_the_model_has_not_is_refused_and_fails_no_other(
    make_engine: MakeEngine, tokenizer: ChatTokenizer, strange: int
) -> None:
    engine = make_engine()
    prompt = prompt_of(tokenizer, TEXTS[0])

    async def both() -> list[object]:
        calls = (engine.generate(request(ids)) for ids in (prompt, (*prompt, strange)))
        return await asyncio.gather(*calls, return_exceptions=True)

    good, refused = asyncio.run(both())
    assert isinstance(good, GenerationResult)
    assert isinstance(refused, EngineError)
    assert f"token {strange}, and the model's are 0 to 479" in str(refused)


def test_a_caller_who_leaves_does_not_disturb_the_others(
    make_engine: MakeEngine, tokenizer: ChatTokenizer
) -> None:
    engine = make_engine()
    asked = [request(prompt_of(tokenizer, text), seed=4) for text in TEXTS]

    async def one_leaves() -> list[GenerationResult]:
        tasks = [asyncio.create_task(engine.generate(one)) for one in asked]
        while engine.computed_tokens < 200:
            await asyncio.sleep(0)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        return await asyncio.gather(*tasks[1:])

    calm = run(make_engine(), asked)
    assert_same(calm[1:], asyncio.run(one_leaves()))


def test_closing_fails_what_waits_and_refuses_what_comes(
    make_engine: MakeEngine, tokenizer: ChatTokenizer
) -> None:
    engine = make_engine()
    asked = request(prompt_of(tokenizer, TEXTS[0]), max_new_tokens=1500)

    async def close_early() -> None:
        task = asyncio.create_task(engine.generate(asked))
        await asyncio.sleep(0)
        await engine.aclose()
        await engine.aclose()
        with pytest.raises(EngineError, match="closed"):
            await task
        with pytest.raises(EngineError, match="closed"):
            await engine.generate(asked)

    asyncio.run(close_early())


def test_a_closed_engine_keeps_no_names_of_conversations_that_are_released(
    make_engine: MakeEngine,
) -> None:
    class Name(str):
        """A text that a weak reference can watch."""

    engine = make_engine()
    asyncio.run(engine.aclose())
    name = Name("rollout-0/step-0/order/0")
    watched = weakref.ref(name)
    engine.release(name)
    del name
    assert watched() is None


@pytest.mark.parametrize("own_thread", [False, True])
def test_it_computes_where_it_was_told_to_and_says_the_same(
    own_thread: bool,
    make_engine: MakeEngine,
    tiny_model_dir: Path,
    tokenizer: ChatTokenizer,
) -> None:
    threads = set()

    class Watched(ChatTokenizer):
        @property
        def stop_token_ids(self) -> frozenset[int]:
            threads.add(threading.get_ident())  # a step asks for them when it has sampled
            return super().stop_token_ids

    asked = [request(prompt_of(tokenizer, "where is my order?"))]
    model = load_model(tiny_model_dir, dtype="float32")
    engine = TransformersEngine(model, Watched(tokenizer.hf), own_thread=own_thread)
    answers = run(engine, asked)
    assert (threading.get_ident() in threads) is not own_thread
    assert len(threads) == 1
    assert_same(answers, run(make_engine(), asked))
