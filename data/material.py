"""The hand-written material that the data set is composed of, and how it is read.

Owns the notation of `scenarios/source/*.yaml`. A topic file holds intents; an intent holds moments
(turns of a user with what a good answer must do, and examples of one) and shapes (orders in which
moments follow each other). One line of a block is one phrasing. A rubric item is written
`kind description = variant|variant & variant // other alternative`, or `kind name` for one that
`_shared.yaml` defines; `&` joins what one sentence must hold, `//` parts alternatives.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stateset_agents.core.rubric import RubricItem, RubricKind, meets
from stateset_agents.core.sentences import split_sentences

SCENARIOS = Path(__file__).parent / "scenarios"
KINDS: dict[str, tuple[RubricKind, str | None]] = {
    "ask": ("ask_for", "asks"),
    "ack": ("acknowledge", "acks"),
    "scope": ("stay_in_scope", "scopes"),
    "state": ("state_fact", None),
}
COURTESY_WEIGHT = (
    0.25  # a "sorry" fits everywhere: were it worth a fact, it would be said everywhere
)
SHORTEST_CONTEXT = 60  # words; distractor lines are added up to here, at most two


@dataclass(frozen=True, slots=True)
class Moment:
    """A turn of a user: phrasings, what its answer must do, and answers that do it."""

    name: str
    say: tuple[str, ...]
    want: tuple[RubricItem, ...]
    reply: tuple[str, ...]
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Intent:
    """One matter that people write about."""

    name: str
    topic: str
    split: str
    policy: tuple[str, ...]
    moments: dict[str, Moment]
    shapes: tuple[tuple[str, ...], ...]
    never: tuple[RubricItem, ...]
    overpromise: tuple[str, ...]
    products: tuple[str, ...]

    @property
    def facts(self) -> list[RubricItem]:
        """Every fact that some answer of this intent must state."""
        return [
            item
            for moment in self.moments.values()
            for item in moment.want
            if item.kind == "state_fact"
        ]


@dataclass(slots=True)
class Deck:
    """Deals cards in a shuffled order and shuffles again when all are dealt, so nothing comes back
    before everything else was used.
    """

    cards: tuple[str, ...]
    rng: random.Random
    _left: list[str] = field(default_factory=list)

    def deal(self, but_not: re.Pattern[str] | None = None) -> str:
        """The next card that does not begin with `but_not`; any, if all do."""
        if not self._left:
            self._left = list(self.cards)
            self.rng.shuffle(self._left)
        fitting = [card for card in self._left if not (but_not and but_not.match(card.strip()))]
        card = (fitting or self._left)[-1]
        self._left.remove(card)
        return card


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that was read."""

    opening: str
    sections: dict[str, tuple[str, ...]]
    shared: dict[str, Any]
    intents: tuple[Intent, ...]


def load_material(folder: Path = SCENARIOS) -> Material:
    """Read policy, intents and topic files.

    Raises:
        ValueError: an intent without a split, a shape that names no moment, a fact of a rubric that
            the policy does not state.
    """
    policy = yaml.safe_load((folder / "policy.yaml").read_text("utf-8"))
    listed = yaml.safe_load((folder / "intents.yaml").read_text("utf-8"))["intents"]
    shared = yaml.safe_load((folder / "source" / "_shared.yaml").read_text("utf-8"))
    intents = []
    for path in sorted((folder / "source").glob("[!_]*.yaml")):
        for name, raw in yaml.safe_load(path.read_text("utf-8")).items():
            if name not in listed:
                raise ValueError(f"{path}: intent {name} is not in intents.yaml")
            intents.append(
                _intent(name, raw, listed[name], tuple(policy["sections"][name]), shared)
            )
    missing = set(listed) - {intent.name for intent in intents}
    if missing:
        raise ValueError(f"intents.yaml lists intents without material: {sorted(missing)}")
    for intent in intents:
        _check_facts(intent)
    sections = {name: tuple(lines) for name, lines in policy["sections"].items()}
    return Material(policy["opening"], sections, shared, tuple(intents))


