"""What the rewards read from a conversation: assistant turns in their places, the rubric, the
policy text. Owns the reading of a reward's `context`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stateset_agents.core.rubric import Rubric, parse_rubric
from stateset_agents.core.sentences import Sentence, normalised_words, split_sentences
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.exceptions import RewardError

_CLOSING = re.compile(
    r" (?:thank|cheer|ta|bye|goodbye|that is (?:all|it|everything)|no more question|"
    r"nothing else|all good|great help) "
)
_LONGEST_FAREWELL = 16  # words
# Content words: "You are a helpful assistant." is no policy to hold an answer to.
LEAST_OF_A_POLICY = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """One assistant turn in its place.

    `user_text` is what the user said since the turn before, `earlier` the assistant's own earlier
    answers in order. `broken_off` is True when the model's token limit cut it, or when it does not
    end like a sentence.
    """

    text: str
    user_text: str
    earlier: tuple[str, ...]
    broken_off: bool

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """All of them, well formed or not."""
        return split_sentences(self.text)

    @property
    def plain_sentences(self) -> list[Sentence]:
        """The well-formed, finished ones."""
        return [sentence for sentence in self.sentences if not sentence.fault]

    @property
    def prose_share(self) -> float:
        """Share of its words in sentences that read as prose; 0 of an empty answer."""
        counted = sum(len(sentence.words) for sentence in self.sentences)
        prose = sum(len(one.words) for one in self.sentences if one.reads_as_prose)
        return prose / counted if counted else 0.0

    @property
    def own_prose(self) -> list[Sentence]:
        """The sentences that read as prose and are not the user's own, nearly word for word."""
        said = [frozenset(one.stems) for one in split_sentences(self.user_text)]
        kept = []
        for sentence in self.sentences:
            words = frozenset(sentence.stems)
            echoed = any(len(words & other) > 0.8 * len(words | other) for other in said)
            if sentence.reads_as_prose and not echoed:
                kept.append(sentence)
        return kept

    @property
    def closes(self) -> bool:
        """True when the user says goodbye ("thanks, that is all") and wants nothing more."""
        words = normalised_words(self.user_text)
        return (
            0 < len(words) <= _LONGEST_FAREWELL
            and "?" not in self.user_text
            and not any(character.isdigit() for character in self.user_text)
            and bool(_CLOSING.search(f" {' '.join(words)} "))
        )


def answers_of(turns: Sequence[ConversationTurn], context: dict[str, Any] | None) -> list[Answer]:
    """The assistant turns of a conversation, each with what it answers."""
    truncated = list((context or {}).get("truncated") or ())
    answers: list[Answer] = []
    user_parts: list[str] = []
    for turn in turns:
        if turn.role == "user":
            user_parts.append(turn.content)
        elif turn.role == "assistant":
            sentences = split_sentences(turn.content)
            cut = len(answers) < len(truncated) and truncated[len(answers)]
            answers.append(
                Answer(
                    text=turn.content,
                    user_text="\n".join(user_parts),
                    earlier=tuple(answer.text for answer in answers),
                    broken_off=bool(cut) or not sentences or not sentences[-1].ending,
                )
            )
            user_parts = []
    return answers


def policy_text(turns: Sequence[ConversationTurn], context: dict[str, Any] | None) -> str:
    """What the assistant was told: system messages, else the scenario's `context`."""
    system = "\n".join(turn.content for turn in turns if turn.role == "system")
    return system or str(((context or {}).get("scenario") or {}).get("context") or "")


def rubric_of(context: dict[str, Any] | None) -> Rubric | None:
    """The rubric under "rubric", else the one in the scenario, else None.

    Raises:
        RewardError: what is there is no rubric; the scenario and the problems are named.
    """
    context = context or {}
    given = context.get("rubric")
    scenario = context.get("scenario") or {}
    if given is None:
        given = scenario.get("rubric")
    try:
        return parse_rubric(given)
    except ValueError as error:
        raise RewardError(
            f"the rubric of scenario {scenario.get('id', '?')!r} cannot be used: {error}"
        ) from error
