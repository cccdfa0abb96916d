"""Losses by hand, and what they make of degenerate input."""

from __future__ import annotations

import math

import pytest
import torch

from stateset_agents.training.losses import (
    cispo_loss,
    grpo_loss,
    gspo_loss,
    gspo_token_loss,
    importance_weights,
    kl_divergence,
    sapo_loss,
)
from stateset_agents.training.objective import LossFunction, objective_of
from tests.training.made import TOKEN_ALGORITHMS, make_config

MASK = torch.tensor([[True]])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, False),
        (1.2, 1.0, -1.2, False),
        (1.5, 1.0, -1.28, True),  # good and already much likelier: no further
        (1.5, -1.0, 1.5, False),  # bad and likelier: push back with full force
        (0.5, -1.0, 0.8, True),  # bad and already much rarer: no further
        (0.5, 1.0, -0.5, False),
    ],
)
def test_the_clip_holds_only_what_goes_further_the_same_way(
    ratio: float, advantage: float, loss: float, clipped: bool
) -> None:
    logprob = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)

    result = grpo_loss(
        logprob,
        torch.zeros(1, 1, dtype=torch.float64),
        torch.tensor([[advantage]]),
        MASK,
        clip_left=0.2,
        clip_right=0.28,
    )
    result.loss.sum().backward()

    assert result.loss.item() == pytest.approx(loss)
    assert bool(result.clipped) is clipped
    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(0 if clipped else -ratio * advantage)


def test_a_sequence_has_one_ratio_the_geometric_mean_of_its_tokens() -> None:
    new = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]], dtype=torch.float64)
    old = torch.tensor([[-1.2, -2.4, 0.0], [-1.0, -1.0, -1.3]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])

    result = gspo_loss(new, old, torch.ones_like(new), mask, clip_left=0.5, clip_right=0.5)

    # mean log ratios: (0.2 + 0.4) / 2 and 0.3 / 3
    expected = [math.exp(0.3)] * 2 + [0.0] + [math.exp(0.1)] * 3
    assert (-result.loss).flatten().tolist() == pytest.approx(expected)


def test_gspo_by_token_weighs_each_token_with_its_own_advantage_at_the_rows_ratio() -> None:
    new = torch.tensor([[-1.0, -2.0, -9.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.2, -2.4, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])

    result = gspo_token_loss(
        new, old, torch.tensor([[1.0, -3.0, 7.0]]), mask, clip_left=0.5, clip_right=0.5
    )
    result.loss.sum().backward()

    # ratio exp((0.2 + 0.4) / 2); each token's gradient is its own, not a mean over the row
    ratio = math.exp(0.3)
    assert result.loss[0].tolist() == pytest.approx([-ratio, 3 * ratio, 0.0])
    assert new.grad is not None
    assert new.grad[0].tolist() == pytest.approx([-ratio, 3 * ratio, 0.0])


@pytest.mark.parametrize("clips", [(3e-4, 4e-4), (0.05, 0.05), (0.5, 0.5)])
def test_gspo_by_token_is_gspo_where_a_row_has_one_advantage(clips: tuple[float, float]) -> None:
    noise = torch.Generator().manual_seed(0)
    policy = -torch.rand(6, 9, generator=noise, dtype=torch.float64)
    old = policy + 0.1 * torch.randn(6, 9, generator=noise, dtype=torch.float64)
    advantages = torch.randn(6, 1, generator=noise, dtype=torch.float64).expand(6, 9)
    mask = torch.rand(6, 9, generator=noise) < 0.6
    gradients = []
    for function in (gspo_loss, gspo_token_loss):
        seen = policy.clone().requires_grad_(True)
        result = function(seen, old, advantages, mask, clip_left=clips[0], clip_right=clips[1])
        (result.loss.sum(dim=1) / mask.sum(dim=1)).mean().backward()
        gradients.append((result.loss.detach(), result.clipped, seen.grad))

    for by_sequence, by_token in zip(*gradients, strict=True):
        torch.testing.assert_close(by_sequence, by_token, rtol=1e-12, atol=1e-15)
    assert bool(gradients[0][2].any())


@pytest.mark.parametrize(
    ("ratio", "weight", "clipped"), [(1.0, 1.0, False), (4.0, 4.0, False), (9.0, 5.0, True)]
)
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_cispo_bounds_a_tokens_weight_and_never_drops_it(
    ratio: float, weight: float, clipped: bool, advantage: float
) -> None:
    logprob = torch.tensor([[math.log(0.1)]], dtype=torch.float64, requires_grad=True)

    result = cispo_loss(
        logprob,
        logprob.detach() - math.log(ratio),
        torch.tensor([[advantage]]),
        MASK,
        clip_left=None,
        clip_right=4.0,
    )
    result.loss.sum().backward()

    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(-weight * advantage)
    assert bool(result.clipped) is clipped


def test_cispo_may_be_bounded_from_below_as_well() -> None:
    logprob = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)

    result = cispo_loss(
        logprob, torch.tensor([[0.0]]), torch.ones(1, 1), MASK, clip_left=0.4, clip_right=4.0
    )
    result.loss.sum().backward()

    # ratio exp(-1) = 0.37, held at 0.6
    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(-0.6)


