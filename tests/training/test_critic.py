"""The critic: decisions, advantages from values, its loss, and what it does in a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stateset_agents.core.value_function import ValueFunction
from stateset_agents.exceptions import ConfigurationError, TrainingError
from stateset_agents.training.batch import TrainingBatch
from stateset_agents.training.batching import StepRow, StepRows
from stateset_agents.training.callbacks import CheckpointCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.critic import (
    estimated_values,
    make_critic,
    value_loss,
    with_advantages,
)
from stateset_agents.training.decisions import with_decisions
from stateset_agents.training.multi_turn_trainer import MultiTurnGRPOTrainer
from stateset_agents.training.step import make_learner, train_step
from stateset_agents.training.update import update
from tests.tiny_model import make_tiny_model
from tests.training.made import make_config, make_policy, make_rows, to_batch
from tests.training.runs import Remembered, make_trainer, train

WIDTH = 64


def row(turns: list[int], trajectory: int = 0) -> StepRow:
    """A row whose tokens were sampled for these turns, -1 = the prompt or the user."""
    sampled = tuple(turn >= 0 for turn in turns)
    return StepRow(
        tuple(range(len(turns))),
        sampled,
        (0.0,) * len(turns),
        trajectory=trajectory,
        group=0,
        turn_index=tuple(turns),
    )


def step_of(
    rows: list[StepRow], rewards: list[float], turn_rewards: list[Any] | None = None
) -> StepRows:
    return StepRows(
        rows=rows,
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group_index=torch.zeros(len(rewards), dtype=torch.int64),
        turn_rewards=turn_rewards or [None] * len(rewards),
    )


def decided(step: StepRows, **settings: Any) -> TrainingBatch:
    batch = to_batch(step.rows, torch.zeros(len(step.rewards)), temperature=1.0)
    return with_decisions(batch, step, **{"value_level": "token", "credit": "episode", **settings})


# Two answers, of two tokens and of one, the user's two tokens between them.
ONE_ROW = [-1, 0, 0, -1, -1, 1]


def test_the_users_tokens_are_no_decisions() -> None:
    batch = decided(step_of([row(ONE_ROW)], [3.0]))

    assert batch.decision_index is not None
    assert batch.rewards is not None
    assert batch.decision_index[batch.loss_mask].tolist() == [0, 1, 2]
    assert batch.rewards.tolist() == [[0, 0, 0, 0, 0, 3]]


def test_a_critic_of_answers_has_one_decision_for_each() -> None:
    batch = decided(step_of([row(ONE_ROW)], [3.0]), value_level="turn")

    assert batch.decision_index is not None
    assert batch.value_weights is not None
    assert batch.decision_index[batch.loss_mask].tolist() == [0, 0, 1]
    assert batch.value_weights.tolist() == [[0, 0.5, 0, 0, 0, 0.5]]


def test_turns_are_earned_where_they_end_and_a_cut_off_turn_before_it() -> None:
    batch = decided(step_of([row(ONE_ROW)], [9.0], [[1.0, 2.0, 4.0]]), credit="turn")

    assert batch.rewards is not None
    assert batch.rewards.tolist() == [[0, 0, 1, 0, 0, 6]]  # of the third turn nothing is left


def test_crediting_turns_needs_a_reward_that_tells_them_apart() -> None:
    with pytest.raises(TrainingError, match="needs a reward for every assistant turn"):
        decided(step_of([row(ONE_ROW)], [1.0]), credit="turn")


def test_a_hand_worked_chain_of_three_decisions() -> None:
    # values 1, 2, 4 before the tokens, 3 earned at the end, discount 1/2, trace decay 1/2:
    # d3 = 3 - 4 = -1; d2 = 0 + 4/2 - 2 = 0; d1 = 0 + 2/2 - 1 = 0
    # A3 = -1; A2 = 0 - 1/4; A1 = 0 - 1/16; returns A + V
    batch = decided(step_of([row(ONE_ROW)], [3.0]))
    values = torch.tensor([[7.0, 1, 2, 7, 7, 4]])  # 7: where nothing was decided

    done = with_advantages(
        batch, values, ValueFunction(WIDTH, gamma=0.5, gae_lambda=0.5), scale=False
    )

    assert done.advantages.tolist() == [[0, -1 / 16, -1 / 4, 0, 0, -1]]
    assert done.returns is not None
    assert done.returns.tolist() == [[0, 15 / 16, 7 / 4, 0, 0, 3]]


def test_all_tokens_of_an_answer_share_the_advantage_of_its_first_state() -> None:
    # two decisions with values 1 and 4, discount 1, trace decay 0: A1 = 4 - 1, A2 = 3 - 4
    batch = decided(step_of([row(ONE_ROW)], [3.0]), value_level="turn")
    values = torch.tensor([[0.0, 1, 99, 0, 0, 4]])

    done = with_advantages(batch, values, ValueFunction(WIDTH, 1.0, 0.0), scale=False)

    assert done.advantages.tolist() == [[0, 3, 3, 0, 0, -1]]


def test_a_conversation_in_two_rows_is_one_chain() -> None:
    # the context was rewritten after the first answer; what was earned in the second row reaches
    # the first one: with trace decay 1 and no discount A = what was earned - V everywhere
    step = step_of([row([-1, 0, 0]), row([-1, -1, 1])], [5.0])
    values = torch.tensor([[0.0, 1, 2], [0, 0, 4]])

    done = with_advantages(decided(step), values, ValueFunction(WIDTH, 1.0, 1.0), scale=False)

    assert done.advantages.tolist() == [[0, 4, 3], [0, 0, 1]]


def numpy_gae(rows: list[StepRow], rewards: Any, values: Any, gamma: float, decay: float) -> Any:
    """Advantages by the sum that defines them: A_t = sum_l (gamma decay)^l d_(t + l)."""
    result = np.zeros_like(values)
    for trajectory in {one.trajectory for one in rows}:
        chain = [
            (n, t)
            for n, one in enumerate(rows)
            if one.trajectory == trajectory
            for t, sampled in enumerate(one.loss_mask)
            if sampled
        ]
        earned = np.zeros(len(chain))
        earned[-1] = rewards[trajectory]
        v = np.array([values[place] for place in chain] + [0.0])
        surprise = earned + gamma * v[1:] - v[:-1]
        powers = (gamma * decay) ** np.arange(len(chain))
        for start, place in enumerate(chain):
            result[place] = (powers[: len(chain) - start] * surprise[start:]).sum()
    return result


def chain_places(rows: list[StepRow]) -> list[tuple[int, int]]:
    return [(n, t) for n, one in enumerate(rows) for t, s in enumerate(one.loss_mask) if s]


def test_advantages_and_whitening_are_those_of_a_plain_numpy_version() -> None:
    rows = make_rows(groups=2, generations=3)
    rewards = np.random.default_rng(0).normal(size=6)
    batch = decided(step_of(rows, rewards.tolist()))
    values = np.random.default_rng(1).normal(size=batch.token_ids.shape)
    expected = numpy_gae(rows, rewards, values, gamma=0.97, decay=0.9)
    own = np.array([expected[place] for place in chain_places(rows)])

    plain, whitened = (
        with_advantages(batch, torch.tensor(values), ValueFunction(WIDTH, 0.97, 0.9), scale=scale)
        for scale in (False, True)
    )

    sampled = batch.loss_mask.numpy()
    np.testing.assert_allclose(plain.advantages.numpy(), expected, atol=1e-6)
    assert plain.returns is not None
    np.testing.assert_allclose(
        plain.returns.numpy()[sampled], (expected + values)[sampled], atol=1e-6
    )
    np.testing.assert_allclose(
        whitened.advantages.numpy()[sampled], (own - own.mean()) / own.std(ddof=1), atol=1e-5
    )


def test_a_value_is_followed_no_further_than_the_clip_allows() -> None:
    # old estimates 1, returns 2: at 1.1 the error counts as it is; at 1.9 it is that of 1.2; what
    # went the wrong way counts as it is
    values = torch.tensor([[1.1, 1.9, 0.5]], requires_grad=True)
    old, returns = torch.ones(1, 3), 2 * torch.ones(1, 3)
    weights = torch.full((1, 3), 1 / 3)

    loss = value_loss(values, old, returns, weights, clip=0.2)
    loss.backward()

    assert loss.item() == pytest.approx((0.9**2 + 0.8**2 + 1.5**2) / 6)
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([-0.3, 0.0, -0.5])
    unclipped = value_loss(values, old, returns, weights, clip=0.0)
    assert unclipped.item() == pytest.approx((0.9**2 + 0.1**2 + 1.5**2) / 6)


def learner_with_critic(folder: Path, **settings: Any) -> Any:
    config = make_config(**{"algorithm": "ppo", "kl_sample_rows": 0, **settings})
    policy = make_policy(folder, config)
    return make_learner(policy, config, make_critic(policy, config, str(folder)))


def valued_batch(seed: int = 0) -> TrainingBatch:
    rows = make_rows(groups=1, generations=3, seed=seed)
    batch = decided(step_of(rows, [1.0, 0.0, 0.5]))
    advantages = torch.where(batch.loss_mask, torch.ones(1), torch.zeros(1))
    return replace(
        batch,
        advantages=advantages,
        returns=advantages,
        old_values=torch.zeros_like(advantages),
        shared_prefix_lengths=torch.zeros_like(batch.shared_prefix_lengths),
    )


def moved(learner: Any, batch: TrainingBatch) -> dict[str, bool]:
    before = {name: value.detach().clone() for name, value in learner.trainable.items()}
    train_step(learner, batch, rate=1e-3)
    return {name: not torch.equal(before[name], now) for name, now in learner.trainable.items()}


def test_the_value_loss_reaches_the_policy_as_far_as_value_coefficient_says(
    tiny_model_dir: Path,
) -> None:
    batch = valued_batch()
    nothing_to_learn = replace(batch, advantages=torch.zeros_like(batch.advantages))

    for coefficient, reaches in ((0.0, False), (0.5, True)):
        learner = learner_with_critic(tiny_model_dir, value_coefficient=coefficient)
        torch.nn.init.ones_(learner.critic.value_function.head.weight)
        changed = moved(learner, nothing_to_learn)
        assert any(value for name, value in changed.items() if name.startswith("critic."))
        policy = [value for name, value in changed.items() if not name.startswith("critic.")]
        assert any(policy) == reaches


def test_a_critic_of_its_own_learns_beside_the_policy_and_moves_it_by_advantages_alone(
    tiny_model_dir: Path,
) -> None:
    batch = valued_batch()
    nothing_to_learn = replace(batch, advantages=torch.zeros_like(batch.advantages))
    learner = learner_with_critic(tiny_model_dir, critic="own", use_lora=True)
    torch.nn.init.ones_(learner.critic.value_function.head.weight)

    changed = moved(learner, nothing_to_learn)

    assert any(value for name, value in changed.items() if name.startswith("critic.trunk."))
    assert not any(value for name, value in changed.items() if not name.startswith("critic."))


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_values_that_make_advantages_are_those_without_dropout_before_and_after_a_step(
    tiny_model_dir: Path, critic: str
) -> None:
    batch = valued_batch()
    estimates = {}
    for dropout in (0.0, 0.5):
        learner = learner_with_critic(
            tiny_model_dir, critic=critic, use_lora=True, lora_dropout=dropout
        )
        torch.nn.init.ones_(learner.critic.value_function.head.weight)
        trained = (learner.critic.trunk or learner.policy).trainable
        for name, value in trained.items():
            if "lora_B" in name:  # zero at first, and then dropout before it would not show
                torch.nn.init.ones_(value)
        learner.policy.refresh()
        learner.critic.refresh()

        def estimated(learner: Any = learner) -> torch.Tensor:
            return estimated_values(learner.critic, learner.policy, batch, learner.config)

        estimates[dropout] = estimated()
        losses = [train_step(learner, batch, rate=0.0).metrics["value_loss"] for _ in range(2)]
        assert (losses[0] == losses[1]) == (dropout == 0)  # while it learns, there is dropout
        assert torch.equal(estimated(), estimates[dropout])
    assert torch.equal(estimates[0.0], estimates[0.5])


def test_the_head_learns_at_the_critics_own_rate(tiny_model_dir: Path) -> None:
    steps = {}
    for rate in (1e-3, 1e-2):
        learner = learner_with_critic(
            tiny_model_dir, critic_learning_rate=rate, learning_rate=1e-3, max_grad_norm=1e9
        )
        moved(learner, valued_batch())
        steps[rate] = float(learner.critic.value_function.head.bias.detach())

    assert steps[1e-2] == pytest.approx(10 * steps[1e-3], rel=1e-4)  # Adam's first step is its rate


def test_a_kl_term_in_the_reward_costs_what_the_sampler_gave_up(tiny_model_dir: Path) -> None:
    """With discount and trace decay 1 and values 0, an advantage is all that is still earned."""
    settings = {
        "algorithm": "a2c", "kl_coefficient": 0.5, "kl_placement": "reward", "trace_decay": 1.0,
    }  # fmt: skip
    learner = learner_with_critic(tiny_model_dir, **settings)
    batch = decided(step_of(make_rows(groups=1, generations=2), [1.0, 0.0]))
    seen = {}

    class Looking(ValueFunction):
        def advantages(self, rewards: Any, values: Any, loss_mask: Any = None) -> Any:
            seen["earned"] = rewards.sum(1)
            return super().advantages(rewards, values, loss_mask)

    learner.critic.value_function = Looking(WIDTH)
    plain = make_learner(learner.policy, make_config(algorithm="a2c"), learner.critic)
    reference = train_step(plain, replace(batch, returns=None), rate=0.0).logprobs

    update(learner, batch, 0.0)

    cost = 0.5 * (batch.sampling_logprobs - reference).sum(1)
    assert seen["earned"].tolist() == pytest.approx((torch.tensor([1.0, 0.0]) - cost).tolist())


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"algorithm": "grpo", "discount": 0.9}, "discount=0.9 has no effect"),
        ({"algorithm": "ppo", "critic_model": "m"}, 'no effect with critic="shared"'),
        ({"algorithm": "ppo", "critic": "own", "value_coefficient": 0.1}, "shares no weights"),
        ({"algorithm": "a2c", "num_iterations": 2}, "num_iterations=2 cannot work"),
        ({"algorithm": "gspo", "advantage_baseline": "value"}, 'choose algorithm="gspo_token"'),
        ({"algorithm": "ppo", "credit": "turn", "turn_discount": 0.5}, "set discount"),
        ({"algorithm": "ppo", "kl_placement": "reward"}, "no effect with kl_coefficient=0"),
        (
            {"algorithm": "ppo", "kl_placement": "reward", "beta": 0.1, "kl_estimator": "k2"},
            "kl_estimator='k2'",
        ),
        ({"algorithm": "ppo", "advantage_baseline": "group", "value_clip": 0.1}, "no critic"),
    ],
)
def test_critic_settings_that_nothing_would_read_are_errors(
    settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        TrainingConfig(**settings)


def test_ppo_needs_no_group() -> None:
    assert TrainingConfig(algorithm="ppo", num_generations=1).num_generations == 1


def test_a_critic_of_another_vocabulary_is_an_error(tiny_model_dir: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", vocab_size=400)

    with pytest.raises(ConfigurationError, match="has another vocabulary than the policy"):
        learner_with_critic(tiny_model_dir, critic="own", critic_model=str(other))

    for file in other.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigurationError, match="has a vocabulary of 400 tokens"):
        learner_with_critic(tiny_model_dir, critic="own", critic_model=str(other))


def test_a_critic_whose_tokens_are_in_another_order_is_an_error(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path / "other")
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer))

    with pytest.raises(ConfigurationError, match="'a' is token"):
        learner_with_critic(tiny_model_dir, critic="own", critic_model=str(other))


# --- value_function= -----------------------------------------------------------------------------


def trainer_with(
    folder: Path, value_function: ValueFunction, logger: Any = None, **settings: Any
) -> MultiTurnGRPOTrainer:
    made = make_trainer(folder, **{"num_episodes": 2, "num_generations": 3, **settings})
    return MultiTurnGRPOTrainer(
        agent=made.agent,
        environment=made.environment,
        reward_function=made.reward_function,
        config=made.config,
        value_function=value_function,
        logger=logger,
    )


def test_a_value_function_takes_the_groups_place_as_baseline(tiny_model_dir: Path) -> None:
    """Advantages are what its own `advantages` gives, the loss stays GRPO's, and it learns."""
    calls = []

    class Halved(ValueFunction):
        def advantages(self, rewards: Any, values: Any, loss_mask: Any = None) -> Any:
            advantages, returns = super().advantages(rewards, values, loss_mask)
            calls.append((rewards, loss_mask))
            return 0.5 * advantages, returns

    value_function = Halved(WIDTH, gamma=1.0, gae_lambda=1.0)
    logger = Remembered()
    settings = {"scale_advantages": False, "loss_aggregation": "token_mean", "num_generations": 2}

    train(trainer_with(tiny_model_dir, value_function, logger, **settings))

    [(_, first), _] = logger.steps
    rewards, decisions = calls[0]
    assert float(rewards.sum()) == pytest.approx(2 * first["reward/mean"])
    assert int(decisions.sum()) == first["rollout/sampled_tokens"]
    # values begin at 0, so every advantage is half of what was earned, the group's mean included,
    # and on-policy the loss is the mean advantage, negative
    assert first["policy/return_mean"] > 0
    assert first["policy/loss"] == pytest.approx(-0.5 * first["policy/return_mean"], rel=1e-4)
    assert float(value_function.head.bias.detach()) != 0


