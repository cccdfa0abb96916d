"""One session with `VLLMEngine`, run by the interpreter that has vLLM; see `test_vllm_engine.py`.

It asks, and writes down what came back; comparing is the test's. Usage: FOLDER OUTPUT, a model's
folder and a JSON file.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from stateset_agents.exceptions import EngineError
from stateset_agents.inference.engine import GenerationRequest, GenerationResult, SamplingParams
from stateset_agents.inference.vllm_engine import VLLMEngine

TEXTS = (
    "Where is my parcel?",
    "I want to return the lamp, it came broken, and I am not happy about that at all.",
    "Hello",
    "Please reset the password with the link in the mail. What does the shipping cost?",
    "order 48213",
)
CUTS: tuple[dict[str, Any], ...] = (
    {"top_k": 5},
    {"top_p": 0.5},
    {"repetition_penalty": 1.5},
    {"top_k": 20, "top_p": 0.8, "repetition_penalty": 1.2},
    {},
)
BLOCK = 32


def prompt_of(engine: VLLMEngine, text: str) -> tuple[int, ...]:
    return tuple(engine.tokenizer.render([{"role": "user", "content": text}]))


def request(prompt: Sequence[int], **options: Any) -> GenerationRequest:
    return GenerationRequest(tuple(prompt), SamplingParams(**{"max_new_tokens": 24, **options}))


async def ask(engine: VLLMEngine, requests: Iterable[GenerationRequest]) -> list[dict[str, Any]]:
    """All at once; each answer, or the error's kind and text, with the prompt it was given to."""
    asked = list(requests)
    results = await asyncio.gather(*map(engine.generate, asked), return_exceptions=True)
    return [
        {"prompt": one.prompt_token_ids, **written(result)}
        for one, result in zip(asked, results, strict=True)
    ]


def written(result: GenerationResult | BaseException) -> dict[str, Any]:
    if not isinstance(result, GenerationResult):
        return {"error": f"{type(result).__name__}: {result}"}
    return {
        "token_ids": result.token_ids,
        "logprobs": result.logprobs,
        "reason": result.finish_reason.value,
    }


def refusal(engine: VLLMEngine, weights: Iterable[tuple[str, Any]]) -> str:
    try:
        engine.update_weights(weights)
    except EngineError as error:
        return str(error)
    return "nothing was refused"


async def sampling(engine: VLLMEngine) -> dict[str, Any]:
    prompts = [prompt_of(engine, text) for text in TEXTS]
    seeded = [request(p, seed=n, temperature=0.7) for n, p in enumerate(prompts)]
    greedy = [request(prompt, temperature=0.0) for prompt in prompts]
    cuts = [
        request(prompts[1], seed=n, temperature=temperature, **cut)
        for temperature in (0.7, 0.0)
        for n, cut in enumerate(CUTS)
    ]
    long = [request(prompts[2], seed=n, temperature=1.5, max_new_tokens=200) for n in range(8)]
    return {
        "sampled": await ask(engine, seeded),
        "again": await ask(engine, seeded),
        "alone": [(await ask(engine, [one]))[0] for one in seeded],
        "other": await ask(engine, [request(p, seed=99, temperature=0.7) for p in prompts]),
        "greedy": await ask(engine, greedy),
        "cut": await ask(engine, cuts),
        "long": await ask(engine, long),
        "refused": await ask(
            engine,
            [
                greedy[0],
                request(range(3, 240), max_new_tokens=20),
                request([]),
                request([5, 480]),
                request([5], temperature=0.005),
            ],
        ),
    }


async def caching(engine: VLLMEngine) -> dict[str, Any]:
    prompt = [7, 8, 9] * 30
    before = engine.cached_tokens
    (first,) = await ask(engine, [request(prompt, temperature=0.0, max_new_tokens=40)])
    new = engine.cached_tokens - before
    whole = [*prompt, *first["token_ids"], 5, 6]
    before = engine.cached_tokens
    await ask(engine, [request(whole, temperature=0.0, max_new_tokens=4)])
    second = engine.cached_tokens - before
    engine.update_weights([])
    before = engine.cached_tokens
    await ask(engine, [request(whole, temperature=0.0, max_new_tokens=4)])
    return {
        "new": new,
        "second": second,
        "told": len(prompt) + len(first["token_ids"]) - 1,
        "after_update": engine.cached_tokens - before,
    }


