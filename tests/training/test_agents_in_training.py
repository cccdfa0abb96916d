"""Whatever an agent or an environment does, what was sampled is what is trained on.

Small real runs: a model without a chat template, the guide's subclass and environment, thoughts,
cut distributions.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import (
    ConversationEnvironment,
    Environment,
    EnvironmentState,
)
from stateset_agents.core.environment_check import check_environment
from stateset_agents.core.reward import CompositeReward
from stateset_agents.core.trajectory import TrajectoryGroup
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.stub_engine import StubEngine
from stateset_agents.rewards.environment_reward import EnvironmentReward
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.rollouts import RolloutPlayer
from stateset_agents.training.trainer import Trainer
from tests.tiny_model import make_tiny_gpt2
from tests.training.runs import SCENARIOS, LettersE, Remembered, train

SMALL = {
    "num_episodes": 2,
    "num_generations": 4,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "bf16": False,
    "logging_steps": 1,
    "warmup_ratio": 0,
}


def trainer_of(
    agent: MultiTurnAgent,
    environment: Environment | None = None,
    reward: Any = None,
    **settings: Any,
) -> tuple[Trainer, Remembered]:
    logger = Remembered()
    trainer = Trainer(
        agent,
        environment or ConversationEnvironment(SCENARIOS, max_turns=4),
        reward or LettersE(),
        TrainingConfig(**{**SMALL, **settings}),
        logger=logger,
    )
    return trainer, logger


def agent_of(
    folder: Path, kind: type[MultiTurnAgent] = MultiTurnAgent, **settings: Any
) -> MultiTurnAgent:
    given = {"max_new_tokens": 8, "temperature": 1.0, "torch_dtype": "float32", **settings}
    return kind(AgentConfig(model_name=str(folder), **given))


@pytest.fixture(scope="module")
def gpt2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gpt2(tmp_path_factory.mktemp("gpt2"))


def test_a_gpt2_without_a_chat_template_trains_as_well_as_any(gpt2_dir: Path) -> None:
    trainer, logger = trainer_of(
        agent_of(gpt2_dir), num_episodes=24, num_generations=8, gradient_accumulation_steps=2
    )
    train(trainer)
    rewards = [metrics["reward/mean"] for _, metrics in logger.steps]
    assert sum(rewards[-3:]) > 1.5 * sum(rewards[:3])
    for _, metrics in logger.steps:
        assert metrics["policy/sampling_difference_mean"] < 1e-4


def test_an_adapter_on_a_gpt2_reaches_the_engine(gpt2_dir: Path) -> None:
    trainer, logger = trainer_of(agent_of(gpt2_dir), use_lora=True, num_episodes=6)
    train(trainer)
    for _, metrics in logger.steps:
        assert metrics["policy/sampling_difference_mean"] < 1e-4
    # a policy that had not reached the engine would have been seen: it is another one by now
    assert logger.steps[-1][1]["policy/kl_to_reference"] > 0.001


def test_cut_distributions_are_trained_on_with_the_log_probs_of_the_whole(
    tiny_model_dir: Path,
) -> None:
    trainer, logger = trainer_of(
        agent_of(tiny_model_dir, top_p=0.9, top_k=50),
        use_lora=True,
        num_episodes=20,
        num_generations=8,
        gradient_accumulation_steps=2,
        learning_rate=2e-2,
    )
    train(trainer)
    rewards = [metrics["reward/mean"] for _, metrics in logger.steps]
    assert sum(rewards[-3:]) > 1.3 * sum(rewards[:3])
    for _, metrics in logger.steps:
        assert metrics["policy/sampling_difference_mean"] < 1e-4


def test_the_gradient_under_a_cut_is_that_of_the_cut_policy_and_one_term_more() -> None:
    """docs/engines.md: E_q[A d log p] = d E_q[A] + E_q[A] d log Z, with q = p / Z on what is kept.

    So it is the cut policy's own where the mean advantage is 0, as after a group's baseline.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, generator=generator, dtype=torch.float64, requires_grad=True)
    rewards = torch.rand(12, generator=generator, dtype=torch.float64)
    kept = logits.detach().topk(5).indices

    def gradient(value: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    log_p = logits.log_softmax(0)
    log_z = log_p[kept].logsumexp(0)
    q = (log_p[kept] - log_z).exp()
    for baseline in (0.0, float((q.detach() * rewards[kept]).sum())):
        advantages = rewards[kept] - baseline
        as_trained = gradient((q.detach() * advantages * log_p[kept]).sum())
        of_cut_policy = gradient((q * advantages).sum())
        mean = (q.detach() * advantages).sum()
        torch.testing.assert_close(as_trained, of_cut_policy + mean * gradient(log_z))
    torch.testing.assert_close(as_trained, of_cut_policy)


class KeepGroups(TrainingCallback):
    def __init__(self) -> None:
        self.groups: list[TrajectoryGroup] = []

    async def on_step_end(self, trainer: Trainer, metrics: Any) -> None:
        self.groups += trainer.groups


def test_a_penalty_on_repetition_is_refused_in_training(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"repetition_penalty=1\.2: .* train with 1\.0"):
        trainer_of(agent_of(tiny_model_dir, repetition_penalty=1.2))


def test_thoughts_are_trained_on_and_neither_rewards_nor_the_environment_see_them(
    tiny_model_dir: Path,
) -> None:
    # "e" opens a thought and "a" ends it, so that a model that babbles has thoughts
    agent = agent_of(tiny_model_dir, enable_reasoning=True, reasoning_tags=("e", "a"))
    trainer, logger = trainer_of(agent, use_lora=True)
    kept = KeepGroups()
    train(trainer, [kept])
    turns = [
        turn
        for group in kept.groups
        for trajectory in group.trajectories
        for turn in trajectory.assistant_turns
    ]
    assert any("reasoning" in turn.metadata for turn in turns)
    assert all("e" not in turn.content for turn in turns)
    assert all(metrics["reward/mean"] == 0 for _, metrics in logger.steps)  # the share of e
    for group in kept.groups:
        for trajectory in group.trajectories:
            sampled = sum(len(sample.token_ids) for sample in trajectory.samples)
            assert sampled == sum(
                len(turn.sample.token_ids) for turn in trajectory.assistant_turns if turn.sample
            )


class CustomerServiceAgent(MultiTurnAgent):
    """The guide's, with something to do."""

    async def generate_response(self, conversation_history: Any) -> str:
        enhanced_history = self._add_context(conversation_history)
        response = await super().generate_response(enhanced_history)
        return self._ensure_professional_tone(response)

    def _add_context(self, history: Any) -> Any:
        return [{"role": "system", "content": "You work for a shop."}, *history]

    def _ensure_professional_tone(self, response: str) -> str:
        return response.replace("o", "O")


class TaskCompletionEnvironment(Environment):
    """The guide's, with something to do."""

    def __init__(self, tasks: list[str]) -> None:
        self.tasks = tasks

    async def reset(self, scenario: Any = None) -> EnvironmentState:
        task = scenario or random.choice(self.tasks)
        return EnvironmentState(
            conversation_history=[], metadata={"task": task, "completed": False}
        )

    async def step(self, state: EnvironmentState, action: Any) -> Any:
        new_history = state.conversation_history + [action]  # noqa: RUF005 - the guide's form
        completed = self._check_completion(action, state.metadata["task"])
        reward = 1.0 if completed else 0.0
        done = completed or len(new_history) >= 4
        user_response = self._generate_user_response(state, action)
        new_state = EnvironmentState(
            conversation_history=new_history + [user_response],  # noqa: RUF005
            metadata={**state.metadata, "completed": completed},
        )
        return new_state, user_response, reward, done

    def _check_completion(self, action: Any, task: str) -> bool:
        return task in action["content"]

    def _generate_user_response(self, state: EnvironmentState, action: Any) -> dict[str, str]:
        return {"role": "user", "content": f"Say {state.metadata['task']}."}


async def test_the_guides_environment_has_nothing_wrong() -> None:
    report = await check_environment(TaskCompletionEnvironment(["a", "b"]))
    assert report.ok
    assert [finding.check for finding in report.findings] == ["agent_begins"]


def test_the_guides_agent_and_environment_train_on_the_environments_own_rewards(
    tiny_model_dir: Path,
) -> None:
    agent = agent_of(tiny_model_dir, CustomerServiceAgent)
    environment = TaskCompletionEnvironment(["t", "O"])
    reward = CompositeReward([EnvironmentReward(), LettersE()])
    trainer, _ = trainer_of(agent, environment, reward, use_lora=True, num_episodes=3)
    before = {name: value.detach().clone() for name, value in trainer.policy.trainable.items()}
    kept = KeepGroups()
    after = train(trainer, [kept])
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    seen = set()
    for group in kept.groups:
        for trajectory in group.trajectories:
            assert trajectory.error is None
            steps = [turn.metadata["environment_reward"] for turn in trajectory.assistant_turns]
            assert trajectory.reward_parts["EnvironmentReward"] == sum(steps)
            seen |= set(steps)
            for turn in trajectory.assistant_turns:
                assert turn.sample is not None
                sampled = agent.tokenizer.decode(turn.sample.token_ids)
                assert turn.content == sampled.replace("o", "O")
    assert 1.0 in seen <= {0.0, 1.0}


def test_step_rewards_alone_change_nothing(tiny_model_dir: Path) -> None:
    class Generous(TaskCompletionEnvironment):
        async def step(self, state: EnvironmentState, action: Any) -> Any:
            new_state, user, _, done = await super().step(state, action)
            return new_state, user, 100.0, done

    trained = []
    for kind in (TaskCompletionEnvironment, Generous):
        agent = agent_of(tiny_model_dir, system_prompt="Be kind.")
        trainer, logger = trainer_of(agent, kind(["a"]), use_lora=True)
        trained.append((train(trainer), [m["reward/mean"] for _, m in logger.steps]))
    (first, rewards), (second, other_rewards) = trained
    assert rewards == other_rewards
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_policy_computes_with_the_attention_that_the_agent_asks_for(
    tiny_model_dir: Path,
) -> None:
    for name in ("eager", "sdpa"):
        trainer, _ = trainer_of(agent_of(tiny_model_dir, attn_implementation=name))
        assert trainer.policy.model.config._attn_implementation == name


@pytest.mark.parametrize("randomize", [None, True, False])
async def test_training_visits_scenarios_in_the_order_that_the_environment_asks_for(
    randomize: bool | None,
) -> None:
    scenarios = [{"id": f"s{n}", "user_responses": ["Hi."]} for n in range(6)]
    environment = ConversationEnvironment(scenarios, randomize_scenarios=randomize)
    config = TrainingConfig(num_generations=2, num_episodes=12, gradient_accumulation_steps=3)
    player = RolloutPlayer(
        MultiTurnAgent(AgentConfig(model_name="x"), StubEngine()),
        environment,
        LettersE(),
        config,
        lambda _: None,
    )
    played = [[group.scenario["id"] for group in (await player.play(n)).groups] for n in range(4)]
    first, second = played[0] + played[1], played[2] + played[3]
    assert set(first) == set(second) == {f"s{n}" for n in range(6)}
    in_order = [f"s{n}" for n in range(6)]
    assert (first == second == in_order) == (randomize is False)