def test_its_gamma_and_lambda_are_the_ones_that_count(tiny_model_dir: Path) -> None:
    losses = []
    for gamma, decay in ((1.0, 1.0), (0.5, 1.0), (0.5, 0.5)):
        logger = Remembered()
        train(
            trainer_with(
                tiny_model_dir, ValueFunction(WIDTH, gamma, decay), logger,
                num_episodes=1, scale_advantages=False,
            )
        )  # fmt: skip
        losses.append(logger.steps[0][1]["policy/loss"])

    assert len({round(loss, 6) for loss in losses}) == 3


def test_a_value_function_of_another_width_is_an_error(tiny_model_dir: Path) -> None:
    trainer = trainer_with(tiny_model_dir, ValueFunction(WIDTH + 1))

    with pytest.raises(ConfigurationError, match="hidden_size=65"):
        train(trainer)


def test_a_value_function_beside_settings_for_another_is_an_error(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        trainer_with(
            tiny_model_dir, ValueFunction(WIDTH), algorithm="ppo", critic="own", discount=0.5
        )

    assert "critic='own' contradicts the value_function" in str(caught.value)
    assert "discount=0.5 contradicts the value_function" in str(caught.value)


@pytest.mark.parametrize("critic", ["shared", "own"])
def test_a_resumed_run_has_the_critic_and_its_optimizer_bit_for_bit(
    tiny_model_dir: Path, tmp_path: Path, critic: str
) -> None:
    def run(resume: Path | None = None) -> dict[str, torch.Tensor]:
        trainer = make_trainer(
            tiny_model_dir, algorithm="ppo", critic=critic, num_episodes=3, num_iterations=2
        )
        train(trainer, [] if resume else [CheckpointCallback(tmp_path, keep=9)], resume)
        return {**trainer.learner.trainable}

    whole, resumed = run(), run(tmp_path / "step_1")

    assert any(name.startswith("critic.") for name in whole)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
