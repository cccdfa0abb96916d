"""Compose `preferences/{train,heldout}.jsonl` from the written material. Same seed, same bytes.

Run it from the repository root after a change of the material: `python data/build_preferences.py`.

The training part comes from intents of the train split, the held-out part from those of the
validation split: the scenarios' held-out intents never touch a preference. Which of the two answers
is longer is drawn first, evenly, and the answers are chosen to fit, so length tells nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from material import Intent, Material, Moment, compose_context, load_material, person, states

from stateset_agents.core.rubric import RubricItem, breaks
from stateset_agents.core.sentences import normalised_words, split_sentences

SEED = 21
PREFERENCES = Path(__file__).parent / "preferences"
PARTS = {"train": ("train", 18), "heldout": ("validation", 18)}
EACH_FOURTH = 4
LONGEST_CHOSEN = 42  # words
EXTRA_SHARE = 0.2  # of the good answers carry another fact
SCENES_A_KIND = 12  # a flaw that fits none of so many conversations is left out


@dataclass(frozen=True, slots=True)
class Scene:
    """A conversation up to the user's turn that the two answers reply to."""

    material: Material
    intent: Intent
    moments: tuple[Moment, ...]
    messages: tuple[dict[str, str], ...]
    context: str
    slots: dict[str, str]
    flaws: dict[str, tuple[str, ...]]
    rng: random.Random

    @property
    def moment(self) -> Moment:
        """The user's last turn."""
        return self.moments[-1]

    @property
    def user(self) -> str:
        """What the user said last."""
        return self.messages[-1]["content"]

    def say(self, kind: str) -> str:
        """A line of one kind, slots filled."""
        return self.rng.choice(self.flaws[kind]).format(**self.slots)

    def is_good(self, answer: str) -> bool:
        """True when the answer does all that it must and nothing that it must not."""
        return all(states(answer, item) for item in self.moment.want) and not self.is_forbidden(
            answer
        )

    def is_forbidden(self, answer: str) -> bool:
        """True when the answer breaks a rule of the intent."""
        return any(breaks_any(answer, item) for item in self.intent.never)


def main() -> None:
    """Write both parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PREFERENCES, help="default: %(default)s")
    out = parser.parse_args().out
    material = load_material()
    lists = yaml.safe_load((PREFERENCES / "source" / "flaws.yaml").read_text("utf-8"))
    for part, (split, per_intent) in PARTS.items():
        flaws = {
            kind: tuple(
                line
                for index, line in enumerate(lines)
                if (index % EACH_FOURTH == EACH_FOURTH - 1) == (part == "heldout")
                or kind == "extra_lead"
            )
            for kind, lines in lists.items()
        }
        pairs = [
            pair
            for intent in material.intents
            if intent.split == split
            for pair in pairs_of(intent, material, flaws, part, per_intent)
        ]
        random.Random(f"{SEED}/{part}").shuffle(pairs)
        text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
        (out / f"{part}.jsonl").write_text(text, "utf-8")
        sys.stdout.write(f"{part}: {len(pairs)} pairs\n")


def pairs_of(
    intent: Intent,
    material: Material,
    flaws: dict[str, tuple[str, ...]],
    part: str,
    count: int,
) -> Iterator[dict[str, Any]]:
    """`count` pairs of one intent, every kind of flaw as often as it can be had."""
    rng = random.Random(f"{SEED}/{intent.name}")
    seen: set[tuple[str, str]] = set()
    kinds: list[str] = []
    lengths: list[bool] = []
    while len(seen) < count:
        kinds = kinds or rng.sample([*FLAWS, *COMMON], len(FLAWS) + len(COMMON))
        lengths = lengths or rng.sample([True, False], 2)
        kind = kinds.pop()
        for _ in range(SCENES_A_KIND):
            scene = set_scene(intent, material, flaws, rng)
            pair = answers(scene, kind, lengths[-1])
            if pair is not None and pair not in seen:
                seen.add(pair)
                lengths.pop()
                yield row(scene, pair, f"{intent.name}_p{len(seen):02d}", part, kind)
                break


def set_scene(
    intent: Intent, material: Material, flaws: dict[str, tuple[str, ...]], rng: random.Random
) -> Scene:
    """A conversation of this intent, broken off after one of the user's turns."""
    shape = rng.choice(intent.shapes)
    last = rng.randrange(len(shape))
    if shape[last] == "thx" and rng.random() < 0.7:
        last = rng.randrange(len(shape) - 1)
    moments = tuple(intent.moments[name] for name in shape[: last + 1])
    slots = person(material, intent, rng)
    wanted = [item for moment in moments for item in moment.want]
    context = compose_context(material, intent, wanted, rng)
    messages = [{"role": "system", "content": context}]
    for index, moment in enumerate(moments):
        messages.append({"role": "user", "content": rng.choice(moment.say).format(**slots)})
        if index < last:
            reply = rng.choice(moment.reply).format(**slots)
            messages.append({"role": "assistant", "content": reply})
    return Scene(material, intent, moments, tuple(messages), context, slots, flaws, rng)


