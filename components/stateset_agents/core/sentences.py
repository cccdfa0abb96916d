"""English sentences, as far as rewards need them: where they end, which words they hold, whether
they are well formed, and what a "not" in them denies.

Owns the normalisation that rubrics and answers share. It knows neither rubrics nor rewards, and it
is no parser: every rule here is a heuristic on the surface, chosen to be hard to satisfy with
anything but a plain sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from stateset_agents.core.wordlists import (
    ABBREVIATIONS_BEFORE_CAPITAL,
    ABBREVIATIONS_NEVER_LAST,
    CLAUSE_OPENERS,
    CLAUSE_SUBJECTS,
    COURTESIES,
    DOUBLING_IS_FINE,
    FOLLOWS_A_VERB,
    FUNCTION_WORDS,
    NEGATORS,
    NOT_REALLY_NEGATED,
    NUMBER_WORDS,
    OBJECT_OPENERS,
    TENS,
    VERB_CUES,
    VERB_OR_NOUN,
    VERBS,
)

MIN_WORDS, MAX_WORDS = 2, 40
MIN_PROSE_WORDS = 3
_SHORT_COURTESY = 8
_SHORTEST_CLAUSE = 3
_MOST_NUMBERS = 5

_CONTRACTIONS = (
    (re.compile(r"\b(?:can't|can not)\b"), "cannot"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\bshan't\b"), "shall not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'ll\b"), " will"),
    (re.compile(r"'ve\b"), " have"),
    (re.compile(r"'m\b"), " am"),
    (re.compile(r"'d\b"), " would"),
    (re.compile(r"\blet's\b"), "let us"),
    (re.compile(r"\b(it|that|here|there|what|where|who|how|he|she|this)'s\b"), r"\1 is"),
    (re.compile(r"'s\b|'"), ""),
)
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound"}
_NUMBERS = (
    (re.compile(r"\bno\.\s?(?=\d)"), "number "),
    (re.compile(r"(?<=\d),(?=\d{3}\b)"), ""),
    (re.compile(r"\b(\d+)\.0+\b"), r"\1"),
    (re.compile(r"\b(\d+\.\d*[1-9])0+\b"), r"\1"),
    (re.compile(r"(?<=\d)\s?%|\bper cent\b"), " percent"),
    (re.compile(r"(?<=\d)\s?[-\u2013]\s?(?=\d)"), " to "),
)
_CURRENCY = re.compile(r"([$€£])\s?(\d+(?:\.\d+)?)")
_TOKEN = re.compile(r"[^\W_]+(?:[.@_][^\W_]+)*|[,;:()\u2013\u2014]")
_SENTENCE_END = re.compile(r"([.!?\u2026]+)[\"'\u2019\u201d)\]*_]*(?=\s|$)")
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\d{1,2}[.)])\s+")
_SOFT_BREAK = re.compile(r"(?<![.!?:\n])\n(?=[a-z])")
_PUNCTUATION = frozenset(",;:()\u2013\u2014")


@dataclass(frozen=True)
class Sentence:
    """One sentence, normalised.

    Attributes:
        text: as written, without bullet or surrounding space.
        words: W normalised words; "can't" is `cannot`, "thirty" is `30`, "$5" is `5 dollar`.
        clause_ids: W numbers, equal for words of one clause (roughly: one reach of a "not").
        commas: how many commas it has.
        ending: "." "?" or "!"; empty where the text broke off or trailed off in dots.
    """

    text: str
    words: tuple[str, ...]
    clause_ids: tuple[int, ...]
    commas: int
    ending: str

    @cached_property
    def stems(self) -> tuple[str, ...]:
        """`words` with simple plurals taken back: "days" and "day" are one."""
        return tuple(singular(word) for word in self.words)

    @cached_property
    def stem_text(self) -> str:
        """`stems` joined by spaces, with one at each end, for matching on word borders."""
        return f" {' '.join(self.stems)} "

    @cached_property
    def fault(self) -> str:
        """Why this is no well-formed finished sentence; empty if it is one."""
        return _fault(self)

    @cached_property
    def reads_as_prose(self) -> bool:
        """True for a well-formed sentence, whatever its verb: `fault` asks for one of the listed
        verbs, which a support chat gets along with and other domains do not. A quarter of function
        words takes the place of the verb.
        """
        if not self.fault:
            return True
        if self.fault != "it has no verb":
            return False
        function_words = sum(word in FUNCTION_WORDS for word in self.words)
        return len(self.words) >= MIN_PROSE_WORDS and function_words >= 0.25 * len(self.words)

    @cached_property
    def negator_positions(self) -> tuple[int, ...]:
        """Positions of the words that deny something ("not only", "no problem" do not)."""
        text = f" {' '.join(self.words)} "
        idle: set[int] = set()
        for match in NOT_REALLY_NEGATED.finditer(text):
            first = text[: match.start()].count(" ") - 1
            idle.update(range(first, first + match.group().strip().count(" ") + 1))
        return tuple(
            position
            for position, word in enumerate(self.words)
            if word in NEGATORS and position not in idle
        )

    @property
    def is_question(self) -> bool:
        """True when it ends in a question mark."""
        return self.ending == "?"


@lru_cache(maxsize=8192)
def split_sentences(text: str) -> tuple[Sentence, ...]:
    """The sentences of a text in order, line by line; a list's bullets are taken off.

    An unfinished last sentence is among them, with an empty `ending`.
    """
    pieces: list[tuple[str, str]] = []
    for line in _SOFT_BREAK.sub(" ", text).splitlines():
        pieces.extend(_split_line(_BULLET.sub("", line).strip()))
    return tuple(_sentence(piece, ending) for piece, ending in pieces if piece)


@lru_cache(maxsize=8192)
def normalised_words(text: str) -> tuple[str, ...]:
    """The words of a phrase or a text, normalised as a sentence's `stems` are."""
    return tuple(singular(word) for word in _tokens(text) if word not in _PUNCTUATION)


