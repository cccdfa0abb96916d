"""What is drawn has the distribution asked for; expected values are worked out by hand."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
import torch

from stateset_agents.exceptions import EngineError
from stateset_agents.inference.engine import SamplingParams
from stateset_agents.inference.sampling import Draw, sample

# Five tokens of 40, 30, 15, 10 and 5 per cent, far apart in a vocabulary of two and a half blocks.
PLACES = (3, 255, 256, 511, 639)
SHARES = (0.40, 0.30, 0.15, 0.10, 0.05)


def row() -> torch.Tensor:
    logits = torch.full((640,), float("-inf"))
    logits[list(PLACES)] = torch.tensor(SHARES).log()
    return logits


def shares_of(params: SamplingParams, count: int = 4000) -> dict[int, float]:
    random = Random(0)
    drawn: Counter[int] = Counter()
    for _ in range(count // 500):
        draws = [Draw(params, random.random()) for _ in range(500)]
        drawn.update(sample(row().expand(500, -1), draws)[0])
    return {PLACES.index(token): number / count for token, number in drawn.items()}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SHARES),
        ({"temperature": 0.5}, (0.5614, 0.3158, 0.0789, 0.0351, 0.0088)),  # squares, normalised
        ({"top_k": 2}, (4 / 7, 3 / 7)),
        ({"top_p": 0.71}, (40 / 85, 30 / 85, 15 / 85)),  # 70 is not enough: one more
        ({"top_p": 0.70}, (4 / 7, 3 / 7)),
        ({"top_k": 3, "top_p": 0.5}, (4 / 7, 3 / 7)),  # 40 of 85 is less than half: one more
        ({"temperature": 0.0}, (1.0,)),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(
    options: dict[str, float], expected: tuple[float, ...]
) -> None:
    found = shares_of(SamplingParams(**options))  # type: ignore[arg-type]
    assert set(found) <= set(range(len(expected)))
    for index, share in enumerate(expected):
        # Four standard deviations of 4,000 draws; the random numbers are fixed.
        assert found.get(index, 0.0) == pytest.approx(share, abs=4 * math.sqrt(0.25 / 4000))


def test_the_uniform_number_alone_decides_and_its_ends_are_inside() -> None:
    params = SamplingParams()
    uniforms = (0.0, 0.39, 0.41, 0.71, 0.86, 0.96, math.nextafter(1.0, 0.0))
    tokens, logprobs = sample(
        row().expand(len(uniforms), -1), [Draw(params, uniform) for uniform in uniforms]
    )
    assert tokens == [3, 3, 255, 256, 511, 639, 639]
    assert logprobs == pytest.approx(
        [math.log(SHARES[PLACES.index(token)]) for token in tokens], abs=1e-6
    )


def test_logprobs_are_of_the_whole_vocabulary_at_the_temperature() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    for params, scale in (
        (SamplingParams(temperature=2.0, top_k=1), 2.0),
        (SamplingParams(temperature=0.0), 1.0),
        (SamplingParams(top_p=0.1, repetition_penalty=1.5), 1.0),
    ):
        (token,), (logprob,) = sample(logits, [Draw(params, 0.5)])
        weights = [math.exp(value / scale) for value in (1.0, 2.0, 3.0)]
        assert token == 2
        assert logprob == pytest.approx(math.log(weights[2] / sum(weights)), abs=1e-6)


def test_a_repetition_penalty_lowers_what_was_said_whatever_its_sign() -> None:
    greedy = SamplingParams(temperature=0.0, repetition_penalty=2.0)
    logits = torch.tensor([[3.0, 2.0, -4.0], [-1.0, -1.5, -1.9]])
    tokens, _ = sample(logits, [Draw(greedy, 0.5, history=(0,)), Draw(greedy, 0.5, history=(0, 0))])
    assert tokens == [1, 1]


def test_a_nucleus_wider_than_the_first_look_is_found() -> None:
    flat = torch.zeros(1, 4096)
    drawn = {
        sample(flat, [Draw(SamplingParams(top_p=0.9), index / 50)])[0][0] for index in range(50)
    }
    assert max(drawn) > 2048


def test_logits_that_are_not_finite_are_an_error() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(EngineError, match="not finite"):
            sample(torch.tensor([[0.0, bad]]), [Draw(SamplingParams(), 0.5)])
