"""What an engine refuses before it computes: one wrong request must not fail a batch of right ones.

Owns the checks that do not depend on how an engine computes, and their messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stateset_agents.exceptions import ContextLengthError, EngineError
from stateset_agents.inference.engine import GenerationRequest, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

# Nearer to 0, logits divided by these overflow, and every request of the step would fail.
LEAST_TEMPERATURE, _LEAST_PENALTY = 1e-6, 1e-3


def check_request(
    request: GenerationRequest,
    *,
    vocabulary: int,
    max_context_tokens: int,
    least_temperature: float = LEAST_TEMPERATURE,
) -> None:
    """Refuse a request that makes no sense or does not fit.

    Args:
        request: what was asked.
        vocabulary: the model's number of token ids.
        max_context_tokens: the most tokens of a prompt and its answer.
        least_temperature: the lowest that the engine samples at, 0 aside.

    Raises:
        EngineError: a setting or a token is out of range; every problem in one message.
        ContextLengthError: prompt and `max_new_tokens` exceed `max_context_tokens`.
    """
    problems = _problems_of(request.sampling, least_temperature)
    problems += _problems_of_prompt(request.prompt_token_ids, vocabulary)
    if problems:
        raise EngineError("The request makes no sense: " + "; ".join(problems) + ".")
    prompt, answer = len(request.prompt_token_ids), request.sampling.max_new_tokens
    if prompt + answer > max_context_tokens:
        raise ContextLengthError(
            f"A prompt of {prompt} tokens and max_new_tokens {answer} exceed the context of "
            f"{max_context_tokens} tokens. Shorten the conversation or the answer."
        )


def check_weights(given: Sequence[tuple[str, Tensor]], shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse weights whose names or shapes the model does not have.

    Args:
        given: names and values.
        shapes: the model's, by name.

    Raises:
        EngineError: with the first problem and the number of the others.
    """
    problems = []
    for name, tensor in given:
        if name not in shapes:
            problems.append(f"{name!r} is not a parameter of the model")
        elif tuple(shapes[name]) != tuple(tensor.shape):
            problems.append(
                f"{name!r} has shape {tuple(tensor.shape)}; the model's is {tuple(shapes[name])}"
            )
    if problems:
        raise EngineError(
            f"Weights do not fit the engine's model, and none was replaced: {problems[0]}"
            + (f" (and {len(problems) - 1} more)." if len(problems) > 1 else ".")
            + " Pass the plain model's parameters, adapters merged in."
        )


def _problems_of_prompt(token_ids: Sequence[int], vocabulary: int) -> list[str]:
    if not token_ids:
        return ["the prompt is empty"]
    # The embedding would raise for the whole step, and so for every request in it.
    strange = next((token for token in token_ids if not 0 <= token < vocabulary), None)
    if strange is None:
        return []
    return [f"the prompt has token {strange}, and the model's are 0 to {vocabulary - 1}"]


def _problems_of(params: SamplingParams, least_temperature: float) -> list[str]:
    problems = []
    if params.max_new_tokens < 1:
        problems.append(f"max_new_tokens is {params.max_new_tokens}, must be at least 1")
    if params.temperature != 0 and not params.temperature >= least_temperature:
        problems.append(
            f"temperature is {params.temperature}, must be 0 (greedy) or at least "
            f"{least_temperature}"
        )
    if not 0 < params.top_p <= 1:
        problems.append(f"top_p is {params.top_p}, must be above 0 and at most 1")
    if params.top_k < 0:
        problems.append(f"top_k is {params.top_k}, must be 0 (off) or more")
    if not _LEAST_PENALTY <= params.repetition_penalty <= 1 / _LEAST_PENALTY:
        problems.append(
            f"repetition_penalty is {params.repetition_penalty}, must be from {_LEAST_PENALTY} to "
            f"{1 / _LEAST_PENALTY:g}"
        )
    return problems
