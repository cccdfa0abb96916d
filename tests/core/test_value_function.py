"""The guide's value function: worked by hand, gradients checked, sizes refused in one message."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from stateset_agents.core.value_function import ValueFunction
from stateset_agents.exceptions import ConfigurationError


def _with_head(weights: list[float], bias: float, **settings: float) -> ValueFunction:
    function = ValueFunction(hidden_size=len(weights), **settings)
    with torch.no_grad():
        function.head.weight.copy_(torch.tensor([weights]))
        function.head.bias.fill_(bias)
    return function


def test_the_defaults_are_the_guides() -> None:
    function = ValueFunction()

    assert (function.hidden_size, function.gamma, function.gae_lambda) == (768, 0.99, 0.95)


def test_a_new_one_values_everything_at_0_and_draws_no_random_number() -> None:
    before = torch.get_rng_state()

    function = ValueFunction(hidden_size=4)

    assert torch.equal(torch.get_rng_state(), before)
    assert function(torch.randn(2, 3, 4)).tolist() == [[0.0] * 3] * 2


def test_values_are_a_product_with_the_hidden_states() -> None:
    function = _with_head([1.0, -2.0], bias=0.5)
    states = torch.tensor([[[3.0, 1.0], [0.0, 2.0]]], dtype=torch.bfloat16)

    values = function.values(states)

    assert values.dtype is torch.float32
    assert values.tolist() == [[3 - 2 + 0.5, -4 + 0.5]]


def test_advantages_step_over_what_the_user_says_between_two_answers() -> None:
    function = ValueFunction(hidden_size=1, gamma=0.5, gae_lambda=0.5)
    rewards = torch.tensor([[0.0, 5.0, 1.0, 7.0]])
    values = torch.tensor([[0.4, math.nan, 0.6, math.inf]])
    sampled = torch.tensor([[True, False, True, False]])

    advantages, returns = function.advantages(rewards, values, sampled)

    # token 2: 1 - 0.6; token 0: (0 + 0.5 * 0.6 - 0.4) + 0.25 * 0.4
    assert advantages[0].tolist() == pytest.approx([0.0, 0.0, 0.4, 0.0])
    assert returns[0].tolist() == pytest.approx([0.4, 0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("settings", "advantages"),
    [
        # one step ahead alone: r + gamma V_next - V
        ({"gamma": 0.5, "gae_lambda": 0.0}, [1 + 0.5 * 4 - 2, 3 - 4]),
        # all that follows, discounted, less the value
        ({"gamma": 0.5, "gae_lambda": 1.0}, [1 + 0.5 * 3 - 2, 3 - 4]),
        ({"gamma": 1.0, "gae_lambda": 1.0}, [1 + 3 - 2, 3 - 4]),
    ],
)
def test_gamma_and_gae_lambda_decide_how_far_rewards_reach_back(
    settings: dict[str, float], advantages: list[float]
) -> None:
    function = ValueFunction(hidden_size=1)
    for name, value in settings.items():
        setattr(function, name, value)

    found, _ = function.advantages(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0]]))

    assert found[0].tolist() == pytest.approx(advantages)


def test_the_gradient_of_the_loss_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    function = _with_head([0.3, -0.2, 0.1], bias=0.05)
    states = torch.randn(2, 3, 3, generator=generator)
    returns = torch.randn(2, 3, generator=generator)
    sampled = torch.tensor([[True, False, True], [False, True, True]])

    function.loss(function(states), returns, sampled).backward()

    for parameter in function.parameters():
        for place in range(parameter.numel()):
            sides = []
            for shift in (1e-2, -1e-2):
                with torch.no_grad():
                    parameter.view(-1)[place] += shift
                    sides.append(function.loss(function(states), returns, sampled).item())
                    parameter.view(-1)[place] -= shift
            slope = (sides[0] - sides[1]) / 2e-2
            assert parameter.grad.view(-1)[place].item() == pytest.approx(slope, abs=1e-4)


def test_advantages_carry_no_gradient_and_the_loss_counts_sampled_tokens_alone() -> None:
    function = _with_head([1.0], bias=0.0)
    values = function(torch.tensor([[[1.0], [9.0], [2.0]]]))
    sampled = torch.tensor([[True, False, True]])

    advantages, returns = function.advantages(torch.zeros(1, 3), values, sampled)

    assert not advantages.requires_grad
    assert not returns.requires_grad
    # by hand: (1 - 3)^2 and (2 - 2)^2, halved, over two tokens
    loss = function.loss(values, torch.tensor([[3.0, math.nan, 2.0]]), sampled)
    assert loss.item() == pytest.approx(0.5 * 4 / 2)
    assert function.loss(values, returns, torch.zeros_like(sampled)).item() == 0


def test_it_learns_to_tell_states_apart() -> None:
    function = ValueFunction(hidden_size=2)
    states, returns = torch.eye(2)[None], torch.tensor([[1.0, -1.0]])
    optimizer = torch.optim.SGD(function.parameters(), lr=0.5)

    for _ in range(60):
        optimizer.zero_grad()
        function.loss(function(states), returns).backward()
        optimizer.step()

    assert function(states)[0].tolist() == pytest.approx([1.0, -1.0], abs=0.01)


def test_a_hidden_size_that_is_not_the_models_is_one_message() -> None:
    function = ValueFunction(hidden_size=768)

    with pytest.raises(
        ConfigurationError,
        match=r"hidden_size=768\) does not fit SmolLM2, .* 576 .*ValueFunction\(hidden_size=576\)",
    ):
        function.check_fits(576, "SmolLM2")
    with pytest.raises(ConfigurationError, match="these states"):
        function(torch.zeros(1, 1, 576))


def test_numbers_out_of_range_are_reported_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ValueFunction(hidden_size=0, gamma=1.5, gae_lambda="high")  # type: ignore[arg-type]

    assert [problem.split("=")[0] for problem in caught.value.problems] == [
        "ValueFunction: hidden_size",
        "ValueFunction: gamma",
        "ValueFunction: gae_lambda",
    ]


def test_the_package_offers_it_without_importing_torch() -> None:
    code = (
        "import sys, stateset_agents; "
        "assert 'ValueFunction' in dir(stateset_agents); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
