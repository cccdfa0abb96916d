"""The tokens of a finished conversation are the template's rendering, or the difference is listed.

Whole conversations are played by the chain model of `tests/chat_styles.py` through
`TransformersEngine`, and the row that training gets is compared with what the tokenizer renders.
`docs/engines.md` lists the differences; each has a test here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.core.trajectory import MultiTurnTrajectory
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.engine import FinishReason
from stateset_agents.rollout.collect import collect_groups
from stateset_agents.rollout.rows import Row, trajectory_rows
from tests.chat_styles import STYLES, make_styled_tokenizer, write_chain_model

QUESTIONS = ["Where is my parcel?", "It is 48213.\nIs that enough?", "Thank you. Größer 🙂?"]
SYSTEM = "Answer shortly."
# Started with a space they are other tokens, and no token comes twice either way.
ANSWERS = ("Could you please tell me", "I am sorry about that", "Of course")


def answer_ids(tokenizer: ChatTokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer.encode_answer(text) for text in texts]


async def play(
    folder: Path,
    tokenizer: ChatTokenizer,
    answers: Sequence[Sequence[int]],
    *,
    system: str = "",
    max_new_tokens: int = 32,
    num_generations: int = 1,
) -> list[MultiTurnTrajectory]:
    """Three questions and answers each, played through the agent and its real engine."""
    config = AgentConfig(
        model_name=str(write_chain_model(folder, tokenizer, answers)),
        system_prompt=system,
        temperature=1.0,
        max_new_tokens=max_new_tokens,
        torch_dtype="float32",
        device_map="cpu",
    )
    agent = MultiTurnAgent(config)
    await agent.initialize()
    scenarios = [{"id": "parcel", "user_responses": QUESTIONS}]
    (group,) = await collect_groups(
        agent,
        ConversationEnvironment(scenarios),
        scenarios,
        num_generations=num_generations,
        seed=3,
    )
    await agent.engine.aclose()
    assert [trajectory.error for trajectory in group.trajectories] == [None] * num_generations
    return group.trajectories


def only_row(trajectory: MultiTurnTrajectory) -> Row:
    (row,) = trajectory_rows(trajectory)
    assert sum(row.loss_mask) == sum(len(sample.token_ids) for sample in trajectory.samples)
    return row


def messages_of(trajectory: MultiTurnTrajectory, system: str = "") -> list[dict[str, str]]:
    said = [{"role": turn.role, "content": turn.content} for turn in trajectory.turns]
    return [{"role": "system", "content": system}, *said] if system else said


def rendered_ids(tokenizer: ChatTokenizer, messages: list[dict[str, str]]) -> list[int]:
    ids: list[int] = tokenizer.hf.apply_chat_template(messages, return_dict=False)
    return ids


def text_of(tokenizer: ChatTokenizer, token_ids: Sequence[int]) -> str:
    text: str = tokenizer.hf.decode(token_ids, skip_special_tokens=False)
    return text


@pytest.mark.parametrize(
    ("name", "system"),
    [
        *((name, "") for name in STYLES),
        *((name, SYSTEM) for name, style in STYLES.items() if style.has_system),
    ],
)
async def test_a_finished_conversation_is_the_templates_rendering(
    name: str, system: str, tmp_path: Path
) -> None:
    style = STYLES[name]
    tokenizer = make_styled_tokenizer(style)
    answers = answer_ids(tokenizer, [style.answer_start + text for text in ANSWERS])
    played = await play(
        tmp_path, tokenizer, answers, system=system, max_new_tokens=6, num_generations=6
    )
    # Answers that ended and answers that were cut off, in the middle and at the end.
    for turn in (0, 1, 2):
        assert {t.samples[turn].finish_reason for t in played} == set(FinishReason)
    for trajectory in played:
        row = list(only_row(trajectory).token_ids)
        if trajectory.samples[-1].finish_reason is FinishReason.LENGTH:
            row.append(answers[0][-1])  # the stop token that was not sampled
        row += tokenizer.encode(style.after_stop)  # nobody samples what follows it
        text = text_of(tokenizer, rendered_ids(tokenizer, messages_of(trajectory, system)))
        assert text.count(style.last_answer_start) == 1 or not style.last_answer_start
        assert row == tokenizer.encode(text.replace(style.last_answer_start, ""))
        if not style.last_answer_start:
            assert row == rendered_ids(tokenizer, messages_of(trajectory, system))


# The differences. Each is written out: what the row has, and what the template makes of it.


def im_text(answers: Sequence[str]) -> str:
    """The three questions, each with its answer, as Qwen 3 writes them."""
    return "".join(
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        for question, answer in zip(QUESTIONS, answers, strict=True)
    )


async def test_thoughts_stay_in_the_row_where_qwen_3_drops_the_earlier_ones(tmp_path: Path) -> None:
    tokenizer = make_styled_tokenizer(STYLES["qwen 3"])
    sampled = "<think>your refund</think>Of course"
    (trajectory,) = await play(tmp_path, tokenizer, answer_ids(tokenizer, [sampled]))
    row = only_row(trajectory)
    assert text_of(tokenizer, row.token_ids) + "\n" == im_text([sampled] * 3)
    rendered = rendered_ids(tokenizer, messages_of(trajectory))
    assert text_of(tokenizer, rendered) == im_text(
        ["Of course", "Of course", "<think>\nyour refund\n</think>\n\nOf course"]
    )


async def test_thoughts_stay_in_the_row_where_deepseek_drops_them_all(tmp_path: Path) -> None:
    tokenizer = make_styled_tokenizer(STYLES["deepseek"])
    sampled = "<think>your refund</think>Of course"
    (trajectory,) = await play(tmp_path, tokenizer, answer_ids(tokenizer, [sampled]))
    row, rendered = (
        text_of(tokenizer, ids)
        for ids in (
            only_row(trajectory).token_ids,
            rendered_ids(tokenizer, messages_of(trajectory)),
        )
    )
    assert row == "<|begin|>" + "".join(
        f"<|User|>{question}<|Assistant|>{sampled}<|end|>" for question in QUESTIONS
    )
    assert rendered == row.replace("<think>your refund</think>", "")


async def test_a_system_message_stays_where_the_model_saw_it_and_mistral_moves_it(
    tmp_path: Path,
) -> None:
    tokenizer = make_styled_tokenizer(STYLES["mistral"])
    answers = answer_ids(tokenizer, [" Of course"])
    (trajectory,) = await play(tmp_path, tokenizer, answers, system=SYSTEM)
    first, second, third = QUESTIONS
    assert text_of(tokenizer, only_row(trajectory).token_ids) == (
        f"<s>[INST] {SYSTEM}\n\n{first}[/INST] Of course</s>"
        f"[INST] {second}[/INST] Of course</s>[INST] {third}[/INST] Of course</s>"
    )
    rendered = rendered_ids(tokenizer, messages_of(trajectory, SYSTEM))
    assert text_of(tokenizer, rendered) == (
        f"<s>[INST] {first}[/INST] Of course</s>"
        f"[INST] {second}[/INST] Of course</s>[INST] {SYSTEM}\n\n{third}[/INST] Of course</s>"
    )


@pytest.mark.parametrize("name", ["llama 3", "gemma"])
async def test_space_around_an_answer_stays_in_the_row_where_the_template_trims_it(
    name: str, tmp_path: Path
) -> None:
    tokenizer = make_styled_tokenizer(STYLES[name])
    answers = answer_ids(tokenizer, [" Could you\t"])
    (trajectory,) = await play(tmp_path, tokenizer, answers)
    row = text_of(tokenizer, only_row(trajectory).token_ids) + STYLES[name].after_stop
    rendered = text_of(tokenizer, rendered_ids(tokenizer, messages_of(trajectory)))
    assert row.count(" Could you\t") == 3
    assert rendered == row.replace(" Could you\t", "Could you")


async def test_mistrals_space_before_an_answer_is_the_models_to_sample(tmp_path: Path) -> None:
    tokenizer = make_styled_tokenizer(STYLES["mistral"])
    (trajectory,) = await play(tmp_path, tokenizer, answer_ids(tokenizer, ["Of course"]))
    row = text_of(tokenizer, only_row(trajectory).token_ids)
    rendered = text_of(tokenizer, rendered_ids(tokenizer, messages_of(trajectory)))
    assert row.count("[/INST]Of course</s>") == 3
    assert rendered == row.replace("[/INST]Of", "[/INST] Of")


async def test_an_answer_spelled_unusually_keeps_its_tokens(tmp_path: Path) -> None:
    tokenizer = make_styled_tokenizer(STYLES["chatml"])
    spelled = [token for letter in "order" for token in tokenizer.encode(letter)][:4]
    usual = answer_ids(tokenizer, ["orde"])[0]
    assert [*spelled, usual[-1]] != usual
    (trajectory,) = await play(tmp_path, tokenizer, [[*spelled, usual[-1]]])
    row = only_row(trajectory).token_ids
    rendered = rendered_ids(tokenizer, messages_of(trajectory))
    assert text_of(tokenizer, row) + "\n" == text_of(tokenizer, rendered)
    assert len(row) + 1 == len(rendered) + 3 * (len(spelled) + 1 - len(usual))


async def test_a_stop_token_other_than_the_end_of_turn_stays_in_its_place(tmp_path: Path) -> None:
    tokenizer = make_styled_tokenizer(STYLES["llama 3"])
    end_of_text = tokenizer.hf.eos_token_id
    answer = [*tokenizer.encode("Of course"), end_of_text]
    (trajectory,) = await play(tmp_path, tokenizer, [answer])
    row = only_row(trajectory).token_ids
    rendered = rendered_ids(tokenizer, messages_of(trajectory))
    turn_end = tokenizer.encode("<|eot_id|>")[0]
    assert len(row) == len(rendered)
    places = [place for place in range(len(row)) if row[place] != rendered[place]]
    assert [row[place] for place in places] == [end_of_text] * 3
    assert [rendered[place] for place in places] == [turn_end] * 3
