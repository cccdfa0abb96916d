"""The side of transformers' own generation: `generate` or, with continuous batching,
`generate_batch`.

A child of `processes.Side`. Settings: `folder`, `method`, `answer_tokens`, and the tokens of
`rollouts.tokens_of`. Every turn generates from the whole context, which is how both are called.
All contexts of a turn have one length here, so `generate` needs no padding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.processes import Requests
from stateset_agents.inference.loading import load_model

Generate = Callable[[list[list[int]]], list[list[int]]]

# Tokens of a page of `generate_batch`'s cache; without a number of pages it takes most of the
# machine's memory, and not all of a process's memory is a device's.
_PAGE_TOKENS = 64


def main() -> None:
    """Play the rollout each time it is asked for."""
    requests = Requests()
    settings = requests.settings()
    model: Any = load_model(settings["folder"])
    generate = METHODS[settings["method"]](model, settings["answer_tokens"])
    play(generate, settings["prompts"][:1], settings["between"][:1])  # fails here if it cannot
    requests.answer({})
    while requests.wait() is not None:
        started = time.perf_counter()
        sampled = play(generate, settings["prompts"], settings["between"])
        seconds = time.perf_counter() - started
        requests.answer({"seconds": seconds, "tokens_per_second": sampled / seconds})


def play(generate: Generate, prompts: list[list[int]], between: list[list[list[int]]]) -> int:
    """Play all conversations turn by turn; returns how many tokens were sampled."""
    contexts, sampled = [list(prompt) for prompt in prompts], 0
    turns = len(between[0]) + 1
    for turn in range(turns):
        for row, answer in enumerate(generate(contexts)):
            sampled += len(answer)
            contexts[row] += answer
            if turn + 1 < turns:
                contexts[row] += between[row][turn]
    return sampled


def _settings(model: Any, answer_tokens: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=answer_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=model.config.vocab_size + 1,  # no token ends an answer
        pad_token_id=0,
    )


def _plain(model: Any, answer_tokens: int) -> Generate:
    chosen = _settings(model, answer_tokens)

    def generate(contexts: list[list[int]]) -> list[list[int]]:
        ids = torch.tensor(contexts, device=model.device)
        with torch.inference_mode():
            whole = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=chosen
            )
        answers: list[list[int]] = whole[:, ids.shape[1] :].tolist()
        return answers

    return generate


def _continuous(model: Any, answer_tokens: int) -> Generate:
    chosen = _settings(model, answer_tokens)

    def generate(contexts: list[list[int]]) -> list[list[int]]:
        pages = sum(len(c) + answer_tokens for c in contexts) // _PAGE_TOKENS + 2 * len(contexts)
        with torch.no_grad():  # its thread cannot write to tensors of the inference mode
            found = model.generate_batch(
                contexts,
                generation_config=chosen,
                continuous_batching_config=ContinuousBatchingConfig(
                    page_size=_PAGE_TOKENS, num_blocks=pages, max_batch_tokens=2048
                ),
                progress_bar=False,
            )
        if len(found) < len(contexts):
            raise RuntimeError(f"generate_batch answered {len(found)} of {len(contexts)} requests")
        # requests are numbered in the order in which they were given
        ordered = sorted(found.items(), key=lambda item: int(item[0].rsplit("_", 1)[-1]))
        return [list(output.generated_tokens) for _, output in ordered]

    return generate


METHODS: dict[str, Callable[[Any, int], Generate]] = {
    "generate": _plain,
    "generate_batch": _continuous,
}


if __name__ == "__main__":
    main()