def content_words(text: str) -> frozenset[str]:
    """The words that carry meaning: stems of more than two letters, or numbers, that are not
    function words.
    """
    return frozenset(
        singular(word)
        for word in _tokens(text)
        if word not in _PUNCTUATION and is_content_word(word)
    )


def is_content_word(word: str) -> bool:
    """True for numbers and for words of more than two letters that are not function words."""
    return word not in FUNCTION_WORDS and (len(word) > 2 or word.isdigit())


def singular(word: str) -> str:
    """A word without a simple plural ending; "is", "address", "status" stay as they are."""
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "zes", "ches", "shes")):
        return word[:-2]
    return word[:-1]


def is_denied(sentence: Sentence, start: int, *, reach: int = 8) -> bool:
    """True when a "not" stands before word `start` in its clause, at most `reach` words off."""
    clause = sentence.clause_ids[start]
    return any(
        position < start <= position + reach and sentence.clause_ids[position] == clause
        for position in sentence.negator_positions
    )


def ngrams(words: tuple[str, ...], n: int) -> list[tuple[str, ...]]:
    """All runs of n words, in order."""
    return [words[i : i + n] for i in range(len(words) - n + 1)]


def _split_line(line: str) -> list[tuple[str, str]]:
    pieces: list[tuple[str, str]] = []
    start = 0
    for match in _SENTENCE_END.finditer(line):
        if not _ends_here(line[start : match.start()], match.group(1), line[match.end() :]):
            continue
        mark = match.group(1)
        trails_off = mark.endswith(("..", "\u2026"))
        ending = "" if trails_off else ("?" if "?" in mark else mark[-1])
        pieces.append((_BULLET.sub("", line[start : match.end()]).strip(), ending))
        start = match.end()
    rest = line[start:].strip()
    return [*pieces, (rest, "")] if rest else pieces


def _ends_here(before: str, mark: str, after: str) -> bool:
    if mark != ".":
        return True
    last = before.split()[-1].lower().lstrip("(\"'") if before.split() else ""
    following = after.lstrip()[:1]
    if before.strip().isdigit() and len(before.strip()) <= 2 and following:
        return False  # "1. Open the page."
    if last == "no":
        return not following.isdigit()
    if last in ABBREVIATIONS_NEVER_LAST:
        return False
    if last in ABBREVIATIONS_BEFORE_CAPITAL:
        return not following or following.isupper()
    return not (len(last) == 1 and last.isalpha() and last != "i" and following.isupper())


def _sentence(text: str, ending: str) -> Sentence:
    words: list[str] = []
    clause_ids: list[int] = []
    clause = 0
    tokens = _tokens(text)
    for position, token in enumerate(tokens):
        following = tokens[position + 1] if position + 1 < len(tokens) else ""
        if token == ",":
            clause += following in CLAUSE_SUBJECTS or _is_clause(tokens, position + 1)
        elif token in _PUNCTUATION:
            clause += 1
        else:
            opens = token in CLAUSE_OPENERS or (
                token in {"and", "or"} and following in CLAUSE_SUBJECTS
            )
            clause += opens and bool(words)
            words.append(token)
            clause_ids.append(clause)
    return Sentence(text, tuple(words), tuple(clause_ids), tokens.count(","), ending)


