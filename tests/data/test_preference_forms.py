"""Preferences in every form that is taken, and one message for all that are in none."""

from __future__ import annotations

from typing import Any

import pytest

from stateset_agents.data.preference_forms import NO_QUESTION, RatedAnswer, parse_preferences
from stateset_agents.data.schemas import Message, PreferencePair
from stateset_agents.exceptions import DataError

ASKED = Message(role="user", content="Where is it?")
BETTER = Message(role="assistant", content="On its way.")
WORSE = Message(role="assistant", content="No idea.")
PAIR = PreferencePair(id="pair-0", prompt=(ASKED,), chosen=(BETTER,), rejected=(WORSE,))


@pytest.mark.parametrize(
    "form",
    [
        PAIR,
        {"prompt": "Where is it?", "chosen": "On its way.", "rejected": "No idea."},
        {
            "prompt": [{"role": "user", "content": "Where is it?"}],
            "chosen": [{"role": "assistant", "content": "On its way."}],
            "rejected": [{"role": "assistant", "content": "No idea."}],
        },
        # TRL's form with the prompt inside both
        {
            "chosen": [
                {"role": "user", "content": "Where is it?"},
                {"role": "assistant", "content": "On its way."},
            ],
            "rejected": [
                {"role": "user", "content": "Where is it?"},
                {"role": "assistant", "content": "No idea."},
            ],
        },
        ("Where is it?", "On its way.", "No idea."),
        ["Where is it?", "On its way.", "No idea."],
        ([ASKED, BETTER], [ASKED, WORSE]),
    ],
)
def test_the_same_pair_in_every_form(form: Any) -> None:
    assert parse_preferences([form]) == [PAIR]


def test_a_pair_of_better_and_worse_alone_answers_no_question() -> None:
    (pair,) = parse_preferences([("On its way.", "No idea.")])

    assert isinstance(pair, PreferencePair)
    assert pair.prompt == (Message(role="user", content=NO_QUESTION),)
    assert (pair.chosen, pair.rejected) == ((BETTER,), (WORSE,))


def test_what_else_a_pair_says_is_kept() -> None:
    form = {"id": "a", "prompt": "q", "chosen": "x", "rejected": "y", "metadata": {"margin": 0.5}}

    (pair,) = parse_preferences([form])

    assert isinstance(pair, PreferencePair)
    assert (pair.id, pair.metadata) == ("a", {"margin": 0.5})


def test_rated_answers_may_have_any_roles_and_are_named_by_their_conversation() -> None:
    prompt = [{"role": "assistant", "content": "Hi."}, {"role": "tool", "content": "{}"}]
    completion = [{"role": "assistant", "content": "Two seats."}]
    forms = [
        {"prompt": prompt, "completion": completion, "label": True, "conversation_id": "c1"},
        {"prompt": "How many?", "completion": "Two.", "label": 0.25},
        {"prompt": "How many?", "completion": "Three.", "label": 0},
    ]

    first, second, third = parse_preferences(forms)

    assert first == RatedAnswer((*prompt, *completion), 1.0, "c1")
    assert isinstance(second, RatedAnswer)
    assert isinstance(third, RatedAnswer)
    assert second.messages == (
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "Two."},
    )
    assert (second.label, third.label) == (0.25, 0.0)
    # answers to one question are never shared out between training and measuring
    assert second.conversation == third.conversation != first.conversation


def test_every_preference_that_is_in_no_form_has_its_line() -> None:
    with pytest.raises(DataError) as caught:
        parse_preferences(
            [
                PAIR,
                {"question": "q", "answer": "a"},
                ("one",),
                {"prompt": "q", "completion": "a", "label": "good"},
                {"prompt": "q", "chosen": "same", "rejected": "same"},
                {"prompt": "q", "chosen": [{"role": "boss", "content": "x"}], "rejected": "y"},
            ]
        )

    lines = caught.value.problems
    assert [line.split(":")[0] for line in lines] == [f"preference {n}" for n in range(1, 6)]
    assert "'answer', 'question'" in lines[0]
    assert "(better, worse)" in lines[1]
    assert "label is 'good'" in lines[2]
    assert "chosen equals rejected" in lines[3]
    assert "role" in lines[4]


def test_two_kinds_none_at_all_and_a_path_are_refused() -> None:
    rated = {"prompt": "q", "completion": "a", "label": 1}
    for given, message in (
        ([PAIR, rated], "1 of 2 preferences are rated answers"),
        ([], "there are no preferences"),
        ("pairs.jsonl", "a list of pairs is needed"),
    ):
        with pytest.raises(DataError, match=message):
            parse_preferences(given)


def test_of_many_problems_the_first_twenty_are_shown() -> None:
    with pytest.raises(DataError) as caught:
        parse_preferences(range(100))

    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "... and 80 more like these"
