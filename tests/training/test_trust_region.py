"""The trust region: natural gradients, and steps that keep their limit and gain something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.critic import make_critic
from stateset_agents.training.logprobs import sampled_states
from stateset_agents.training.step import Learner, gradients, make_learner
from stateset_agents.training.trust_region import (
    conjugate_gradients,
    fisher_product,
    line_search,
    natural_direction,
    token_kl,
    trust_region_step,
)
from tests.tiny_model import make_tiny_model
from tests.training.made import (
    make_advantages,
    make_config,
    make_policy,
    make_rows,
    perturb,
    to_batch,
)
from tests.training.runs import Remembered, make_trainer, train


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small enough for the whole Fisher matrix of its adapter."""
    return make_tiny_model(
        tmp_path_factory.mktemp("small"), hidden=16, heads=2, kv_heads=1, vocab_size=320
    )


def make_learner_for(folder: Path, **settings: Any) -> Learner:
    config = make_config(
        **{
            "algorithm": "trpo", "use_lora": True, "lora_r": 1, "advantage_baseline": "group",
            "lora_target_modules": ["q_proj", "v_proj"], "kl_sample_rows": 0, "fisher_rows": 0,
            **settings,
        }
    )  # fmt: skip
    policy = make_policy(folder, config)
    if config.use_lora:
        perturb(policy)
    return make_learner(policy, config, make_critic(policy, config, str(folder)))


def made_batch(generations: int = 3) -> TrainingBatch:
    rows = make_rows(groups=1, generations=generations, prefix=6)
    rows = [replace(one, token_ids=tuple(token % 300 for token in one.token_ids)) for one in rows]
    return to_batch(rows, make_advantages(rows), temperature=0.9)


def exact_fisher(learner: Learner, batch: TrainingBatch) -> torch.Tensor:
    """mean over tokens of J^T (diag(p) - p p^T) J, J the Jacobian of the logits, by autograd."""
    parameters = list(learner.policy.trainable.values())
    plain = replace(batch, shared_prefix_lengths=torch.zeros_like(batch.shared_prefix_lengths))
    states = sampled_states(learner.policy, plain, share_prefix=False)
    count = sum(parameter.numel() for parameter in parameters)
    head = learner.policy.head_weight.detach()
    fisher = torch.zeros(count, count, dtype=torch.float64)
    for state in states:
        rows = []
        for number in state:
            grads = torch.autograd.grad(number, parameters, retain_graph=True)
            rows.append(torch.cat([grad.reshape(-1) for grad in grads]))
        jacobian = (head @ torch.stack(rows)).double() / batch.temperature
        p = torch.softmax((head @ state.detach()).double() / batch.temperature, dim=0)
        mean = p @ jacobian
        fisher += jacobian.t() @ (p[:, None] * jacobian) - torch.outer(mean, mean)
    return fisher / len(states)


def test_conjugate_gradients_solve_a_hand_worked_system() -> None:
    matrix = torch.tensor([[4.0, 1.0], [1.0, 3.0]])

    solution, rest = conjugate_gradients(lambda v: matrix @ v, torch.tensor([1.0, 2.0]), 2)

    assert solution.tolist() == pytest.approx([1 / 11, 7 / 11])
    assert rest.norm() < 1e-6


def test_the_direction_is_that_of_an_exact_fisher_solve(small_model: Path) -> None:
    learner = make_learner_for(small_model, fisher_iterations=60, fisher_damping=0.1)
    batch = made_batch(generations=2)
    fisher = exact_fisher(learner, batch)
    gradients(learner, batch)
    gradient = torch.cat([v.grad.reshape(-1) for v in learner.policy.trainable.values()])  # type: ignore[union-attr]
    learner.optimizer.zero_grad()
    unit = gradient.double() / gradient.double().norm()
    damping = 0.1 * unit @ fisher @ unit
    damped = fisher + damping * torch.eye(len(fisher), dtype=torch.float64)
    expected = torch.linalg.solve(damped, gradient.double())

    product = fisher_product(learner, batch)(unit.float()).double()
    direction, curvature = natural_direction(learner, batch, gradient)

    exact = fisher @ unit
    assert float((product - exact).norm() / exact.norm()) < 0.01
    assert float((direction - expected).norm() / expected.norm()) < 0.02
    assert curvature == pytest.approx(float(expected @ damped @ expected), rel=0.02)
    # and it is another than the plain gradient's
    assert float(torch.cosine_similarity(expected, gradient.double(), dim=0)) < 0.9


def kl_between(learner: Learner, batch: TrainingBatch, states: torch.Tensor, head: Any) -> float:
    with torch.no_grad():
        now = sampled_states(learner.policy, batch, share_prefix=False)
        old = torch.log_softmax(states.double() @ head.double().t() / batch.temperature, -1)
        new = torch.log_softmax(
            now.double() @ learner.policy.head_weight.double().t() / batch.temperature, -1
        )
    return float((old.exp() * (old - new)).sum(-1).mean())