@pytest.mark.parametrize(("advantage", "temperature"), [(1.5, 1.0), (-1.5, 2.0), (0.0, 2.0)])
def test_sapo_closes_its_gate_by_the_temperature_of_the_advantages_sign(
    advantage: float, temperature: float
) -> None:
    logprob = torch.tensor([[math.log(1.5)]], dtype=torch.float64, requires_grad=True)

    result = sapo_loss(
        logprob,
        torch.zeros(1, 1, dtype=torch.float64),
        torch.tensor([[advantage]]),
        MASK,
        temperature_positive=1.0,
        temperature_negative=2.0,
    )
    result.loss.sum().backward()

    gate = 1 / (1 + math.exp(-temperature * 0.5))
    assert result.loss.item() == pytest.approx(-advantage * gate * 4 / temperature)
    # the derivative of the gate, 4 sigmoid (1 - sigmoid), times the ratio
    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(-advantage * 4 * gate * (1 - gate) * 1.5)
    assert not bool(result.clipped)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (3.0, -1.0, 2.0, True),  # bad and three times likelier: pushed back as if it were twice
        (1.5, -1.0, 1.5, False),
        (3.0, 1.0, -1.28, True),  # what was good is held by the clip
    ],
)
def test_a_cap_on_the_ratio_bounds_how_hard_a_bad_token_is_pushed_back(
    ratio: float, advantage: float, loss: float, clipped: bool
) -> None:
    logprob = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)

    result = grpo_loss(
        logprob,
        torch.zeros(1, 1, dtype=torch.float64),
        torch.tensor([[advantage]]),
        MASK,
        clip_left=0.2,
        clip_right=0.28,
        ratio_cap=2.0,
    )
    result.loss.sum().backward()

    assert result.loss.item() == pytest.approx(loss)
    assert bool(result.clipped) is clipped
    assert logprob.grad is not None
    assert (logprob.grad.item() == 0) is clipped


def test_a_clipped_token_is_one_without_gradient() -> None:
    noise = torch.Generator().manual_seed(0)
    policy = torch.randn(40, 5, generator=noise, dtype=torch.float64)
    advantages = torch.randn(40, 5, generator=noise, dtype=torch.float64)
    mask = torch.ones(40, 5, dtype=torch.bool)
    for cap in (None, 1.1, 1.5):
        seen = policy.clone().requires_grad_(True)
        result = grpo_loss(
            seen,
            torch.zeros(40, 5),
            advantages,
            mask,
            clip_left=0.2,
            clip_right=0.28,
            ratio_cap=cap,
        )
        result.loss.sum().backward()
        assert seen.grad is not None
        assert torch.equal(result.clipped, seen.grad == 0), cap


LOSS_CASES = [objective_of(make_config(algorithm=name)).loss for name in TOKEN_ALGORITHMS]


@pytest.mark.parametrize("loss", LOSS_CASES, ids=TOKEN_ALGORITHMS)
def test_what_is_not_sampled_may_hold_anything(loss: LossFunction) -> None:
    mask = torch.tensor([[True, False]])
    new = torch.tensor([[-1.0, math.nan]], requires_grad=True)
    other = torch.tensor([[-1.0, math.inf]])

    result = loss(new, other, torch.tensor([[1.0, math.nan]]), mask)
    divergence = kl_divergence(new, other, mask, old_logprobs=other)
    (result.loss + divergence).sum().backward()

    assert result.loss[0, 1] == 0
    assert bool(result.loss.isfinite().all())
    assert divergence.tolist() == [[0.0, 0.0]]
    assert new.grad is not None
    assert new.grad.tolist() == [[-1.0, 0.0]]


