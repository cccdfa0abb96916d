"""Bad rows are named with file, line, key, what was found and what is allowed, all at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stateset_agents.data.readers import read_preferences, read_scenarios
from stateset_agents.exceptions import DataError

SCENARIO: dict[str, Any] = {
    "id": "late_01",
    "topic": "delivery",
    "intent": "late",
    "user_responses": ["Where is my parcel?", "LM-10000", "Thanks."],
    "context": "Policy:\n- Parcels arrive within 5 working days.",
    "rubric": {
        "items": [{"kind": "state_fact", "description": "5 days", "any_of": [["5 working days"]]}]
    },
}
PAIR: dict[str, Any] = {
    "id": "late_p1",
    "prompt": [
        {"role": "system", "content": "Policy"},
        {"role": "user", "content": "Where is my parcel?"},
    ],
    "chosen": [{"role": "assistant", "content": "What is the order number?"}],
    "rejected": [{"role": "assistant", "content": "No idea."}],
}


def lines(path: Path, *rows: dict[str, Any] | str) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text(text + "\n", "utf-8")
    return path


def problems_of(path: Path) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read_scenarios(path)
    return caught.value.problems


def pair_problems(tmp_path: Path, **changes: Any) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read_preferences(lines(tmp_path / "pairs.jsonl", {**PAIR, **changes}))
    return caught.value.problems


def test_a_good_file_gives_its_rows_in_order(tmp_path: Path) -> None:
    path = lines(tmp_path / "good.jsonl", SCENARIO, "", {**SCENARIO, "id": "late_02"})
    scenarios = read_scenarios(path)
    assert [one.id for one in scenarios] == ["late_01", "late_02"]
    assert scenarios[0].model_dump()["rubric"]["items"][0]["any_of"] == (("5 working days",),)


def test_a_json_array_with_a_byte_order_mark_is_read_like_lines(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    path.write_text(json.dumps([SCENARIO]), "utf-8-sig")
    assert read_scenarios(path)[0].id == "late_01"


def test_every_problem_of_every_file_is_in_one_error(tmp_path: Path) -> None:
    without_topic = {key: value for key, value in SCENARIO.items() if key != "topic"}
    lines(tmp_path / "a.jsonl", SCENARIO, '{"id": "x", ', without_topic)
    lines(tmp_path / "b.jsonl", {**SCENARIO, "id": "b", "user_responses": ["Hi", " ", "Bye"]})
    found = problems_of(tmp_path)
    assert len(found) == 3
    assert found[0].startswith(f"{tmp_path / 'a.jsonl'}:2: malformed JSON at column 13")
    assert found[1] == (
        f"{tmp_path / 'a.jsonl'}:3: key topic: missing field; allowed is a row with id, topic, "
        "intent, user_responses"
    )
    assert found[2] == (
        f"{tmp_path / 'b.jsonl'}:1: key user_responses[1]: found ' ', an empty user turn; allowed "
        "is some text"
    )


def test_an_id_that_occurs_in_two_files_is_named_with_both_lines(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", {**SCENARIO, "id": "first"}, SCENARIO)
    lines(tmp_path / "b.jsonl", SCENARIO)
    (problem,) = problems_of(tmp_path)
    assert problem == (
        f"{tmp_path / 'b.jsonl'}:1: key id: found 'late_01', which {tmp_path / 'a.jsonl'}:2 "
        "already has; allowed is an id that occurs once"
    )


def test_an_unknown_key_is_named_with_those_that_are_allowed_there(tmp_path: Path) -> None:
    item = {**SCENARIO["rubric"]["items"][0], "wieght": 2}
    path = lines(tmp_path / "a.jsonl", {**SCENARIO, "rubric": {"items": [item]}})
    (problem,) = problems_of(path)
    assert problem == (
        f"{path}:1: key rubric.items[0].wieght: unknown key, found 2; allowed are kind, "
        "description, any_of, turn, weight"
    )


def test_a_rubric_for_a_turn_that_the_scenario_lacks_is_refused(tmp_path: Path) -> None:
    item = {**SCENARIO["rubric"]["items"][0], "turn": 3}
    path = lines(tmp_path / "a.jsonl", {**SCENARIO, "rubric": {"items": [item]}})
    (problem,) = problems_of(path)
    assert "rubric.items[0].turn is 3, and the scenario has the turns 0 to 2" in problem


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(SCENARIO).encode() + b'\n{"id": "caf\xe9"}\n')
    (problem,) = problems_of(path)
    assert problem.startswith(f"{path}:2: wrong encoding: found the byte 0xe9; allowed is UTF-8")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("empty.jsonl", "", "the file is empty; allowed is at least one row"),
        ("empty.json", "[]", "the file is empty; allowed is at least one row"),
        ("object.json", "{}", "found a JSON object; allowed is an array of objects"),
        ("number.jsonl", "7\n", ":1: found a JSON number; allowed is an object"),
        ("table.csv", "id\n1\n", "found a .csv file; allowed are .jsonl and .json"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused(
    tmp_path: Path, name: str, text: str, expected: str
) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    (problem,) = problems_of(tmp_path / name)
    assert expected in problem


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert problems_of(tmp_path / "no.jsonl")[0].endswith("no such file or folder")


def test_an_s3_source_is_fetched_to_a_local_file_first(tmp_path: Path) -> None:
    local = lines(tmp_path / "fetched.jsonl", SCENARIO)
    asked: list[str] = []

    def fetch(address: str) -> Path:
        asked.append(address)
        return local

    assert read_scenarios("s3://bucket/a.jsonl", fetch=fetch)[0].id == "late_01"
    assert asked == ["s3://bucket/a.jsonl"]
    with pytest.raises(DataError, match="needs `fetch`"):
        read_scenarios("s3://bucket/a.jsonl")


def test_a_role_out_of_place_is_named_with_its_index(tmp_path: Path) -> None:
    prompt = [*PAIR["prompt"], {"role": "user", "content": "Hello?"}]
    (problem,) = pair_problems(tmp_path, prompt=prompt)
    assert problem.endswith("prompt[2].role is 'user' out of place: allowed here is 'assistant'")
    (problem,) = pair_problems(tmp_path, prompt=[{"role": "assistant", "content": "Hi"}])
    assert "prompt[0].role is 'assistant' out of place: allowed here is 'user'" in problem
    (problem,) = pair_problems(tmp_path, chosen=[{"role": "user", "content": "Hi"}])
    assert "chosen[0].role is 'user' out of place: allowed here is 'assistant'" in problem


def test_a_role_that_no_chat_has_is_refused_with_the_three_it_has(tmp_path: Path) -> None:
    (problem,) = pair_problems(tmp_path, prompt=[{"role": "customer", "content": "Hi"}])
    assert "key prompt[0].role: found 'customer'" in problem
    assert "'system', 'user' or 'assistant'" in problem


def test_a_pair_whose_answers_differ_in_blanks_only_is_refused(tmp_path: Path) -> None:
    rejected = [{"role": "assistant", "content": " What is the  order number? "}]
    (problem,) = pair_problems(tmp_path, rejected=rejected)
    assert problem.endswith("chosen equals rejected: a pair needs two different answers")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"id": "a", "id": "b"}', ":1: key id: found twice in one object; allowed is once"),
        ('{"id": NaN}', ":1: found NaN, which JSON does not have; allowed is a finite number"),
        ("[" * 100_000 + "]" * 100_000, ":1: found JSON nested hundreds of levels deep"),
    ],
)
def test_json_that_no_two_programs_read_alike_is_refused(
    tmp_path: Path, row: str, expected: str
) -> None:
    (problem,) = problems_of(lines(tmp_path / "a.jsonl", row))
    assert expected in problem
    (tmp_path / "a.json").write_text(f"[{row}]", "utf-8")
    (problem,) = problems_of(tmp_path / "a.json")
    assert expected.removeprefix(":1") in problem


def test_what_lies_in_a_folder_of_data_and_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone")
    assert problems_of(tmp_path) == (
        f"{tmp_path / 'folder.jsonl'}: cannot be read: Is a directory; allowed is a readable file",
        f"{tmp_path / 'link.jsonl'}: cannot be read: No such file or directory; "
        "allowed is a readable file",
    )