@pytest.mark.parametrize("use_lora", [True, False])
@pytest.mark.parametrize("limit", [1e-3, 0.05])
def test_every_step_taken_keeps_the_limit_and_gains(
    tiny_model_dir: Path, limit: float, use_lora: bool
) -> None:
    settings: dict[str, Any] = {"use_lora": use_lora, "lora_target_modules": "all-linear"}
    learner = make_learner_for(tiny_model_dir, kl_limit=limit, **settings)
    batch = made_batch()
    plain = replace(batch, shared_prefix_lengths=torch.zeros_like(batch.shared_prefix_lengths))
    for _ in range(3):
        with torch.no_grad():
            before = sampled_states(learner.policy, plain, share_prefix=False)
            head = learner.policy.head_weight.detach().clone()

        metrics = trust_region_step(learner, batch, rate=1e-3).metrics

        moved = kl_between(learner, plain, before, head)
        assert metrics["step_taken"] == 1
        assert metrics["step_gain"] > 0
        assert moved <= limit * (1 + 1e-3)
        assert moved == pytest.approx(metrics["step_kl"], rel=1e-2)
        assert moved > limit / 20  # it goes about as far as it may


def test_where_no_try_gains_anything_the_weights_stay_bit_for_bit(small_model: Path) -> None:
    learner = make_learner_for(small_model, line_search_tries=3, kl_limit=50.0)
    batch = made_batch()
    logprobs, _ = gradients(learner, batch)
    uphill = torch.cat([v.grad.reshape(-1) for v in learner.policy.trainable.values()])  # type: ignore[union-attr]
    uphill *= 0.01 / uphill.norm()
    before = {name: value.detach().clone() for name, value in learner.policy.trainable.items()}

    taken = line_search(learner, replace(batch, old_logprobs=logprobs), uphill)

    assert taken == {
        "step_kl": 0, "step_gain": 0, "line_search_tries": 3, "step_taken": 0
    }  # fmt: skip
    for name, value in learner.policy.trainable.items():
        assert torch.equal(before[name], value), name
    # downhill the first try is taken
    assert line_search(learner, replace(batch, old_logprobs=logprobs), -uphill)["step_taken"]


def test_a_batch_without_advantages_moves_nothing(small_model: Path) -> None:
    learner = make_learner_for(small_model)
    batch = made_batch()

    metrics = trust_region_step(
        learner, replace(batch, advantages=torch.zeros_like(batch.advantages)), rate=1e-3
    ).metrics

    assert (metrics["step_taken"], metrics["step_kl"]) == (0, 0)


def test_the_divergence_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    now, then = (torch.randn(100, 8, generator=generator) for _ in range(2))
    head, old_head = (torch.randn(30, 8, generator=generator) for _ in range(2))

    ours = token_kl(now, head, then, old_head, temperature=0.7)

    new, old = (
        torch.log_softmax(states @ weight.t() / 0.7, -1)
        for states, weight in ((now, head), (then, old_head))
    )
    expected = torch.nn.functional.kl_div(new, old, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_the_critic_learns_beside_it_and_fewer_fisher_rows_and_damping_change_the_step(
    tiny_model_dir: Path,
) -> None:
    ends = []
    for settings in ({}, {"fisher_rows": 1}, {"fisher_damping": 10.0}, {"fisher_iterations": 1}):
        trainer = make_trainer(
            tiny_model_dir, algorithm="trpo", num_episodes=1, learning_rate=1e-3, **settings
        )
        weights = train(trainer)
        critic = trainer.learner.trainable["critic.head.weight"]
        assert float(critic.detach().abs().sum()) > 0
        ends.append(torch.cat([value.reshape(-1) for value in weights.values()]))

    assert all(not torch.equal(ends[0], other) for other in ends[1:])


def test_a_run_logs_what_its_steps_did(tiny_model_dir: Path) -> None:
    logger = Remembered()
    train(make_trainer(tiny_model_dir, logger=logger, algorithm="trpo", kl_limit=0.02))

    for _, metrics in logger.steps:
        assert metrics["policy/step_kl"] <= 0.02
        assert metrics["policy/step_taken"] in (0, 1)
        assert "policy/value_loss" in metrics


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"algorithm": "trpo"}, "set bf16=False"),
        ({"algorithm": "trpo", "kl_limit": 0}, "kl_limit"),
        ({"algorithm": "trpo", "bf16": False, "num_iterations": 2}, "num_iterations=2 cannot"),
        (
            {"algorithm": "trpo", "bf16": False, "use_lora": True, "lora_dropout": 0.1},
            "set lora_dropout=0",
        ),
        ({"algorithm": "trpo", "bf16": False, "value_coefficient": 0.1}, "beside its trust"),
        ({"algorithm": "ppo", "kl_limit": 0.1}, "which has no trust region"),
    ],
)
def test_what_a_trust_region_cannot_work_with_is_an_error(
    settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        TrainingConfig(**settings)


def test_nothing_in_a_step_is_random(small_model: Path) -> None:
    ends = []
    for _ in range(2):
        learner = make_learner_for(small_model)
        trust_region_step(learner, made_batch(), rate=1e-3)
        ends.append([value.detach().clone() for value in learner.policy.trainable.values()])

    assert all(torch.equal(first, second) for first, second in zip(*ends, strict=True))
