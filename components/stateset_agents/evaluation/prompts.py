"""A file of prompts, answered and scored: what one looks at before, or instead of, whole scenarios.

Owns the file's form, and that every prompt is answered by itself with a seed of its own. It does
not know where a policy comes from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stateset_agents.core.agent import MultiTurnAgent
from stateset_agents.core.recorder import EpisodeRecorder, recording
from stateset_agents.core.reward import RewardFunction
from stateset_agents.core.rubric import Rubric
from stateset_agents.core.seeds import derive_seed
from stateset_agents.core.trajectory import (
    ConversationTurn,
    MultiTurnTrajectory,
    StopReason,
    TrajectoryGroup,
)
from stateset_agents.data.readers import SUFFIXES, describe, read_rows
from stateset_agents.data.schemas import Message, Name, Text, role_problems
from stateset_agents.exceptions import DataError, StateSetError
from stateset_agents.rollout.scoring import score_groups


class Prompt(BaseModel):
    """One row: a `message`, or the `messages` of a conversation whose last one is the user's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Name
    message: Text | None = None
    messages: tuple[Message, ...] = Field(default=())
    rubric: Rubric | None = None

    @model_validator(mode="after")
    def _one_of_the_two(self) -> Self:
        if (self.message is None) == (not self.messages):
            raise ValueError("found both or neither of message and messages; allowed is one")
        if self.messages and (
            problems := role_problems("messages", self.messages, first="user", last="user")
        ):
            raise ValueError("; ".join(problems))
        return self

    @property
    def history(self) -> list[dict[str, str]]:
        """What is answered, oldest message first."""
        if self.message is not None:
            return [{"role": "user", "content": self.message}]
        return [{"role": one.role, "content": one.content} for one in self.messages]


def read_prompts(path: Path) -> list[Prompt]:
    """Read a `.jsonl` file or a `.json` array; a row is a text, or an object as `Prompt` has it.

    A row without `id` is called by its place.

    Raises:
        DataError: every row that is not a prompt, with file, line and key; an empty file.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; give prompts as .jsonl or .json")
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: found a {path.suffix or 'nameless'} file; allowed: .jsonl, .json")
    problems: list[str] = []
    prompts: list[Prompt] = []
    places: dict[str, str] = {}
    rows = 0
    for place, row in read_rows(path, problems):
        rows += 1
        values = {"message": row} if isinstance(row, str) else row
        if isinstance(values, dict):
            values = {"id": f"prompt_{rows}", **values}
        try:
            prompt = Prompt.model_validate(values)
        except ValidationError as error:
            problems += describe(error, place, Prompt)
            continue
        if prompt.id in places:
            problems.append(
                f"{place}: key id: found {prompt.id!r}, which {places[prompt.id]} already has"
            )
        places.setdefault(prompt.id, place)
        prompts.append(prompt)
    if not rows and not problems:
        problems.append(f"{path}: the file is empty; allowed is at least one prompt")
    if problems:
        raise DataError(problems)
    return prompts


async def answer_prompts(
    agent: MultiTurnAgent,
    prompts: Sequence[Prompt],
    *,
    seed: int = 0,
    on_answer: Callable[[], None] | None = None,
) -> list[TrajectoryGroup]:
    """Answer every prompt, all at once; one that cannot be answered is a failed trajectory.

    An answer depends on `seed` and the prompt's id, not on what else is asked.
    """

    async def answer(prompt: Prompt) -> TrajectoryGroup:
        turns = [ConversationTurn(one["role"], one["content"]) for one in prompt.history]
        trajectory = MultiTurnTrajectory(prompt.id, turns)
        with recording(EpisodeRecorder(prompt.id, derive_seed(seed, prompt.id))) as recorder:
            try:
                text = await agent.generate_response(prompt.history)
            except StateSetError as error:
                trajectory.stop_reason, trajectory.error = StopReason.FAILED, str(error)
            else:
                sample = recorder.samples[-1] if recorder.samples else None
                turns.append(ConversationTurn("assistant", text, sample=sample))
            finally:
                agent.release(prompt.id)
        trajectory.samples = recorder.samples
        if on_answer is not None:
            on_answer()
        return TrajectoryGroup(prompt.id, {"id": prompt.id, "rubric": prompt.rubric}, [trajectory])

    return list(await asyncio.gather(*(answer(prompt) for prompt in prompts)))


async def score_answers(
    groups: Sequence[TrajectoryGroup],
    with_rubric: RewardFunction | None,
    without: RewardFunction | None,
) -> None:
    """Score what was answered: `with_rubric` where the prompt has one, `without` elsewhere; None
    leaves these without a score.

    Raises:
        RewardError: a reward raised, or gave no finite number.
    """
    alive = [group for group in groups if not group.trajectories[0].failed]
    for reward, has_rubric in ((with_rubric, True), (without, False)):
        chosen = [g for g in alive if (g.scenario["rubric"] is not None) == has_rubric]
        if reward is not None and chosen:
            await score_groups(chosen, reward)


def answer_row(group: TrajectoryGroup) -> Mapping[str, Any]:
    """One answer as a row of the output file; scores are None where nothing was scored."""
    trajectory = group.trajectories[0]
    failed = trajectory.failed
    said = trajectory.turns if failed else trajectory.turns[:-1]
    return {
        "id": group.group_id,
        "messages": [{"role": turn.role, "content": turn.content} for turn in said],
        "answer": None if failed else trajectory.turns[-1].content,
        "reward": trajectory.episode_reward if trajectory.reward_parts else None,
        "scores": trajectory.reward_parts or None,
        "answer_tokens": sum(len(sample.token_ids) for sample in trajectory.samples),
        "finish_reason": trajectory.samples[-1].finish_reason.value if trajectory.samples else None,
        "error": trajectory.error,
    }