async def weights(engine: VLLMEngine, folder: Path) -> dict[str, Any]:
    old = load_file(folder / "model.safetensors")
    name = next(name for name in old if name.endswith("layers.0.self_attn.q_proj.weight"))
    greedy = [request(prompt_of(engine, text), temperature=0.0) for text in TEXTS]
    report: dict[str, Any] = {
        "unknown": refusal(engine, [(name, old[name] * 3), ("nonsense", old[name])]),
        "shape": refusal(engine, [(name, old[name][1:])]),
        "after_refusal": await ask(engine, greedy),
    }
    engine.update_weights([(name, old[name] * 3)])
    report["one_changed"] = await ask(engine, greedy)
    engine.update_weights([(key, value * 1.1) for key, value in old.items() if key != name])
    report["all_changed"] = await ask(engine, greedy)
    engine.update_weights([(name, old[name] * float("nan"))])
    report["not_finite"] = await ask(engine, greedy[:2])
    engine.update_weights(old.items())
    report["restored"] = await ask(engine, greedy)
    report["files"] = sorted(path.name for path in folder.parent.glob("written/*/*"))

    waiting = [asyncio.create_task(engine.generate(one)) for one in greedy]
    await asyncio.sleep(0.02)
    await asyncio.to_thread(engine.update_weights, list(old.items()))
    report["under_way"] = [written(result) for result in await asyncio.gather(*waiting)]
    return report


async def enough(engine: VLLMEngine) -> list[str]:
    """Who ends first: a long answer whose listener has heard enough, or one of 60 tokens."""
    ended: list[str] = []
    heard: list[int] = []

    def hear(token: int) -> None:
        heard.append(token)
        if len(heard) == 3:
            raise ValueError("enough")

    async def ask_for(tokens: int, listener: Any) -> None:
        try:
            await engine.generate(request([5, 6, 7], max_new_tokens=tokens, seed=3), listener)
            ended.append(f"all {tokens}")
        except ValueError as error:
            ended.append(f"{error} after {len(heard)}")

    await asyncio.gather(ask_for(240, hear), ask_for(60, None))
    return ended


async def leaving(engine: VLLMEngine) -> dict[str, Any]:
    one, two = (request([5, 6, 7], max_new_tokens=240, seed=n) for n in range(2))
    calm = written(await engine.generate(two))
    first, second = (asyncio.create_task(engine.generate(each)) for each in (one, two))
    await asyncio.sleep(0.05)
    first.cancel()
    disturbed = written(await second)
    ended = await enough(engine)
    waiting = asyncio.create_task(engine.generate(one))
    await asyncio.sleep(0.02)
    await engine.aclose()
    await engine.aclose()
    closed = await asyncio.gather(waiting, engine.generate(one), return_exceptions=True)
    return {
        "left": first.cancelled(),
        "calm": calm,
        "disturbed": disturbed,
        "ended": ended,
        "closed": [written(result)["error"] for result in closed],
    }


async def session(folder: Path) -> dict[str, Any]:
    (folder.parent / "written").mkdir()
    engine = VLLMEngine(
        folder,
        dtype="float32",
        max_context_tokens=256,
        cache_bytes=64 * 1024**2,
        weights_folder=folder.parent / "written",
        block_size=BLOCK,
    )
    report = {
        "max_context_tokens": engine.max_context_tokens,
        "sampling": await sampling(engine),
        "caching": await caching(engine),
        "weights": await weights(engine, folder),
        "leaving": await leaving(engine),
    }
    report["files_left"] = len(list(folder.parent.glob("written/*")))
    return report


if __name__ == "__main__":
    outcome = asyncio.run(session(Path(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(outcome))
