"""Our engine's side of a rollout: all conversations at once, as a training step plays them.

A child of `processes.Side`. Settings: `folder`, `group`, `answer_tokens`, and the tokens of
`rollouts.tokens_of`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.processes import Requests
from benchmarks.workloads import EndlessTokenizer
from stateset_agents.inference.engine import GenerationRequest, SamplingParams
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.inference.transformers_engine import TransformersEngine


async def converse(
    engine: TransformersEngine,
    prompt: Sequence[int],
    between: Sequence[Sequence[int]],
    *,
    row: int,
    group: int,
    answer_tokens: int,
) -> int:
    """Play one conversation; returns how many tokens were sampled."""
    context, sampled, name = list(prompt), 0, f"row-{row}"
    for turn in range(len(between) + 1):
        result = await engine.generate(
            GenerationRequest(
                tuple(context),
                SamplingParams(answer_tokens, seed=1000 * row + turn),
                conversation_id=name,
                group_id=f"group-{row // group}",
            )
        )
        sampled += len(result.token_ids)
        context += result.token_ids
        if turn < len(between):
            context += between[turn]
    engine.release(name)
    return sampled


async def main() -> None:
    """Play the rollout each time it is asked for."""
    requests = Requests()
    settings = requests.settings()
    tokenizer = EndlessTokenizer(load_tokenizer(settings["folder"]).hf)
    engine = TransformersEngine(load_model(settings["folder"]), tokenizer)
    requests.answer({})
    while requests.wait() is not None:
        engine.update_weights([])  # as after every training step: nothing is cached
        started = time.perf_counter()
        rows = enumerate(zip(settings["prompts"], settings["between"], strict=True))
        sampled = await asyncio.gather(
            *(
                converse(
                    engine,
                    prompt,
                    between,
                    row=row,
                    group=settings["group"],
                    answer_tokens=settings["answer_tokens"],
                )
                for row, (prompt, between) in rows
            )
        )
        seconds = time.perf_counter() - started
        requests.answer({"seconds": seconds, "tokens_per_second": sum(sampled) / seconds})
    await engine.aclose()


if __name__ == "__main__":
    asyncio.run(main())
