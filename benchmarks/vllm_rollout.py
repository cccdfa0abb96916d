"""vLLM's side of a rollout, prefix caching on. Runs in vLLM's own environment, which has nothing of
ours: it imports no more than vLLM and the standard library.

A child of `processes.Side`. Settings: `folder`, `answer_tokens`, `dtype`, and the tokens of
`rollouts.tokens_of`.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.processes import Requests


def main() -> None:
    """Play the rollout each time it is asked for."""
    requests = Requests()
    settings = requests.settings()
    from vllm import LLM, SamplingParams

    longest = len(settings["prompts"][0]) + sum(map(len, settings["between"][0]))
    longest += settings["answer_tokens"] * (len(settings["between"][0]) + 1)
    llm = LLM(
        model=settings["folder"],
        dtype=settings["dtype"],
        enable_prefix_caching=True,
        max_model_len=longest + 64,
        max_num_seqs=len(settings["prompts"]),
        block_size=32,  # its prefix cache holds whole blocks: 128 would miss most of a short turn
        **settings.get("engine", {}),
    )
    # the sampled token's log-prob, which training needs, is asked for
    params = SamplingParams(
        max_tokens=settings["answer_tokens"],
        temperature=1.0,
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
    )
    requests.answer({})
    while requests.wait() is not None:
        llm.reset_prefix_cache()  # as after every training step: nothing is cached
        started = time.perf_counter()
        sampled = play(llm, params, settings["prompts"], settings["between"])
        seconds = time.perf_counter() - started
        requests.answer({"seconds": seconds, "tokens_per_second": sampled / seconds})


def play(llm: Any, params: Any, prompts: list[Any], between: list[Any]) -> int:
    """Play all conversations turn by turn; returns how many tokens were sampled."""
    contexts, sampled = [list(prompt) for prompt in prompts], 0
    turns = len(between[0]) + 1
    for turn in range(turns):
        asked = [{"prompt_token_ids": context} for context in contexts]
        for row, output in enumerate(llm.generate(asked, params, use_tqdm=False)):
            answer = list(output.outputs[0].token_ids)
            sampled += len(answer)
            contexts[row] += answer
            if turn + 1 < turns:
                contexts[row] += between[row][turn]
    return sampled


if __name__ == "__main__":
    main()
