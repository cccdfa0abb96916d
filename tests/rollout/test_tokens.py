"""What a real model sampled is what training gets: same tokens, same log-probs, same seeds.

Played on the tiny model through `TransformersEngine`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.trajectory import MultiTurnTrajectory
from stateset_agents.inference.loading import load_model
from stateset_agents.rollout.collect import collect_groups
from stateset_agents.rollout.rows import trajectory_rows

TEMPERATURE = 0.7
SCENARIOS: list[dict[str, Any]] = [
    {
        "id": "parcel",
        "context": "Ask for the order number.",
        "user_responses": ["Hello, where is my parcel?", "It is 48213.", "Thank you."],
    },
    {"id": "lamp", "user_responses": ["The lamp came broken.", "Can I have a refund?"]},
    {"id": "login", "user_responses": ["I cannot log in."]},
]


@pytest.fixture
async def agent(tiny_model_dir: Path) -> AsyncIterator[MultiTurnAgent]:
    config = AgentConfig(
        model_name=str(tiny_model_dir),
        system_prompt="Be kind.",
        temperature=TEMPERATURE,
        max_new_tokens=9,
        torch_dtype="float32",
        device_map="cpu",
    )
    agent = MultiTurnAgent(config)
    await agent.initialize()
    yield agent
    await agent.engine.aclose()


async def roll(
    agent: MultiTurnAgent, scenarios: list[dict[str, Any]], num_generations: int = 2, seed: int = 5
) -> dict[str, MultiTurnTrajectory]:
    groups = await collect_groups(
        agent,
        ConversationEnvironment(SCENARIOS),
        scenarios,
        num_generations=num_generations,
        seed=seed,
    )
    trajectories = [trajectory for group in groups for trajectory in group.trajectories]
    assert [trajectory.error for trajectory in trajectories] == [None] * len(trajectories)
    return {trajectory.trajectory_id: trajectory for trajectory in trajectories}


def sampled(trajectories: dict[str, MultiTurnTrajectory]) -> dict[str, list[tuple[int, ...]]]:
    return {name: [s.token_ids for s in t.samples] for name, t in trajectories.items()}


async def test_a_conversation_is_one_row_and_it_is_the_templates_rendering_with_the_samples_in_it(
    agent: MultiTurnAgent,
) -> None:
    tokenizer = agent.tokenizer
    for trajectory in (await roll(agent, SCENARIOS[:1], num_generations=4)).values():
        (row,) = trajectory_rows(trajectory)
        assert len(trajectory.samples) == 3
        # The template's text around the answers, then the sampled ids put where the answers stand.
        messages = [{"role": "system", "content": "Be kind.\n\nAsk for the order number."}]
        for user in SCENARIOS[0]["user_responses"]:
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": "@@"}]
        text = tokenizer.hf.apply_chat_template(messages, tokenize=False)
        expected: list[int] = []
        for around, sample in zip(text.split("@@"), trajectory.samples, strict=False):
            answer = list(sample.token_ids)
            while answer and answer[-1] in tokenizer.stop_token_ids:
                answer.pop()
            expected += [*tokenizer.encode(around), *answer]
        last = trajectory.samples[-1].token_ids
        stopped = [last[-1]] if last[-1] in tokenizer.stop_token_ids else []
        assert list(row.token_ids) == expected + stopped
        assert sum(row.loss_mask) == sum(len(s.token_ids) for s in trajectory.samples)


async def test_log_probs_in_a_row_are_those_of_one_plain_forward_pass(
    agent: MultiTurnAgent, tiny_model_dir: Path
) -> None:
    model = load_model(tiny_model_dir, dtype="float32")
    for trajectory in (await roll(agent, SCENARIOS)).values():
        (row,) = trajectory_rows(trajectory)
        token_ids = torch.tensor([row.token_ids])
        with torch.no_grad():
            logits = model(input_ids=token_ids).logits[0, :-1] / TEMPERATURE
        logprobs = logits.log_softmax(-1).gather(-1, token_ids[0, 1:, None])[:, 0]
        loss_mask = torch.tensor(row.loss_mask[1:])
        reported = torch.tensor(row.sampling_logprobs[1:])
        assert not row.loss_mask[0]
        torch.testing.assert_close(reported[loss_mask], logprobs[loss_mask], atol=2e-4, rtol=1e-4)


async def test_a_subclass_that_rewrites_the_history_starts_new_rows_and_loses_no_token(
    agent: MultiTurnAgent,
) -> None:
    class Forgetful(MultiTurnAgent):
        async def generate_response(self, messages):  # type: ignore[no-untyped-def]
            answer = await super().generate_response(messages[-1:])
            return f"{answer} -- your shop"

    forgetful = Forgetful(agent.config, engine=agent.engine)
    for trajectory in (await roll(forgetful, SCENARIOS[:1])).values():
        rows = trajectory_rows(trajectory)
        assert len(rows) == len(trajectory.samples) == 3
        assert sum(sum(row.loss_mask) for row in rows) == sum(
            len(sample.token_ids) for sample in trajectory.samples
        )
        for turn in trajectory.assistant_turns:
            assert turn.sample is not None
            assert turn.content == agent.tokenizer.decode(turn.sample.token_ids) + " -- your shop"


async def test_one_seed_gives_one_rollout_and_another_seed_another(agent: MultiTurnAgent) -> None:
    first, again = await roll(agent, SCENARIOS), await roll(agent, SCENARIOS)
    assert again == first
    other = sampled(await roll(agent, SCENARIOS, seed=6))
    assert all(other[name] != tokens for name, tokens in sampled(first).items())


async def test_the_samples_of_a_group_differ(agent: MultiTurnAgent) -> None:
    answers = sampled(await roll(agent, SCENARIOS[:1], num_generations=4)).values()
    assert len({tuple(tokens) for tokens in answers}) == 4


async def test_a_sample_depends_neither_on_other_episodes_nor_on_their_order(
    agent: MultiTurnAgent,
) -> None:
    together = sampled(await roll(agent, SCENARIOS[::-1], num_generations=3))
    for scenario in SCENARIOS:
        alone = sampled(await roll(agent, [scenario], num_generations=1))
        assert alone.items() <= together.items()


async def test_two_calls_at_once_in_one_turn_keep_their_own_tokens(agent: MultiTurnAgent) -> None:
    class BestOfTwo(MultiTurnAgent):
        async def generate_response(self, messages):  # type: ignore[no-untyped-def]
            one, two = await asyncio.gather(
                super().generate_response(messages), super().generate_response(messages)
            )
            return max(one, two)

    twice = BestOfTwo(agent.config, engine=agent.engine)
    first = await roll(twice, SCENARIOS[:2])
    for trajectory in first.values():
        assert len(trajectory.samples) == 2 * len(trajectory.assistant_turns)
        for turn in trajectory.assistant_turns:
            assert turn.sample is not None
            assert agent.tokenizer.decode(turn.sample.token_ids) == turn.content
        rows = trajectory_rows(trajectory)
        assert sum(sum(row.loss_mask) for row in rows) == sum(
            len(sample.token_ids) for sample in trajectory.samples
        )
    assert sampled(await roll(twice, SCENARIOS[:2])) == sampled(first)


async def test_samples_know_their_turn_also_where_turns_drew_several_or_none(
    agent: MultiTurnAgent,
) -> None:
    class FirstByHeartThenBestOfTwo(MultiTurnAgent):
        async def generate_response(self, messages):  # type: ignore[no-untyped-def]
            if messages[-1]["content"].startswith("Hello"):
                return "Hello. May I have your order number?"
            one = await super().generate_response(messages)
            await super().generate_response(messages)
            return one

    mixed = FirstByHeartThenBestOfTwo(agent.config, engine=agent.engine)
    for trajectory in (await roll(mixed, SCENARIOS[:1])).values():
        assert [turn.sample is None for turn in trajectory.assistant_turns] == [True, False, False]
        assert [sample.turn for sample in trajectory.samples] == [1, 1, 2, 2]
        assert {max(row.turn_index) for row in trajectory_rows(trajectory)} == {1, 2}
