"""Compose `scenarios/<topic>.jsonl` from the hand-written material. Same seed, same bytes.

Run it from the repository root after a change of the material: `python data/build_scenarios.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from material import (
    SCENARIOS,
    Deck,
    Intent,
    Material,
    Moment,
    compose_context,
    load_material,
    person,
)

from stateset_agents.core.rubric import Rubric, RubricItem, check_rubric

SEED = 20
PER_INTENT = 6
# a phrasing that only makes sense after something was said
GOES_ON = re.compile(
    r"(and|but|so|then|also|ok|okay|fine|nope|no|still|did|that|that's|it|it's|such|right|"
    r"all right|one more|the other|the rest|how do i do that|is that|those)\b",
    flags=re.IGNORECASE,
)


def main() -> None:
    """Write one file a topic."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=SCENARIOS, help="default: %(default)s")
    out = parser.parse_args().out
    material = load_material()
    by_topic: dict[str, list[dict[str, Any]]] = defaultdict(list)
    decks = shared_decks(material)
    for intent in material.intents:
        for scenario in scenarios_of(intent, material, decks):
            by_topic[intent.topic].append(scenario)
    for topic, scenarios in by_topic.items():
        lines = [json.dumps(one, ensure_ascii=False) for one in scenarios]
        (out / f"{topic}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    count = sum(map(len, by_topic.values()))
    sys.stdout.write(f"{count} scenarios over {len(material.intents)} intents\n")


def shared_decks(material: Material) -> dict[str, Deck]:
    """The phrasings that all intents share; dealt across intents so that none piles up."""
    return {
        name: Deck(tuple(body["say"].strip().splitlines()), random.Random(f"{SEED}/{name}"))
        for name, body in material.shared["moments"].items()
    }


def scenarios_of(
    intent: Intent, material: Material, shared: dict[str, Deck]
) -> Iterator[dict[str, Any]]:
    """The scenarios of one intent: each shape in turn, phrasings dealt without repeats."""
    rng = random.Random(f"{SEED}/{intent.name}")
    decks = {
        name: shared[name] if moment.is_shared else Deck(moment.say, rng)
        for name, moment in intent.moments.items()
    }
    for number in range(PER_INTENT):
        moments = [intent.moments[name] for name in intent.shapes[number % len(intent.shapes)]]
        slots = person(material, intent, rng)
        mood = rng.choices(("plain", "lower", "typos"), weights=(7, 1, 2))[0]
        turns = [
            user_turn(
                decks[moment.name].deal(None if index else GOES_ON),
                slots,
                mood,
                rng,
                material,
                is_first=not index,
            )
            for index, moment in enumerate(moments)
        ]
        items = [
            item.model_copy(update={"turn": turn})
            for turn, moment in enumerate(moments)
            for item in moment.want
        ]
        rubric = Rubric(items=(*items, *intent.never))
        yield {
            "id": f"{intent.name}_{number + 1:02d}",
            "topic": intent.topic,
            "intent": intent.name,
            "user_responses": turns,
            "context": compose_context(material, intent, items, rng),
            "rubric": rubric.model_dump(exclude_none=True, exclude_defaults=True),
            "metadata": {
                "shape": [moment.name for moment in moments],
                "mood": mood,
                "reference_answers": reference_answers(intent, moments, rubric, slots, rng),
            },
        }


def user_turn(
    phrasing: str,
    slots: dict[str, str],
    mood: str,
    rng: random.Random,
    material: Material,
    *,
    is_first: bool,
) -> str:
    """One turn as this user would type it."""
    text = phrasing.strip()
    if is_first:
        text = greet(rng.choice(material.shared["greetings"]), text)
    text = text.format(**slots)
    if mood == "lower":
        return re.sub(r"[.!]$", "", lower(text))
    if mood == "typos":
        return with_typo(text, rng)
    return text


def greet(greeting: str, text: str) -> str:
    """The greeting before the text; after a comma a sentence goes on in small letters."""
    if greeting.endswith(",") and not re.match(r"(I|I'\w+|PICNIC|Larkmoor)\b", text):
        text = text[0].lower() + text[1:]
    return f"{greeting} {text}".strip()


def lower(text: str) -> str:
    """In small letters, but for order numbers."""
    return re.sub(r"lm-(\d)", r"LM-\1", text.lower())


def with_typo(text: str, rng: random.Random) -> str:
    """Two inner letters of one long word swapped, or one of them left out."""
    places = [match.span() for match in re.finditer(r"\b[a-z]{6,}\b(?!@)", text)]
    places = [span for span in places if "@" not in text[span[0] - 12 : span[1] + 14]]
    if not places:
        return text
    start, end = rng.choice(places)
    at = rng.randrange(start + 1, end - 2)
    if rng.random() < 0.5:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :]


def reference_answers(
    intent: Intent,
    moments: list[Moment],
    rubric: Rubric,
    slots: dict[str, str],
    rng: random.Random,
) -> list[str]:
    """One good answer a turn, together worth the full score of the rubric.

    Raises:
        ValueError: no combination of the written answers is worth it.
    """
    choices = [rng.sample(moment.reply, len(moment.reply)) for moment in moments]
    best: tuple[float, list[RubricItem]] = (-1.0, [])
    for combination in itertools.product(*choices):
        answers = [reply.format(**slots) for reply in combination]
        outcome = check_rubric(rubric, answers)
        if outcome.score == 1.0:
            return answers
        missed = [one.item for one in outcome.items if not one.met]
        best = max(best, (outcome.score, missed), key=lambda pair: pair[0])
    raise ValueError(
        f"intent {intent.name}, shape {[moment.name for moment in moments]}: no combination of "
        f"answers meets {[(item.turn, item.description, item.any_of) for item in best[1]]}"
    )


if __name__ == "__main__":
    sys.exit(main())