def answers(scene: Scene, kind: str, chosen_is_longer: bool) -> tuple[str, str] | None:
    """A good and a bad answer with the wanted relation of lengths, if there is one."""
    for _ in range(12):
        chosen = good_answer(scene)
        rejected = FLAWS[kind](scene)
        if rejected is None or chosen is None:
            return None
        same_length = len(chosen) == len(rejected)
        if not same_length and (len(chosen) > len(rejected)) == chosen_is_longer:
            return chosen, rejected
    return None


def row(scene: Scene, pair: tuple[str, str], name: str, part: str, flaw: str) -> dict[str, Any]:
    """The pair as a line of the file."""
    return {
        "id": name,
        "topic": scene.intent.topic,
        "intent": scene.intent.name,
        "split": part,
        "prompt": list(scene.messages),
        "chosen": [{"role": "assistant", "content": pair[0]}],
        "rejected": [{"role": "assistant", "content": pair[1]}],
        "metadata": {"flaw": flaw, "moment": scene.moment.name},
    }


# good answers


def good_answer(scene: Scene) -> str | None:
    """A written answer, alone or with one more fact of the policy. It carries no padding."""
    core = scene.rng.choice(scene.moment.reply).format(**scene.slots)
    after = ""
    if scene.moment.name != "thx" and scene.rng.random() < EXTRA_SHARE:
        after = another_fact(scene, core)
    answer = f"{core} {after}".strip()
    if len(answer.split()) > LONGEST_CHOSEN or not scene.is_good(answer):
        return core if scene.is_good(core) else None
    return answer


def another_fact(scene: Scene, core: str) -> str:
    """A policy line of the intent that the answer does not say yet, as a sentence."""
    if core.endswith("?"):
        return ""
    said = key_words(core)
    lines = [
        line for line in scene.intent.policy if ";" not in line and len(said & key_words(line)) < 2
    ]
    if not lines:
        return ""
    line = scene.rng.choice(lines)
    if scene.rng.random() < 0.5 or line.split()[0] in ("We", "I", "Larkmoor", "Android"):
        return line
    return f"{scene.say('extra_lead')} {line[0].lower()}{line[1:]}"


def key_words(text: str) -> set[str]:
    """Numbers and long words, number words as digits."""
    return {word for word in normalised_words(text) if len(word) > 4 or word.isdigit()}


def breaks_any(answer: str, item: RubricItem) -> bool:
    """True when some sentence of the answer breaks a `must_not`."""
    return any(breaks(item, sentence) for sentence in split_sentences(answer))


# flaws: each gives a bad answer, or None where this conversation cannot have that flaw


