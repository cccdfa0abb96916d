"""Files as people have them become scenarios and pairs, or one error that names every bad row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stateset_agents import cli
from stateset_agents.data import importers
from stateset_agents.data.readers import read_preferences, read_scenarios
from stateset_agents.exceptions import DataError


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_openai_chat_keeps_the_user_turns_the_answers_and_the_system_text(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "chat.jsonl",
        {
            "messages": [
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "Where is it?"}]},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "tool_call_id": "1", "content": "in Leeds"},
                {"role": "assistant", "content": "In Leeds.", "weight": 1},
                {"role": "user", "content": "Thanks"},
                {"role": "assistant", "content": "You are welcome."},
            ],
            "tools": [],
        },
    )
    (scenario,) = importers.import_openai_chat(path, topic="delivery", intent="where")
    assert scenario.id == "chat_00001"
    assert (scenario.topic, scenario.intent, scenario.context) == ("delivery", "where", "Be kind.")
    assert scenario.user_responses == ("Where is it?", "Thanks")
    assert scenario.metadata == {
        "reference_answers": ["In Leeds.", "You are welcome."],
        "tool_messages": 2,
    }


def test_openai_preferences_become_pairs(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "dpo.jsonl",
        {
            "input": {"messages": [{"role": "user", "content": "Hi"}], "tools": []},
            "preferred_output": [{"role": "assistant", "content": "Hello!"}],
            "non_preferred_output": [{"role": "assistant", "content": "What?"}],
        },
    )
    (pair,) = importers.import_openai_preferences(path)
    assert [pair.prompt[0].content, pair.chosen[0].content, pair.rejected[0].content] == [
        "Hi",
        "Hello!",
        "What?",
    ]


def test_sharegpt_arrays_with_odd_speakers_and_a_greeting_are_read(tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    rows = [
        {
            "id": "abc",
            "system": "Be brief.",
            "conversations": [
                {"from": "gpt", "value": "Welcome!"},
                {"from": "human", "value": "One"},
                {"from": "human", "value": "and two"},
                {"from": "chatgpt", "value": "Three"},
                {"from": "Human", "value": "Four"},
            ],
        },
        {"id": None, "items": [{"from": "user", "value": "Alone"}]},
    ]
    path.write_text(json.dumps(rows), "utf-8")
    first, second = importers.import_sharegpt(path)
    assert first.user_responses == ("One\nand two", "Four")
    assert first.context == "Be brief."
    assert first.metadata == {"reference_answers": ["Three"], "greeting": "Welcome!"}
    assert second.id == "share_00001"


ANSWERS = {
    "chosen": [{"role": "assistant", "content": "Good."}],
    "rejected": [{"role": "assistant", "content": "Bad."}],
}
QUESTION = [{"role": "user", "content": "Well?"}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": QUESTION, **ANSWERS},
        {"chosen": QUESTION + ANSWERS["chosen"], "rejected": QUESTION + ANSWERS["rejected"]},
        {"prompt": "Well?", "chosen": " Good.", "rejected": " Bad."},
        {
            "chosen": "\n\nHuman: Well?\n\nAssistant: Good.",
            "rejected": "\n\nHuman: Well?\n\nAssistant: Bad.",
        },
        {"prompt": "\n\nHuman: Well?\n\nAssistant:", "chosen": "Good.", "rejected": "Bad."},
    ],
    ids=["explicit", "implicit", "plain text", "transcript", "transcript prompt"],
)
def test_every_trl_format_gives_the_same_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    path = jsonl(tmp_path / "trl.jsonl", {**row, "score_chosen": 9})
    (pair,) = importers.import_trl_preferences(path)
    assert [(m.role, m.content) for m in (*pair.prompt, *pair.chosen, *pair.rejected)] == [
        ("user", "Well?"),
        ("assistant", "Good."),
        ("assistant", "Bad."),
    ]
    assert pair.metadata == {"score_chosen": 9}


def test_a_table_of_messages_is_grouped_by_conversation(tmp_path: Path) -> None:
    path = tmp_path / "messages.csv"
    path.write_bytes(
        "\ufeffConversation ID;Role;Content\r\n"
        '7;Customer;"Hello;\r\nanyone?"\r\n'
        "7;Agent;Yes.\r\n"
        ";;\r\n"
        "7;Customer;Great\r\n"
        "8;Customer;Bye\r\n".encode()
    )
    seven, eight = importers.import_csv(path)
    assert (seven.id, seven.user_responses) == ("7", ("Hello;\r\nanyone?", "Great"))
    assert seven.metadata["reference_answers"] == ["Yes."]
    assert eight.user_responses == ("Bye",)


def test_a_table_of_conversations_orders_its_columns_by_number(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    turns = [f"turn {n}" for n in range(1, 11)]
    header = ",".join(["intent", *(f"user_{n}" for n in range(10, 0, -1))])
    path.write_text(f"{header}\nlate,{','.join(reversed(turns))}\n", "utf-8")
    (scenario,) = importers.import_csv(path, topic="delivery")
    assert list(scenario.user_responses) == turns
    assert (scenario.topic, scenario.intent) == ("delivery", "late")


def test_a_table_of_pairs_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected\nHi,Hello.,What?\n", "utf-8")
    (pair,) = importers.import_csv_preferences(path)
    assert pair.chosen[0].content == "Hello."


def test_all_bad_rows_are_in_one_error_with_their_lines(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "bad.jsonl",
        {"messages": [{"role": "user", "content": "ok"}]},
        {"messages": [{"role": "alien", "content": "hm"}, {"role": "user", "content": " "}]},
        {"text": "no messages"},
        {"messages": [{"role": "assistant", "content": "only me"}]},
    )
    with pytest.raises(DataError) as caught:
        importers.import_openai_chat(path)
    texts = caught.value.problems
    assert len(texts) == 4
    assert texts[0].startswith(f"{path}:2: key messages[0]: role 'alien' is not known; allowed are")
    assert texts[1] == (
        f"{path}:2: key messages[1]: found an empty user turn; allowed is some text"
    )
    assert texts[2].startswith(f"{path}:3: key messages: found null; allowed is a list of messages")
    assert texts[3].startswith(f"{path}:4: key user_responses")


@pytest.mark.parametrize(
    ("importer", "text", "expected"),
    [
        ("csv", "a,b\n1,2\n", "found the columns a, b; allowed are conversation_id, role, content"),
        ("csv", "user_1,user_2\nx\n", ":2: found 1 cells; allowed are 2"),
        ("csv", "user_1\n", "no rows below the header"),
        ("csv-preferences", "prompt,chosen\na,b\n", "column rejected: missing"),
        ("trl-preferences", '{"chosen": "a"}\n', "key rejected: missing field"),
        ("trl-preferences", '{"chosen": "a", "rejected": "b"}\n', "begin differently"),
        ("sharegpt", '{"chat": []}\n', "found the keys chat, allowed is a list of messages"),
        ("openai-chat", "[1]\n", "found list; allowed is a JSON object"),
        ("openai-chat", "", "no rows"),
    ],
)
def test_a_file_of_another_shape_is_refused(
    tmp_path: Path, importer: str, text: str, expected: str
) -> None:
    path = tmp_path / ("file.csv" if importer.startswith("csv") else "file.jsonl")
    path.write_text(text, "utf-8")
    with pytest.raises(DataError) as caught:
        importers.IMPORTERS[importer](path)
    assert expected in str(caught.value)


def test_a_table_in_latin1_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes(b"user_1\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"latin.csv:2: wrong encoding: .*CSV UTF-8"):
        importers.import_csv(path)


def test_the_command_writes_what_our_readers_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = jsonl(tmp_path / "c.jsonl", {"messages": [{"role": "user", "content": "Hi"}]})
    pairs = jsonl(tmp_path / "p.jsonl", {"prompt": "Hi", "chosen": "Yes", "rejected": "No"})
    assert (
        cli.main(["data", "import", "openai-chat", str(chats), str(tmp_path / "out" / "s.jsonl")])
        == 0
    )
    assert (
        cli.main(
            ["data", "import", "trl-preferences", str(pairs), str(tmp_path / "out2" / "p.jsonl")]
        )
        == 0
    )
    assert read_scenarios(tmp_path / "out")[0].user_responses == ("Hi",)
    assert read_preferences(tmp_path / "out2")[0].rejected[0].content == "No"
    assert (
        cli.main(["data", "import", "sharegpt", str(chats) + "x", str(tmp_path / "no.jsonl")]) == 1
    )
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "no.jsonl").exists()


def test_rows_of_an_array_without_ids_get_one_each(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Where is it?"}]}
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([row, row]))
    assert [one.id for one in importers.import_openai_chat(path)] == ["chats_00000", "chats_00001"]


def test_what_is_wrong_with_an_answer_is_told_with_its_file_and_line(tmp_path: Path) -> None:
    good = {"prompt": "Hello?", "chosen": "Hello.", "rejected": "No."}
    wrong = [
        {**good, "rejected": [{"role": "narrator", "content": "x"}]},
        {**good, "chosen": ["Hello."]},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in wrong))
    with pytest.raises(DataError) as caught:
        importers.import_trl_preferences(path)
    first, second = caught.value.problems
    assert first.startswith(f"{path}:1: key rejected[0]: role 'narrator' is not known; allowed are")
    assert second == f'{path}:2: key chosen: found ["Hello."]; allowed is a list of messages'