@pytest.mark.parametrize("loss", LOSS_CASES, ids=TOKEN_ALGORITHMS)
def test_no_rows_and_a_row_without_a_sampled_token_cost_nothing(loss: LossFunction) -> None:
    for rows, tokens in ((0, 3), (2, 3), (2, 0)):
        new = torch.full((rows, tokens), -1.0, requires_grad=True)
        nothing = torch.zeros(rows, tokens, dtype=torch.bool)

        result = loss(new, torch.zeros(rows, tokens), torch.ones(rows, tokens), nothing)
        result.loss.sum().backward()

        assert result.loss.shape == (rows, tokens)
        assert not bool(result.loss.any())
        assert not bool(result.clipped.any())
        assert new.grad is not None
        assert not bool(new.grad.any())


def test_a_token_that_the_policy_has_come_to_exclude_is_pushed_no_further() -> None:
    new = torch.tensor([[-math.inf, -1.0]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)

    result = grpo_loss(
        new,
        torch.full((1, 2), -1.0),
        torch.tensor([[-1.0, 1.0]]),
        mask,
        clip_left=0.2,
        clip_right=0.2,
    )
    result.loss.sum().backward()

    assert result.loss[0].tolist() == pytest.approx([0.8, -1.0])
    assert new.grad is not None
    assert new.grad[0].tolist() == [0.0, -1.0]


def test_the_corrected_divergence_has_the_gradient_of_the_divergence_itself() -> None:
    # two actions, sampled by an old policy: the expectation is exact
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.7, 0.3], dtype=torch.float64)
    reference = torch.tensor([0.4, 0.6], dtype=torch.float64).log()
    policy = logits.log_softmax(0)
    (policy.exp() * (policy - reference)).sum().backward()
    expected = logits.grad
    both = torch.ones(1, 2, dtype=torch.bool)

    for estimator in ("k1", "k3"):
        seen = logits.detach().requires_grad_(True)
        divergence = kl_divergence(
            seen.log_softmax(0)[None],
            reference[None],
            both,
            estimator=estimator,
            old_logprobs=old.log()[None],
        )
        (old * divergence[0]).sum().backward()
        torch.testing.assert_close(seen.grad, expected)


def test_truncated_importance_weights_are_capped_from_above_only() -> None:
    old = torch.tensor([[math.log(0.9), math.log(0.1), math.log(0.3)]])
    sampling = torch.tensor([[math.log(0.1), math.log(0.9), math.log(0.2)]])

    weights = importance_weights(old, sampling, torch.ones_like(old, dtype=torch.bool), cap=2.0)

    assert weights[0].tolist() == pytest.approx([2.0, 1 / 9, 1.5])


# ratios of 3, 0.4 and 1.5 for the first row, whose last token was not sampled
OLD = torch.tensor([[0.0, 0.0, 0.0, 9.0]], dtype=torch.float64)
SAMPLING = -torch.tensor([[3.0, 0.4, 1.5, 1.0]], dtype=torch.float64).log()
SAMPLED = torch.tensor([[True, True, True, False]])


def test_masked_importance_weights_drop_what_leaves_the_band() -> None:
    weights = importance_weights(OLD, SAMPLING, SAMPLED, cap=2.0, floor=0.5, mode="mask")

    assert weights[0].tolist() == pytest.approx([0.0, 0.0, 1.5, 0.0])


def test_at_sequence_level_the_weight_is_the_product_over_the_row() -> None:
    # 3 * 0.4 * 1.5 = 1.8
    for mode, cap, expected in (
        ("truncate", 2.0, 1.8),
        ("truncate", 1.2, 1.2),
        ("mask", 2.0, 1.8),
        ("mask", 1.7, 0.0),
    ):
        weights = importance_weights(OLD, SAMPLING, SAMPLED, cap=cap, mode=mode, level="sequence")
        assert weights[0].tolist() == pytest.approx([expected] * 3 + [0.0]), (mode, cap)


def test_a_token_that_the_engine_held_for_impossible_is_capped_or_dropped() -> None:
    sampling = torch.tensor([[-math.inf, 0.0, 0.0, 0.0]], dtype=torch.float64)

    truncated = importance_weights(OLD, sampling, SAMPLED, cap=2.0)
    masked = importance_weights(OLD, sampling, SAMPLED, cap=2.0, mode="mask")

    assert truncated[0].tolist() == [2.0, 1.0, 1.0, 0.0]
    assert masked[0].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_importance_weights_pass_no_gradient() -> None:
    old = OLD.clone().requires_grad_(True)

    assert not importance_weights(old, SAMPLING, SAMPLED, cap=2.0).requires_grad