def overpromise(scene: Scene) -> str | None:
    """Promises what the policy forbids."""
    lines = [*scene.intent.overpromise, scene.say("overpromise")]
    text = scene.rng.choice(lines).format(**scene.slots)
    if scene.rng.random() < 0.4:
        text = f"{text} {scene.say('overpromise')}"
    return text if scene.moment.name not in ("thx", "num", "mail") else None


def ignores(scene: Scene) -> str | None:
    """Answers another question of the same conversation partner."""
    others = [
        reply.format(**scene.slots)
        for moment in scene.intent.moments.values()
        if moment.name not in (scene.moment.name, "thx")
        for reply in moment.reply
    ]
    others = [other for other in others if not scene.is_good(other)]
    if not others:
        return None
    picked = scene.rng.sample(others, min(len(others), scene.rng.choice((1, 1, 2))))
    return " ".join(picked)


def other_matter(scene: Scene) -> str | None:
    """Answers what somebody else could have asked, on another matter."""
    intents = [
        intent
        for intent in scene.material.intents
        if intent.split == scene.intent.split and intent.topic != scene.intent.topic
    ]
    moment = scene.rng.choice(list(scene.rng.choice(intents).moments.values()))
    text = scene.rng.choice(moment.reply).format(**scene.slots)
    return None if moment.is_shared or scene.is_good(text) else text


def wrong_number(scene: Scene) -> str | None:
    """The right sentence with another number in it."""
    text = good_answer(scene)
    spots = list(re.finditer(r"(?<![\w.-])(£?)(\d+)(?![\w.]|-\d)", text)) if text else []
    if not text or not spots:
        return None
    spot = scene.rng.choice(spots)
    right = int(spot[2])
    wrong = scene.rng.choice([n for n in (1, 2, 4, 6, 7, 9, 12, 15, 20, 45, 60, 90) if n != right])
    changed = f"{text[: spot.start()]}{spot[1]}{wrong}{text[spot.end() :]}"
    return None if scene.is_good(changed) else changed


def repeats_itself(scene: Scene) -> str | None:
    """Says one sentence again and again."""
    text = good_answer(scene)
    if not text:
        return None
    sentences = re.split(r"(?<=[.?!]) ", text)
    if scene.rng.random() < 0.4:
        return " ".join([max(sentences, key=len)] * scene.rng.choice((2, 3)))
    return " ".join([text, *[sentences[-1]] * scene.rng.choice((1, 2))])


def repeats_last_answer(scene: Scene) -> str | None:
    """Says again what it said a turn ago."""
    if len(scene.messages) < 4:
        return None
    text = scene.messages[-2]["content"]
    return None if scene.is_good(text) else text


def keyword_soup(scene: Scene) -> str:
    """The words that count, without a sentence around them."""
    words = [
        variant.strip()
        for item in scene.moment.want
        for phrase in item.any_of[0]
        for variant in phrase.split("|")[:2]
    ]
    more = re.findall(r"[A-Za-z]{5,}", scene.context.split("Policy:")[1])
    words += scene.rng.sample(more, scene.rng.choice((1, 3, 6, 10)))
    scene.rng.shuffle(words)
    return scene.rng.choice((", ", " ")).join(words).lower() + "."


def rude(scene: Scene) -> str | None:
    """Unfriendly, with or without the right answer."""
    if scene.rng.random() < 0.5:
        return scene.say("rude")
    core = scene.rng.choice(scene.moment.reply).format(**scene.slots)
    core = re.sub(r"^(I am|I'm|We are)? ?sorry[^.]*\. ", "", core, flags=re.IGNORECASE)
    return " ".join(scene.rng.sample([scene.say("rude"), core], 2))


def rambling(scene: Scene) -> str:
    """Goes on and on; the answer comes late or never."""
    lines = scene.rng.sample(scene.flaws["rambling"], scene.rng.choice((1, 2, 3)))
    if scene.rng.random() < 0.3:
        lines.append(scene.rng.choice(scene.moment.reply))
    return " ".join(lines).format(**scene.slots)