def person(material: Material, intent: Intent, rng: random.Random) -> dict[str, str]:
    """Who writes, and about what: the values for the slots of one scenario."""
    shared = material.shared
    name, surname = rng.choice(shared["names"]), rng.choice(shared["surnames"])
    return {
        "name": name,
        "surname": surname,
        "email": f"{name}.{surname}@{rng.choice(shared['domains'])}".lower(),
        "order": f"LM-{rng.randrange(10000, 99999)}",
        "product": rng.choice(intent.products),
        "city": rng.choice(shared["cities"]),
        "day": rng.choice(shared["days"]),
        "amount": rng.choice(shared["amounts"]),
        "digits": str(rng.randrange(100, 999)),
    }


def compose_context(
    material: Material, intent: Intent, wanted: list[RubricItem], rng: random.Random
) -> str:
    """The policy lines of the intent and one or two lines that do not apply, shuffled.

    A line that does not apply states none of the wanted facts, and no line of a held-out intent is
    shown outside of it.
    """
    lines = list(intent.policy)
    others = [
        line
        for other in material.intents
        if other.split == "train" and other.topic != intent.topic
        for line in other.policy
        if "we need" not in line and not any(states(line, item) for item in wanted)
    ]
    first, *rest = rng.sample(others, 8)
    lines.append(first)
    if _words(material.opening, lines) < SHORTEST_CONTEXT:
        lines.append(max(rest, key=len))
    rng.shuffle(lines)
    return "\n".join([material.opening, *(f"- {line}" for line in lines)])


def states(text: str, item: RubricItem) -> bool:
    """True when some sentence of the text meets the item."""
    return any(meets(item, sentence) for sentence in split_sentences(text))


def _words(opening: str, lines: list[str]) -> int:
    return len(" ".join([opening, *lines]).split())


def _intent(
    name: str, raw: dict[str, Any], listed: dict[str, str], policy: tuple[str, ...], shared: Any
) -> Intent:
    moments = {
        key: _moment(key, {**shared["moments"].get(key, {}), **body}, shared, "say" not in body)
        for key, body in raw["moments"].items()
    }
    for key, body in shared["moments"].items():
        if key not in moments and "want" in body:
            moments[key] = _moment(key, body, shared, True)
    shapes = tuple(tuple(shape.split()) for shape in raw["shapes"])
    unknown = {key for shape in shapes for key in shape} - set(moments)
    if unknown:
        raise ValueError(f"intent {name}: a shape names {sorted(unknown)}, which it does not have")
    kind = listed.get("products", "any")
    return Intent(
        name=name,
        topic=listed["topic"],
        split=listed["split"],
        policy=policy,
        moments=moments,
        shapes=shapes,
        never=tuple(_never(line, shared) for line in _lines(raw["never"])),
        overpromise=tuple(_lines(raw["overpromise"])),
        products=tuple(shared["products"][kind]),
    )


def _moment(name: str, body: dict[str, str], shared: Any, is_shared: bool) -> Moment:
    return Moment(
        name=name,
        say=tuple(_lines(body["say"])),
        want=tuple(_want(line, shared) for line in _lines(body["want"])),
        reply=tuple(_lines(body["reply"])),
        is_shared=is_shared,
    )


def _want(line: str, shared: Any) -> RubricItem:
    short, rest = line.split(" ", 1)
    kind, table = KINDS[short]
    if " = " not in rest:
        if table is None:
            raise ValueError(f"rubric item without an expression: {line}")
        rest = shared[table][rest]
    return _item(kind, rest)


def _never(line: str, shared: Any) -> RubricItem:
    return _item("must_not", line if " = " in line else shared["nevers"][line])


def _item(kind: RubricKind, text: str) -> RubricItem:
    description, expression = text.split(" = ", 1)
    any_of = tuple(
        tuple(part.strip() for part in alternative.split(" & "))
        for alternative in expression.split(" // ")
    )
    weight = COURTESY_WEIGHT if kind == "acknowledge" else 1.0
    return RubricItem(kind=kind, description=description.strip(), any_of=any_of, weight=weight)


def _lines(block: str) -> list[str]:
    return [line.strip() for line in block.splitlines() if line.strip()]


def _check_facts(intent: Intent) -> None:
    for fact in intent.facts:
        if not any(states(line, fact) for line in intent.policy):
            raise ValueError(f"intent {intent.name}: its policy does not state {fact!r}")
