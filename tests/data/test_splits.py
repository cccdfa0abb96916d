"""Whole intents move between splits, and one file decides which."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateset_agents.data.schemas import Message, PreferencePair, Scenario
from stateset_agents.data.splits import (
    IntentEntry,
    assign_splits,
    check_preferences_apart,
    read_intents,
)
from stateset_agents.exceptions import DataError

GOOD = """intents:
  late: {topic: delivery, split: train}
  lost: {topic: delivery, split: heldout}
"""


def intents_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "intents.yaml"
    path.write_text(text, "utf-8")
    return path


def scenario(name: str, intent: str, topic: str = "delivery") -> Scenario:
    return Scenario(id=name, topic=topic, intent=intent, user_responses=("Hi",))


def pair(name: str, intent: str) -> PreferencePair:
    return PreferencePair(
        id=name,
        intent=intent,
        prompt=(Message(role="user", content="Hi"),),
        chosen=(Message(role="assistant", content="Hello."),),
        rejected=(Message(role="assistant", content="What?"),),
    )


def test_a_scenario_gets_the_split_of_its_intent(tmp_path: Path) -> None:
    intents = read_intents(intents_file(tmp_path, GOOD))
    given = [scenario("a", "lost"), scenario("b", "late")]
    assert [one.split for one in assign_splits(given, intents, "x")] == ["heldout", "train"]


def test_an_intent_in_two_splits_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = intents_file(tmp_path, GOOD + "  late: {topic: delivery, split: heldout}\n")
    with pytest.raises(DataError, match="intent late: found a second time, first on line 2") as e:
        read_intents(path)
    assert e.value.problems[0].startswith(f"{path}:4:")


def test_an_unknown_split_is_refused_with_those_that_are_allowed(tmp_path: Path) -> None:
    path = intents_file(tmp_path, GOOD.replace("heldout", "test"))
    with pytest.raises(DataError, match=r"key split: found 'test'.*'heldout'"):
        read_intents(path)


def test_an_intent_that_is_not_listed_or_has_another_topic_is_refused(tmp_path: Path) -> None:
    intents = read_intents(intents_file(tmp_path, GOOD))
    given = [scenario("a", "stolen"), scenario("b", "late", "orders")]
    with pytest.raises(DataError) as caught:
        assign_splits(given, intents, "intents.yaml", {"a": "f.jsonl:3"})
    first, second = caught.value.problems
    assert first.startswith("f.jsonl:3: a: key intent: found 'stolen'; allowed is one of the 2")
    assert "found 'orders'; intents.yaml says that late belongs to 'delivery'" in second


def test_preferences_stay_apart_and_away_from_heldout_intents(tmp_path: Path) -> None:
    intents = read_intents(intents_file(tmp_path, GOOD))
    check_preferences_apart([pair("a", "late")], [pair("b", "other")], intents, "x")
    with pytest.raises(DataError) as caught:
        check_preferences_apart(
            [pair("a", "late"), pair("c", "lost")], [pair("b", "late")], intents, "x"
        )
    assert "intent late: found in the pairs to learn from and in the held-out" in str(caught.value)
    assert "pair c: key intent: found 'lost', which is held out for evaluation" in str(caught.value)


@pytest.mark.parametrize(
    "slip", ["wifi_setp", "wifi_setups", "wfii_setup", "wixi_setup", "wifi-setup", "WiFi setup"]
)
def test_a_pair_of_a_misspelt_intent_is_refused_with_both_names(slip: str) -> None:
    intents = {"wifi_setup": IntentEntry(topic="technical", split="heldout")}
    for parts in ([pair("a", slip)], []), ([], [pair("a", slip)]):
        with pytest.raises(DataError) as caught:
            check_preferences_apart(*parts, intents, "intents.yaml")
        (problem,) = caught.value.problems
        assert problem.startswith(f"pair a: key intent: found {slip!r}, which intents.yaml does")
        assert "nearly 'wifi_setup'" in problem


@pytest.mark.parametrize(
    "new", ["wifi_reset", "account_locked", "gift_receipt", "parcel_insurance"]
)
def test_a_pair_of_a_new_intent_is_allowed_and_of_a_listed_one_however_alike(new: str) -> None:
    names = ("wifi_setup", "account_hacked", "gift_return", "late_parcel")
    intents = {name: IntentEntry(topic="t", split="heldout") for name in names}
    check_preferences_apart([pair("a", new)], [], intents, "x")
    listed = intents | {"wifi_setups": IntentEntry(topic="t", split="train")}
    check_preferences_apart([pair("a", "wifi_setups")], [], listed, "x")


def test_no_two_intents_of_the_shop_are_taken_for_each_other() -> None:
    intents = read_intents(Path(__file__).parents[2] / "data/scenarios/intents.yaml")
    for name in intents:
        others = {one: entry for one, entry in intents.items() if one != name}
        check_preferences_apart([pair("a", name)], [], others, "x")


def test_a_scenario_of_a_misspelt_intent_is_refused_with_what_was_meant() -> None:
    intents = {"wifi_setup": IntentEntry(topic="technical", split="heldout")}
    with pytest.raises(DataError, match="so write 'wifi_setup', or add it there with its split"):
        assign_splits([scenario("a", "wifi_setp")], intents, "intents.yaml")


def test_intents_in_another_encoding_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "intents.yaml"
    path.write_bytes(GOOD.replace("late", "caf\xe9").encode("latin-1"))
    with pytest.raises(DataError, match=r"intents\.yaml: cannot be read as UTF-8 text: .* 0xe9"):
        read_intents(path)
