"""Does each answer take up what the user said?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from stateset_agents.core.asking import asks
from stateset_agents.core.embedding import (
    SentenceEmbedder,
    embeddings_installed,
    sentence_embedder,
)
from stateset_agents.core.facts import root_of
from stateset_agents.core.reward.base import RewardFunction, RewardResult, Scorable
from stateset_agents.core.reward.conversation import (
    LEAST_OF_A_POLICY,
    Answer,
    answers_of,
    policy_text,
)
from stateset_agents.core.sentences import (
    Sentence,
    content_words,
    is_content_word,
    ngrams,
    normalised_words,
    singular,
    split_sentences,
)
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.core.wordlists import COURTESY_WORDS
from stateset_agents.exceptions import ConfigurationError

Addressing = Literal["auto", "lexical", "embeddings"]

_NEW_WORDS_PER_SENTENCE = 4
_ENOUGH_OF_THE_USERS = 2
_ENOUGH_KNOWN, _ENOUGH_WITHOUT_POLICY = 4, 6
_GROUNDED_SHARE = 0.4
_INVENTED_NUMBER_FACTOR = 0.7
_ECHO_OF_A_SUBJECT = 0.375  # "The capital of France is Paris." takes up the question's words
_CLOSE = (0.15, 0.55)  # cosines of sentences that have nothing to do with each other, and much

_EVASIVE = re.compile(
    r" (?:as an ai|i am (?:just |only )?(?:an ai|a language model|a chatbot|not sure|unable to)|"
    r"i do not (?:know|have (?:access|the ability|any information))|"
    r"i (?:cannot|am not able to) (?:help|assist|answer|provide)|"
    r"(?:contact|reach out to|call|ask) (?:our |the |your )?(?:customer (?:service|support|care)|"
    r"support(?: team)?|seller|retailer)|"
    r"(?:please )?(?:try again|check back) later|it (?:really )?depend(?:s)?) "
)
_FAREWELL = frozenset(
    ("welcome", "glad", "pleasure", "thank", "thanks", "happy", "goodbye", "anytime", "enjoy")
)
_LONGEST_REPLY_TO_IT = 25
_ACTION = re.compile(
    r" (?:you (?:can|could|will|may|should|need)|(?:we|i) (?:will|can|could|have|offer|accept|send|"
    r"cannot|do not)|it (?:will|takes|costs|can|arrives|is)|please|once|if you) "
)


class HelpfulnessReward(RewardFunction):
    """The mean over assistant turns of how far the answer takes up what the user just said.

    For each turn, over its well-formed sentences only (so fragments and word lists earn nothing):

        0.3 * address    content words and numbers of the user that come back; 2 suffice, those of
                         the user's earlier turns count half
      + 0.4 * substance  words of the policy text and of the user, courtesy ("happy to help") left
                         out; 4 suffice, a sentence yields four at most
      + 0.3 * direction  0.7 for a statement of what happens or can be done, 0.5 for a question or
                         request that moves on, at most 1 together

    times what keeps it to the matter, over all of its words:
    - grounded: 0.2 + 0.8 * min(1, share / 0.4), the share of its content words that the policy or
      the user said. Good answers of this kind have three quarters, a model that rambles a tenth;
    - 0.7 for each number that nobody has said;
    - 1 - echo, the share of its word triples that are the user's own, stretched from a fifth up;
    - 0.4 if it evades ("I don't know", "as an AI", "contact customer service", which a support
      agent says of itself).
    Without a policy text of a dozen content words or more there is nothing to hold an answer to:
    `grounded` and invented numbers are left out, other words count half towards a substance of 6
    (of 2 and the words asked with, where these are few), words are compared by their first five
    letters, all prose counts, whatever its verbs, a statement of something new about what was asked
    has direction, an echo of half of the triples is free (answers name their subject), and the
    whole is times 0.25 + 0.75 * address, so that what is well said and beside the point earns
    little.
    With `addressing` by embeddings, `address` is at least how close in meaning each sentence of the
    user has an answer's sentence (their cosine, 0.15 to 0.55 stretched to 0..1, the mean over the
    user's sentences): other words for the same thing count.
    Where the user closes ("thanks, that
    is all"), a short reply with a word of thanks or welcome has 1 in all parts, any other a third.
    Fooled by: fluent sentences that use the right words and say something false, and by quoting
    the policy off the point; that is for the rubric and the learned reward to see. How high it can
    get depends on what the user says, so compare scores within a scenario only.

    Args:
        weight: its share in a composite.
        name: its key in a composite's breakdown.
        addressing: "lexical", "embeddings" (the extra of that name), or "auto": by embeddings where
            the extra is installed.

    Raises:
        ConfigurationError: an unknown `addressing`, or "embeddings" without the extra.
    """

    def __init__(
        self, weight: float = 1.0, name: str | None = None, *, addressing: Addressing = "auto"
    ) -> None:
        super().__init__(weight=weight, name=name)
        if addressing not in get_args(Addressing):
            raise ConfigurationError(
                f"reward {self.name!r}: addressing is {addressing!r}; "
                f"allowed: {', '.join(get_args(Addressing))}"
            )
        by_meaning = addressing == "embeddings" or (addressing == "auto" and embeddings_installed())
        self.embedder = sentence_embedder() if by_meaning else None

    async def compute_rewards(self, conversations: Sequence[Scorable]) -> list[RewardResult]:
        """Score many; all of their sentences go through the embedding model together."""
        if self.embedder is not None:
            self.embedder.encode(
                text
                for turns, context in conversations
                for answer in answers_of(turns, context)
                for text in (*_texts(answer.user_text), *_texts(answer.text))
            )
        return await super().compute_rewards(conversations)

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0."""
        policy = content_words(policy_text(turns, context)) - COURTESY_WORDS
        parts = []
        said: frozenset[str] = frozenset()
        for answer in answers_of(turns, context):
            parts.append(_parts(answer, policy, said, self.embedder))
            said |= content_words(answer.user_text) - COURTESY_WORDS
        scores = [_turn_score(part) for part in parts]
        count = len(scores) or 1
        names = ("address", "substance", "direction", "grounded", "invented", "echo", "evasive")
        return RewardResult(
            score=sum(scores) / count,
            breakdown={name: sum(part[name] for part in parts) / count for name in names},
            turn_scores=scores,
        )


def _turn_score(part: dict[str, float]) -> float:
    value = 0.3 * part["address"] + 0.4 * part["substance"] + 0.3 * part["direction"]
    value *= 0.2 + 0.8 * part["grounded"]
    value *= math.pow(_INVENTED_NUMBER_FACTOR, part["invented"])
    value *= part["on_the_matter"]
    return value * (1 - part["echo"]) * (0.4 if part["evasive"] else 1.0)


def _parts(
    answer: Answer,
    policy: frozenset[str],
    before: frozenset[str],
    embedder: SentenceEmbedder | None,
) -> dict[str, float]:
    asked = content_words(answer.user_text) - COURTESY_WORDS
    known = asked | before | policy
    evades = any(_EVASIVE.search(_text(one)) for one in answer.sentences)
    parts = {"grounded": 1.0, "invented": 0.0, "echo": _echo(answer), "evasive": float(evades)}
    parts["on_the_matter"] = 1.0
    if answer.closes:
        short = len(normalised_words(answer.text)) <= _LONGEST_REPLY_TO_IT
        polite = 1.0 if short and _FAREWELL.intersection(_all_words(answer)) else 1 / 3
        return parts | dict.fromkeys(("address", "substance", "direction"), polite)
    has_policy = len(policy) >= LEAST_OF_A_POLICY
    sentences = answer.plain_sentences if has_policy else _prose(answer)
    used = _used_words(sentences, known)
    if not has_policy:
        used, known, asked, before = (_roots(words) for words in (used, known, asked, before))
    enough = min(_ENOUGH_WITHOUT_POLICY, 2 + len(asked))
    substance = (len(used & known) + 0.5 * len(used - known)) / enough
    direction = _direction(sentences)
    taken_up = len(used & asked) + 0.5 * len(used & (before - asked))
    wanted = min(_ENOUGH_OF_THE_USERS, len(asked | before))
    address = min(1.0, taken_up / wanted) if wanted else 1.0
    if embedder is not None and any(not word[0].isdigit() for word in asked):
        address = max(address, _closeness(embedder, answer.user_text, sentences))
    if has_policy:
        substance = len(used & known) / _ENOUGH_KNOWN
        parts |= _grounding(content_words(answer.text) - COURTESY_WORDS, known)
    else:
        parts["echo"] = max(0.0, (parts["echo"] - _ECHO_OF_A_SUBJECT) / (1 - _ECHO_OF_A_SUBJECT))
        parts["on_the_matter"] = 0.25 + 0.75 * address
        direction = max(direction, 0.7 * any(_tells(one, asked) for one in sentences))
    return parts | {
        "address": address,
        "substance": min(1.0, substance),
        "direction": direction,
    }


def _tells(sentence: Sentence, asked: frozenset[str]) -> bool:
    """True for a statement of something new about what was asked: "the capital is Paris"."""
    meaning = _roots(set(_meaning(sentence)) - COURTESY_WORDS)
    return not sentence.is_question and bool(meaning & asked) and bool(meaning - asked)


def _roots(words: Iterable[str]) -> frozenset[str]:
    return frozenset(root_of(word) for word in words)


def _prose(answer: Answer) -> list[Sentence]:
    return [sentence for sentence in answer.sentences if sentence.reads_as_prose]


def _closeness(embedder: SentenceEmbedder, user: str, sentences: Sequence[Sentence]) -> float:
    """How close in meaning the answer comes to each of the user's sentences, the mean over them."""
    asked = [text for text in _texts(user) if len(content_words(text)) > 1] or [user]
    if not sentences:
        return 0.0
    closest = [
        max(embedder.similarity(text, sentence.text) for sentence in sentences) for text in asked
    ]
    low, high = _CLOSE
    return sum(min(1.0, max(0.0, (c - low) / (high - low))) for c in closest) / len(closest)


def _texts(text: str) -> list[str]:
    return [sentence.text for sentence in split_sentences(text)]


def _grounding(spoken: frozenset[str], known: frozenset[str]) -> dict[str, float]:
    """How much of what was spoken is known, and how many numbers are not ("1" is often a word)."""
    share = len(spoken & known) / len(spoken) if spoken else 0.0
    invented = [word for word in spoken - known if word[0].isdigit()]
    return {"grounded": min(1.0, share / _GROUNDED_SHARE), "invented": float(len(invented))}


def _used_words(sentences: Sequence[Sentence], known: frozenset[str]) -> frozenset[str]:
    """Content words of the well-formed sentences, at most four new ones from each."""
    used: set[str] = set()
    for sentence in sentences:
        new = [
            word for word in dict.fromkeys(_meaning(sentence)) if word not in used | COURTESY_WORDS
        ]
        new.sort(key=lambda word: word not in known)  # so that the cap hides what matters least
        used.update(new[:_NEW_WORDS_PER_SENTENCE])
    return frozenset(used)


def _all_words(answer: Answer) -> set[str]:
    return {word for one in answer.plain_sentences for word in one.stems}


def _meaning(sentence: Sentence) -> list[str]:
    return [singular(word) for word in sentence.words if is_content_word(word)]


def _text(sentence: Sentence) -> str:
    return f" {' '.join(sentence.words)} "


def _direction(sentences: Sequence[Sentence]) -> float:
    states = any(not one.is_question and _ACTION.search(_text(one)) for one in sentences)
    moves_on = any(asks(one) for one in sentences)
    return min(1.0, 0.7 * states + 0.5 * moves_on)


def _echo(answer: Answer) -> float:
    """Share of the answer's word triples that the user said, above a fifth, stretched to 0..1."""
    own = ngrams(normalised_words(answer.text), 3)
    if not own:
        return 0.0
    said = set(ngrams(normalised_words(answer.user_text), 3))
    share = sum(gram in said for gram in own) / len(own)
    return max(0.0, (share - 0.2) / 0.8)
