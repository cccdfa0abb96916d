"""Measures of a set of scenarios: copies, variety, facts that nobody could know.

Functions of values; what is too much of something is the pipeline's to say.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stateset_agents.core.rubric import meets
from stateset_agents.core.sentences import split_sentences
from stateset_agents.data.schemas import Scenario

SHINGLE = 5  # words
_PROMPT_MARKS = re.compile(r"^\s*[-*•]\s*", flags=re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Nearest:
    """The most similar other scenario; `similarity` is 0 and `scenario_id` "" if none shares a
    5-gram.
    """

    similarity: float
    scenario_id: str


def find_nearest(scenarios: Sequence[Scenario]) -> list[Nearest]:
    """For each scenario the nearest other one, by Jaccard similarity of the 5-grams of words over
    all user turns (Broder 1997, w-shingling).
    """
    shingles = [_shingles(_words(" ".join(one.user_responses))) for one in scenarios]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, own in enumerate(shingles):
        for shingle in own:
            holders[shingle].append(index)
    nearest = []
    for index, own in enumerate(shingles):
        shared = Counter(other for shingle in own for other in holders[shingle] if other != index)
        best = Nearest(0.0, "")
        for other, count in shared.items():
            similarity = count / (len(own) + len(shingles[other]) - count)
            if similarity > best.similarity:
                best = Nearest(similarity, scenarios[other].id)
        nearest.append(best)
    return nearest


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Different n-grams of words over all n-grams, in [0, 1] (Li et al. 2016); 0 without any."""
    grams = [gram for text in texts for gram in _grams(_words(text), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def find_unstated_facts(scenario: Scenario) -> list[str]:
    """The facts that the rubric asks for and the context does not state: nobody could know them."""
    if scenario.rubric is None:
        return []
    lines = _PROMPT_MARKS.sub("", scenario.context).splitlines()
    sentences = [sentence for line in lines for sentence in split_sentences(line)]
    return [
        item.description
        for item in scenario.rubric.items
        if item.kind == "state_fact" and not any(meets(item, sentence) for sentence in sentences)
    ]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9£]+(?:['-][a-z0-9]+)*", text.lower())


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _shingles(words: Sequence[str]) -> set[tuple[str, ...]]:
    # a text shorter than a shingle is one shingle, so that two equal short texts are copies
    return set(_grams(words, SHINGLE)) or {tuple(words)}
