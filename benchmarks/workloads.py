"""What is measured: conversations of exact lengths, the same for every side.

Owns the shapes and the text. Lengths are in tokens of the model under test; answers never end
early, because no token ends one on any side.

Notation: T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any

from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.engine import FinishReason

# One token each in the base model's vocabulary, and plain words in any other.
_WORDS = tuple(
    word
    for line in (
        "you are the support agent of an online shop and answer every question about the order the",
        "price the size and the return of the item with care and in a short clear and kind way",
    )
    for word in line.split()
)

# Different conversations a benchmark can draw from; they differ from their first words on.
NUM_SCENARIOS = 8


@dataclass(frozen=True)
class Workload:
    """A step's conversations.

    Attributes:
        name: of the workload in the results.
        prompt_tokens: before the first answer, chat template included.
        turns: answers in a conversation.
        answer_tokens: sampled in each answer.
        user_tokens: from one answer's end to the start of the next, chat template included.
        group: conversations with the same prompt.
        rows: conversations in a step.
    """

    name: str
    prompt_tokens: int
    turns: int
    answer_tokens: int
    user_tokens: int = 0
    group: int = 8
    rows: int = 16

    @property
    def groups(self) -> int:
        """Prompts in a step."""
        return self.rows // self.group

    @property
    def sampled_tokens(self) -> int:
        """Tokens that a step samples."""
        return self.rows * self.turns * self.answer_tokens

    @property
    def conversation_tokens(self) -> int:
        """Tokens of one finished conversation."""
        between = (self.turns - 1) * self.user_tokens
        return self.prompt_tokens + self.turns * self.answer_tokens + between

    def to_dict(self) -> dict[str, Any]:
        """Its numbers, for a result file or another process."""
        return asdict(self)


SINGLE_TURN = Workload("single_turn", prompt_tokens=286, turns=1, answer_tokens=96)
MULTI_TURN = Workload("multi_turn", prompt_tokens=256, turns=4, answer_tokens=24, user_tokens=24)
PREFIX_HEAVY = Workload("prefix_heavy", prompt_tokens=1024, turns=1, answer_tokens=32, rows=8)
STEP_WORKLOADS = (SINGLE_TURN, MULTI_TURN, PREFIX_HEAVY)


def tiny(workload: Workload) -> Workload:
    """The same shape in a size that a two-layer model does in a moment."""
    return replace(
        workload,
        prompt_tokens=min(workload.prompt_tokens, 96),
        answer_tokens=min(workload.answer_tokens, 4),
        turns=min(workload.turns, 2),
        user_tokens=workload.user_tokens and 24,
        group=2,
        rows=4,
    )


class EndlessTokenizer(ChatTokenizer):
    """A tokenizer whose answers end by length alone."""

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """None."""
        return frozenset()


def scenarios(workload: Workload, tokenizer: ChatTokenizer) -> list[dict[str, Any]]:
    """Conversations of the workload's lengths, as `ConversationEnvironment` takes them."""
    return [_scenario(workload, tokenizer, number) for number in range(NUM_SCENARIOS)]


def opening(scenario: dict[str, Any]) -> list[dict[str, str]]:
    """The messages before the first answer."""
    return [
        {"role": "system", "content": scenario["context"]},
        {"role": "user", "content": scenario["user_responses"][0]},
    ]


def between(scenario: dict[str, Any], turn: int, tokenizer: ChatTokenizer) -> list[int]:
    """`(T,)` ids from the end of answer `turn` (from 0) to the start of the next."""
    message = {"role": "user", "content": scenario["user_responses"][turn + 1]}
    return tokenizer.continuation([], FinishReason.LENGTH, [message])


def _scenario(workload: Workload, tokenizer: ChatTokenizer, number: int) -> dict[str, Any]:
    first = f"question {number}"
    context = _text_of_length(
        lambda text: tokenizer.render(
            [{"role": "system", "content": text}, {"role": "user", "content": first}]
        ),
        workload.prompt_tokens,
        start=number,
    )
    later = [
        _text_of_length(
            lambda text: tokenizer.continuation(
                [], FinishReason.LENGTH, [{"role": "user", "content": text}]
            ),
            workload.user_tokens,
            start=number + turn,
        )
        for turn in range(1, workload.turns)
    ]
    return {"id": f"conversation-{number}", "context": context, "user_responses": [first, *later]}


def _text_of_length(render: Callable[[str], Sequence[int]], tokens: int, *, start: int) -> str:
    """Words from the `start`-th on, so many that `render` makes exactly `tokens` ids of them.

    Raises:
        ValueError: the template alone is longer, or no number of words gives that length.
    """
    at = start % len(_WORDS)
    supply = cycle(_WORDS[at:] + _WORDS[:at])
    fillers = [*_WORDS, *"abcdefghijklmnopqrstuvwxyz!?."]
    words = [next(supply)]
    while (missing := tokens - len(render(" ".join(words)))) > 0:
        words += [next(supply) for _ in range(max(1, missing // 2))]
    if missing == 0:
        return " ".join(words)
    while len(words) > 1:
        words.pop()
        for filler in fillers:
            for joint in (" ", ""):
                text = f"{' '.join(words)}{joint}{filler}"
                if len(render(text)) == tokens:
                    return text
    raise ValueError(f"no text gives {tokens} tokens: the chat template alone is longer")