def placeholder(scene: Scene) -> str:
    """A letter with blanks, the answer in it or not."""
    text = scene.say("placeholder")
    if scene.rng.random() < 0.4:
        text = f"{text} {scene.rng.choice(scene.moment.reply).format(**scene.slots)}"
    return text


def asks_again(scene: Scene) -> str | None:
    """Asks for what the user has just given, or gave before."""
    given = [moment.name for moment in scene.moments]
    asking = [
        reply.format(**scene.slots)
        for moment in scene.intent.moments.values()
        for reply in moment.reply
        if any(item.kind == "ask_for" for item in moment.want)
    ]
    if not {"num", "mail", "photo", "named", "numsize", "code", "model"} & set(given):
        return None
    asking = [text for text in asking if not scene.is_good(text)]
    return scene.rng.choice(asking) if asking else None


def cut_off(scene: Scene) -> str | None:
    """Breaks off in the middle of a sentence."""
    text = good_answer(scene)
    words = text.split() if text else []
    if scene.rng.random() < 0.5:
        words += scene.rng.choice(scene.flaws["rambling"]).split()
    if len(words) < 7:
        return None
    keep = scene.rng.randrange(len(words) // 2, len(words) - 1)
    cut = re.sub(r"[.,;?!]$", "", " ".join(words[:keep]))
    return cut


def echo(scene: Scene) -> str:
    """Gives the user's words back and adds nothing."""
    words = scene.user[0].lower() + scene.user[1:]
    return scene.rng.choice(
        (
            f"You said, {words}",
            f"So {words} I understand.",
            scene.user,
            f"You wrote that {words} Is that what you wrote?",
            f"I hear that {words} Thank you for telling me about this.",
        )
    )


def padding(scene: Scene) -> str | None:
    """Courtesies and offers, in place of the answer or around it."""
    if scene.moment.name == "thx":
        return None
    pads = scene.rng.sample(scene.flaws["padding"], scene.rng.choice((2, 3)))
    if scene.rng.random() < 0.6:
        core = scene.rng.choice(scene.moment.reply).format(**scene.slots)
        pads.insert(scene.rng.randrange(len(pads) + 1), core)
    return " ".join(pads)


def policy_dump(scene: Scene) -> str:
    """Copies the policy, what applies and what does not."""
    lines = [line.removeprefix("- ") for line in scene.context.splitlines()[1:]]
    return " ".join(lines[: scene.rng.choice((2, 3, 5))])


def from_list(kind: str) -> Callable[[Scene], str | None]:
    """A flaw whose answers are written out."""

    def flawed(scene: Scene) -> str:
        lines = scene.flaws[kind]
        count = min(len(lines), scene.rng.choice((1, 1, 2)))
        return " ".join(scene.rng.sample(lines, count)).format(**scene.slots)

    return flawed


FLAWS: dict[str, Callable[[Scene], str | None]] = {
    "asks_again": asks_again,
    "cut_off": cut_off,
    "echo": echo,
    "ignores": ignores,
    "invents": from_list("invents"),
    "keyword_soup": keyword_soup,
    "off_topic": from_list("off_topic"),
    "other_matter": other_matter,
    "overpromise": overpromise,
    "padding": padding,
    "placeholder": placeholder,
    "policy_dump": policy_dump,
    "rambling": rambling,
    "repeats_itself": repeats_itself,
    "repeats_last_answer": repeats_last_answer,
    "role_confusion": from_list("role_confusion"),
    "rude": rude,
    "stutter": from_list("stutter"),
    "vague": from_list("vague"),
    "wrong_number": wrong_number,
}
# what a small model gets wrong most: twice as many of these
COMMON = (
    "ignores",
    "invents",
    "other_matter",
    "overpromise",
    "padding",
    "repeats_last_answer",
    "wrong_number",
)

if __name__ == "__main__":
    sys.exit(main())