def _is_clause(tokens: list[str], start: int) -> bool:
    """True when what stands between two commas has a verb of its own: "..., the card works"."""
    segment: list[str] = []
    for token in tokens[start:]:
        if token in _PUNCTUATION:
            break
        segment.append(token)
    if len(segment) < _SHORTEST_CLAUSE or segment[0] in {"and", "or", "nor"}:
        return False
    return _has_verb(tuple(segment))


def _tokens(text: str) -> list[str]:
    text = text.lower().replace("\u2019", "'").replace("\u2018", "'")
    for pattern, replacement in _CONTRACTIONS:
        text = pattern.sub(replacement, text)
    text = _CURRENCY.sub(lambda m: f"{m.group(2)} {_CURRENCIES[m.group(1)]}", text)
    for pattern, replacement in _NUMBERS:
        text = pattern.sub(replacement, text)
    return _join_number_words(_TOKEN.findall(text))


def _join_number_words(tokens: list[str]) -> list[str]:
    joined: list[str] = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        following = tokens[position + 1] if position + 1 < len(tokens) else ""
        unit = NUMBER_WORDS.get(following, 0)
        if token in TENS and 0 < unit < 10:
            joined.append(str(TENS[token] + unit))
            position += 2
        elif following == "hundred" and 0 < NUMBER_WORDS.get(token, 0) < 10:
            joined.append(str(NUMBER_WORDS[token] * 100))
            position += 2
        else:
            value = TENS.get(token, NUMBER_WORDS.get(token))
            joined.append(token if value is None else str(value))
            position += 1
    return joined


def _fault(sentence: Sentence) -> str:
    words = sentence.words
    if not sentence.ending:
        return "it is not finished by . ! or ?"
    if len(words) == 1 and words[0] in COURTESIES:
        return ""
    if not MIN_WORDS <= len(words) <= MAX_WORDS:
        return f"it has {len(words)} words, not {MIN_WORDS} to {MAX_WORDS}"
    repeated = _repeated(words)
    if repeated:
        return f"it repeats {repeated!r}"
    plain = [word for word in words if not word[0].isdigit()]
    if len(words) - len(plain) > _MOST_NUMBERS:
        return "it is a list of numbers"
    function_words = sum(word in FUNCTION_WORDS for word in plain)
    if len(plain) >= 6 and function_words < 0.15 * len(plain):
        return "it is a string of keywords"
    if sentence.commas >= 5 and len(words) < 3 * (sentence.commas + 1):
        return "it is a list"
    if len(words) <= _SHORT_COURTESY and COURTESIES.intersection(words[:2]):
        return ""  # "Sorry about that." "Yes, within 14 days."
    if not _has_verb(words):
        return "it has no verb"
    return ""


def _repeated(words: tuple[str, ...]) -> str:
    for first, second in pairwise(words):
        if first == second and first not in DOUBLING_IS_FINE:
            return f"{first} {second}"
    for word, count in Counter(words).items():
        if count > (5 if word in FUNCTION_WORDS and word != "please" else 2):
            return word
    for n, allowed in ((2, 2), (4, 1)):
        for gram, count in Counter(ngrams(words, n)).items():
            if count > allowed:
                return " ".join(gram)
    return ""


def _has_verb(words: tuple[str, ...]) -> bool:
    for position, word in enumerate(words):
        if _is_form_of(word, VERBS):
            return True
        before = words[position - 1] if position else ""
        after = words[position + 1] if position + 1 < len(words) else ""
        has_object = after in OBJECT_OPENERS and (position == 0 or before not in FUNCTION_WORDS)
        if _is_form_of(word, VERB_OR_NOUN) and (before in VERB_CUES or has_object):
            return True
        if _looks_like_verb(before, word, after):
            return True
    return False


def _looks_like_verb(before: str, word: str, after: str) -> bool:
    """True for "ships" in "a second order ships free": a word with -s behind a noun without, and
    before what may follow a verb.
    """
    return (
        word.endswith("s")
        and len(word) > 3
        and word not in FUNCTION_WORDS
        and before != ""
        and (before == "it" or (before not in FUNCTION_WORDS and not before.endswith("s")))
        and (after in FOLLOWS_A_VERB or after[:1].isdigit() or after.endswith("ly"))
    )


@lru_cache(maxsize=8192)
def _is_form_of(word: str, verbs: frozenset[str]) -> bool:
    if word in verbs:
        return True
    for ending in ("s", "es", "ed", "d", "ing"):
        if not word.endswith(ending):
            continue
        base = word.removesuffix(ending)
        single = base[:-1] if len(base) > 2 and base[-1:] == base[-2:-1] else base
        if base in verbs or base + "e" in verbs or single in verbs:
            return True
        if ending in {"es", "ed"} and base.endswith("i") and base[:-1] + "y" in verbs:
            return True
    return False
