"""What the data set of the project promises: size, variety, splits, rubrics that can be met."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import yaml

from stateset_agents.core.rubric import check_rubric
from stateset_agents.data.quality import distinct_n, find_nearest, find_unstated_facts
from stateset_agents.data.readers import read_preferences, read_scenarios
from stateset_agents.data.schemas import PreferencePair, Scenario
from stateset_agents.data.splits import assign_splits, check_preferences_apart, read_intents

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "data" / "scenarios"
TOPICS = {
    "orders", "delivery", "returns", "refunds", "billing", "account",
    "product", "technical", "complaints", "abuse", "off_topic",
}  # fmt: skip


@pytest.fixture(scope="module")
def scenarios() -> list[Scenario]:
    intents = read_intents(FOLDER / "intents.yaml")
    return assign_splits(read_scenarios(FOLDER), intents, "intents.yaml")


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[PreferencePair]]:
    folder = ROOT / "data" / "preferences"
    return {part: read_preferences(folder / f"{part}.jsonl") for part in ("train", "heldout")}


def answers_of(scenario: Scenario) -> list[str]:
    answers = scenario.metadata["reference_answers"]
    assert len(answers) == len(scenario.user_responses)
    return list(answers)


def score(scenario: Scenario, answers: list[str]) -> float:
    assert scenario.rubric is not None
    return check_rubric(scenario.rubric, answers).score


def test_there_are_288_scenarios_or_more_with_six_for_each_of_48_intents_or_more(
    scenarios: list[Scenario],
) -> None:
    by_intent = Counter(one.intent for one in scenarios)
    assert len(scenarios) >= 288
    assert len(by_intent) >= 48
    assert min(by_intent.values()) >= 6
    assert {one.topic for one in scenarios} == TOPICS


def test_heldout_intents_come_from_nine_topics_or_more(scenarios: list[Scenario]) -> None:
    heldout = {one.intent: one.topic for one in scenarios if one.split == "heldout"}
    assert len(heldout) >= 9
    assert len(set(heldout.values())) >= 9
    assert len({one.intent for one in scenarios if one.split == "validation"}) >= 5
    assert len({one.intent for one in scenarios if one.split == "train"}) >= 34


def test_no_other_split_sees_a_policy_line_of_a_heldout_intent(scenarios: list[Scenario]) -> None:
    listed = read_intents(FOLDER / "intents.yaml")
    policy = yaml.safe_load((FOLDER / "policy.yaml").read_text("utf-8"))["sections"]
    secret = {
        line for name, lines in policy.items() if listed[name].split == "heldout" for line in lines
    }
    seen = {
        line.removeprefix("- ")
        for one in scenarios
        if one.split != "heldout"
        for line in one.context.splitlines()
    }
    assert len(secret) >= 27
    assert not secret & seen


def test_turns_and_contexts_are_as_short_as_a_small_model_needs(scenarios: list[Scenario]) -> None:
    for one in scenarios:
        assert 3 <= len(one.user_responses) <= 5, one.id
        assert 55 <= len(one.context.split()) <= 110, one.id
        for turn in one.user_responses:
            assert 3 <= len(turn.split()) <= 30, f"{one.id}: {turn}"
            assert "{" not in turn, one.id


def test_no_two_scenarios_are_near_copies(scenarios: list[Scenario]) -> None:
    worst = max(find_nearest(scenarios), key=lambda nearest: nearest.similarity)
    assert worst.similarity < 0.6, worst
    turns = [turn for one in scenarios for turn in one.user_responses]
    assert distinct_n(turns, 2) > 0.5
    assert distinct_n(turns, 3) > 0.7


def test_an_intent_is_told_in_three_orders_or_more(scenarios: list[Scenario]) -> None:
    shapes = defaultdict(set)
    for one in scenarios:
        shapes[one.intent].add(tuple(one.metadata["shape"]))
    assert min(len(orders) for orders in shapes.values()) >= 3


def test_every_fact_that_a_rubric_asks_for_is_in_the_context(scenarios: list[Scenario]) -> None:
    assert {one.id: find_unstated_facts(one) for one in scenarios if find_unstated_facts(one)} == {}


def test_every_rubric_asks_for_something_in_most_turns_and_forbids_something(
    scenarios: list[Scenario],
) -> None:
    for one in scenarios:
        assert one.rubric is not None
        kinds = Counter(item.kind for item in one.rubric.items)
        asked = {item.turn for item in one.rubric.items if item.kind != "must_not"}
        assert len(asked) > len(one.user_responses) / 2, one.id
        assert kinds["must_not"] >= 1, one.id
        assert kinds.total() - kinds["must_not"] >= 3, one.id


def test_reference_answers_earn_the_full_score(scenarios: list[Scenario]) -> None:
    below = {one.id: score(one, answers_of(one)) for one in scenarios}
    assert {name: value for name, value in below.items() if value < 1.0} == {}


def test_good_answers_at_the_wrong_place_earn_little(scenarios: list[Scenario]) -> None:
    rotated = [score(one, answers_of(one)[1:] + answers_of(one)[:1]) for one in scenarios]
    others = [
        score(one, (answers_of(other) * 2)[: len(one.user_responses)])
        for one, other in zip(scenarios, scenarios[-40:] + scenarios[:-40], strict=True)
        if one.intent != other.intent
    ]
    dumped = [
        score(
            one, [" ".join(one.context.replace("- ", "").splitlines()[1:])] * len(answers_of(one))
        )
        for one in scenarios
    ]
    for scores, ceiling in ((rotated, 0.25), (others, 0.25), (dumped, 0.35)):
        assert sum(scores) / len(scores) < ceiling


def test_a_promise_that_the_policy_forbids_halves_the_score(scenarios: list[Scenario]) -> None:
    one = next(one for one in scenarios if one.id == "refund_time_01")
    answers = answers_of(one)
    answers[-1] += " You get the refund today."
    assert score(one, answers) == pytest.approx(0.5)


def test_there_are_640_pairs_to_learn_from_and_80_held_out_of_other_intents(
    pairs: dict[str, list[PreferencePair]],
) -> None:
    assert len(pairs["train"]) >= 640
    assert len(pairs["heldout"]) >= 80
    intents = read_intents(FOLDER / "intents.yaml")
    check_preferences_apart(pairs["train"], pairs["heldout"], intents, "x")
    assert {intents[str(one.intent)].split for one in pairs["train"]} == {"train"}


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_length_does_not_tell_the_better_answer(
    pairs: dict[str, list[PreferencePair]], part: str
) -> None:
    longer = [len(one.chosen[0].content) > len(one.rejected[0].content) for one in pairs[part]]
    assert 0.4 <= sum(longer) / len(longer) <= 0.6
    by_flaw = defaultdict(list)
    for one, is_longer in zip(pairs["train"], longer, strict=False):
        by_flaw[one.metadata["flaw"]].append(is_longer)
    if part == "train":
        assert all(0.15 <= sum(each) / len(each) <= 0.85 for each in by_flaw.values())


def test_pairs_are_varied_and_flawed_in_many_ways(pairs: dict[str, list[PreferencePair]]) -> None:
    train, heldout = pairs["train"], pairs["heldout"]
    flaws = Counter(one.metadata["flaw"] for one in train)
    assert len(flaws) >= 15
    assert max(flaws.values()) < 0.15 * len(train)
    answered = {(one.prompt[-1].content, one.chosen[0].content) for one in train}
    assert len(answered) > 0.95 * len(train)
    assert len({one.chosen[0].content for one in train}) > 0.7 * len(train)
    assert len({one.rejected[0].content for one in train}) > 0.8 * len(train)
    seen = {one.rejected[0].content for one in train}
    assert sum(one.rejected[0].content in seen for one in heldout) < 0.1 * len(heldout)


def test_the_files_are_what_the_written_material_composes(tmp_path: Path) -> None:
    for script, folder in (("scenarios", FOLDER), ("preferences", ROOT / "data" / "preferences")):
        out = tmp_path / script
        out.mkdir()
        subprocess.run(
            [sys.executable, f"data/build_{script}.py", "--out", out], cwd=ROOT, check=True
        )
        written = {path.name: path.read_bytes() for path in out.iterdir()}
        assert written == {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
