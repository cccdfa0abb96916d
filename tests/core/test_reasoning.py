"""Thoughts are kept apart from what is said, hidden from who talks, and trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.reasoning import Spoken, SpokenStream, read_spoken
from stateset_agents.core.reward import reward_function
from stateset_agents.core.trajectory import ConversationTurn, MultiTurnTrajectory
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.stub_engine import ByteTokenizer, StubEngine
from stateset_agents.rollout.collect import collect_groups
from stateset_agents.rollout.rows import trajectory_rows
from stateset_agents.training.callbacks import TrainingCallback
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.multi_turn_trainer import MultiTurnGRPOTrainer
from tests.chat_styles import STYLES, make_styled_tokenizer, write_chain_model

TOKENIZER = ChatTokenizer(ByteTokenizer())
TAGS = ("<think>", "</think>")
PLAIN_PROMPT = TOKENIZER.render([{"role": "user", "content": "Is <think> a tag?"}])


def read(text: str, prompt: list[int] = PLAIN_PROMPT) -> Spoken:
    return read_spoken(prompt, TOKENIZER.encode(text), TOKENIZER, TAGS)


@pytest.mark.parametrize(
    ("sampled", "answer", "reasoning"),
    [
        ("<think>\nIt is late.\n</think>\n\nSorry!", "Sorry!", "It is late."),
        (" <think>one</think> Hello.", "Hello.", "one"),
        ("No thought. ", "No thought. ", None),
        (" As it is.", " As it is.", None),
        ("<think></think>Hello.", "Hello.", ""),
        # cut off, or ended, within a thought: nothing was said
        ("<think>It is la", "", "It is la"),
        ("<think>It is late.</thi", "", "It is late.</thi"),
        ("<thin", "<thin", None),
        # thoughts in between belong to none of the words around them
        ("<think>a</think>Hi <think>b</think>you", "Hi you", "a\n\nb"),
        ("Hi <think>cut", "Hi ", "cut"),
        # a closing tag that closes nothing is text
        ("Hi</think> you", "Hi</think> you", None),
    ],
)
def test_thoughts_are_told_from_the_answer(
    sampled: str, answer: str, reasoning: str | None
) -> None:
    assert read(sampled) == Spoken(answer, reasoning)


def test_a_prompt_that_opens_a_thought_has_the_model_begin_in_one() -> None:
    prompt = [*PLAIN_PROMPT, *TOKENIZER.encode("<think>\n")]
    assert read("late</think>Sorry!", prompt) == Spoken("Sorry!", "late")
    assert read("late", prompt) == Spoken("", "late")


@given(parts=st.lists(st.sampled_from(["<think>", "</think>", "</thi", "<", " ", "ü", "Hi"])))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_an_answer_that_is_told_token_by_token_is_the_same(parts: list[str]) -> None:
    text = "".join(parts)
    pieces: list[str] = []
    stream = SpokenStream(PLAIN_PROMPT, TOKENIZER, TAGS, pieces.append)
    for token in TOKENIZER.encode(text):
        stream.hear(token)
    stream.finish()
    assert "".join(pieces) == read(text).answer


def test_tags_that_are_special_tokens_are_still_seen() -> None:
    hf = make_styled_tokenizer(STYLES["chatml"]).hf
    hf.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer = ChatTokenizer(hf)
    ids = tokenizer.encode("<think>late</think>Sorry!")
    assert tokenizer.decode(ids) == "lateSorry!"
    prompt = tokenizer.render([{"role": "user", "content": "Hi"}])
    assert read_spoken(prompt, ids, tokenizer, TAGS) == Spoken("Sorry!", "late")


SAMPLED = "<think>your refund</think>Of course"
QUESTIONS = ["Where is it?", "Really?", "Thank you."]


async def play(agent: MultiTurnAgent, num_generations: int = 1) -> list[MultiTurnTrajectory]:
    scenarios = [{"id": "s", "user_responses": QUESTIONS}]
    (group,) = await collect_groups(
        agent,
        ConversationEnvironment(scenarios),
        scenarios,
        num_generations=num_generations,
        seed=3,
    )
    assert [one.error for one in group.trajectories] == [None] * num_generations
    return group.trajectories


@pytest.mark.parametrize("style", ["qwen 3", "deepseek", "none"])
async def test_later_turns_see_answers_without_thoughts_and_every_sampled_token_is_trained_on(
    style: str, tmp_path: Path
) -> None:
    tokenizer = make_styled_tokenizer(STYLES[style])
    folder = write_chain_model(tmp_path, tokenizer, [tokenizer.encode_answer(SAMPLED)])
    agent = MultiTurnAgent(
        AgentConfig(
            model_name=str(folder),
            temperature=1.0,
            max_new_tokens=16,
            torch_dtype="float32",
            enable_reasoning=True,
        )
    )
    await agent.initialize()
    (trajectory,) = await play(agent)
    await agent.engine.aclose()

    answers = trajectory.assistant_turns
    assert [turn.content for turn in answers] == ["Of course"] * 3
    assert [turn.metadata["reasoning"] for turn in answers] == ["your refund"] * 3
    rows = trajectory_rows(trajectory)
    assert len(rows) == 3  # each context has another beginning than what was seen and sampled
    said: list[ConversationTurn] = []
    for row, user, turn in zip(rows, QUESTIONS, answers, strict=True):
        said.append(ConversationTurn("user", user))
        messages = [{"role": one.role, "content": one.content} for one in said]
        if style == "none":  # a template that does not know the tags: the model is asked to think
            (system, _) = tokenizer.hf.decode(row.token_ids).split("\nUser:\n", 1)
            assert "between <think> and </think>" in system
            told = system.removeprefix("System:\n").removesuffix("<|endoftext|>")
            messages = [{"role": "system", "content": told}, *messages]
        sampled = tuple(tokenizer.encode_answer(SAMPLED))
        assert row.token_ids == (*tokenizer.render(messages), *sampled)
        assert row.loss_mask == (False,) * (len(row.token_ids) - len(sampled)) + (True,) * len(
            sampled
        )
        said.append(turn)


async def test_a_model_that_takes_no_system_message_is_asked_to_think_heard_without_and_trained(
    tmp_path: Path,
) -> None:
    tokenizer = make_styled_tokenizer(STYLES["gemma"])
    answers = (SAMPLED, "<think>a lost parcel</think>Not yet")
    folder = write_chain_model(tmp_path, tokenizer, [tokenizer.encode_answer(a) for a in answers])
    config = AgentConfig(
        model_name=str(folder),
        system_prompt="Be kind.",
        temperature=1.0,
        max_new_tokens=24,
        torch_dtype="float32",
        enable_reasoning=True,
    )
    heard: set[str] = set()

    @reward_function()
    def agreeable(turns: Sequence[ConversationTurn], context: object = None) -> float:
        said = [turn.content for turn in turns if turn.role == "assistant"]
        heard.update(said)
        return said.count("Of course") / len(said)

    counted: dict[str, float] = {}

    class Count(TrainingCallback):
        async def on_step_end(self, trainer: object, metrics: Mapping[str, float]) -> None:
            counted.update(metrics)

    shop = {"id": "s", "context": "We are closed on Sundays.", "user_responses": QUESTIONS[:2]}
    trainer = MultiTurnGRPOTrainer(
        MultiTurnAgent(config),
        ConversationEnvironment([shop]),
        agreeable,
        TrainingConfig(
            num_episodes=1,
            gradient_accumulation_steps=1,
            num_generations=8,
            learning_rate=1e-2,
            warmup_ratio=0.0,
            max_prompt_length=900,
            bf16=False,
        ),
    )
    before = {name: value.clone() for name, value in trainer.policy.named_merged_weights()}
    await trainer.train([Count()])

    assert heard == {"Of course", "Not yet"}
    assert counted["rows/trained_tokens"] == counted["rollout/sampled_tokens"]
    assert any(
        not value.equal(before[name]) for name, value in trainer.policy.named_merged_weights()
    )
    first, second = trainer.groups[0].trajectories[0].samples
    asked = (
        "<bos><start_of_turn>user\nBe kind.\n\nThink before you answer: write your reasoning "
        "between <think> and </think>, and the answer after it. Only the answer is shown to the "
        "user.\n\n"
        "We are closed on Sundays.\n\nWhere is it?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert tokenizer.hf.decode(first.prompt_token_ids) == asked
    answer = trainer.groups[0].trajectories[0].assistant_turns[0].content
    assert tokenizer.hf.decode(second.prompt_token_ids) == (
        f"{asked}{answer}<end_of_turn>\n<start_of_turn>user\nReally?<end_of_turn>\n"
        "<start_of_turn>model\n"
    )
    sampled = tokenizer.hf.decode(first.token_ids)
    assert sampled.startswith("<think>")
    assert sampled.endswith(f"</think>{answer}<end_of_turn>")
    await trainer.close()


async def test_an_answer_without_a_thought_is_carried_on_in_its_row() -> None:
    engine = StubEngine(["<think>a</think>One.", "Two.", "Three."])
    agent = MultiTurnAgent(AgentConfig(model_name="x", enable_reasoning=True), engine)
    (trajectory,) = await play(agent)
    first, second = trajectory_rows(trajectory)
    assert [max(row.turn_index) for row in (first, second)] == [0, 2]
    assert "reasoning" not in trajectory.assistant_turns[1].metadata


async def test_a_conversation_goes_on_after_a_thought_that_was_cut_off() -> None:
    engine = StubEngine(["<think>a very long thought", "Two.", "Three."])
    config = AgentConfig(model_name="x", enable_reasoning=True, max_new_tokens=12)
    (trajectory,) = await play(MultiTurnAgent(config, engine))
    first = trajectory.assistant_turns[0]
    assert (first.content, first.metadata["reasoning"]) == ("", "a ver")
    assert [turn.content for turn in trajectory.assistant_turns] == ["", "Two.", "Three."]
    assert sum(sum(row.loss_mask) for row in trajectory_rows(trajectory)) == 12 + 5 + 7


async def test_without_the_setting_thoughts_are_words_like_others() -> None:
    agent = MultiTurnAgent(AgentConfig(model_name="x"), StubEngine([SAMPLED]))
    (trajectory,) = await play(agent)
    assert [turn.content for turn in trajectory.assistant_turns] == [SAMPLED] * 3
    assert len(trajectory_rows(trajectory)) == 1


async def test_other_tags_are_followed_and_asked_for() -> None:
    engine = StubEngine(["[plan]greet[/plan]Hello."])
    config = AgentConfig(
        model_name="x", enable_reasoning=True, reasoning_tags=("[plan]", "[/plan]")
    )
    agent = MultiTurnAgent(config, engine)
    (trajectory,) = await play(agent)
    turn = trajectory.assistant_turns[0]
    assert (turn.content, turn.metadata["reasoning"]) == ("Hello.", "greet")
    prompt = engine.tokenizer.decode(trajectory.samples[0].prompt_token_ids)
    assert "between [plan] and [/plan]" in prompt


def test_a_registered_version_leaves_thoughts_out_as_the_agent_does() -> None:
    from stateset_agents.tracking.chat_model_script import RegisteredPolicy

    version = RegisteredPolicy()
    version._settings = {"enable_reasoning": True, "reasoning_tags": list(TAGS)}
    for sampled in (
        "<think>late</think>\n\nSorry!",
        "<think>a</think>Hi <think>b</think>you",
        "<think>cut",
        " As it is.",
        "Hi</think> you",
    ):
        assert version._without_thoughts(sampled, after="assistant\n") == read(sampled).answer
    assert version._without_thoughts("late</think>Sorry!", after="assistant\n<think>\n") == "Sorry!"
    version._settings = {}
    assert version._without_thoughts("<think>late", after="") == "<think>late"
