"""Which scenarios a run plays: the same from the command line as in the retraining line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stateset_agents import run_config
from stateset_agents.core.environment import CONVERSATION_CONFIGS
from stateset_agents.data.config import DataConfig
from stateset_agents.data.scenario_set import (
    make_environment,
    read_scenario_set,
    to_evaluate_on,
    to_train_on,
)
from stateset_agents.exceptions import DataError
from tasks import validate_scenarios

ROOT = Path(__file__).parents[2]
INTENTS = """\
intents:
  parcel: {topic: orders, split: train}
  refund: {topic: orders, split: heldout}
"""


def row(name: str, intent: str) -> str:
    return json.dumps({"id": name, "topic": "orders", "intent": intent, "user_responses": ["Hi"]})


@pytest.fixture
def own(tmp_path: Path) -> DataConfig:
    """Two scenarios of two intents in two splits."""
    (tmp_path / "s.jsonl").write_text(row("a", "parcel") + "\n" + row("b", "refund") + "\n")
    (tmp_path / "intents.yaml").write_text(INTENTS)
    return DataConfig(sources=(str(tmp_path / "s.jsonl"),), intents=str(tmp_path / "intents.yaml"))


def test_the_line_and_the_command_line_train_on_the_same_scenarios_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    section = run_config.load("params.yaml").scenarios
    of_the_line, _, _ = validate_scenarios._read_all(section, tmp_path)
    expected = [scenario for _, scenario in of_the_line if scenario.split == "train"]
    assert to_train_on(read_scenario_set(section)) == expected
    assert len(expected) > 100


def test_intents_decide_what_is_trained_on_and_what_is_evaluated_on(own: DataConfig) -> None:
    scenarios = read_scenario_set(own)
    assert [one.id for one in to_train_on(scenarios)] == ["a"]
    assert [one.id for one in to_evaluate_on(scenarios)] == ["b"]


def test_without_a_file_of_intents_all_are_trained_and_evaluated_on(own: DataConfig) -> None:
    own.intents = ""
    scenarios = read_scenario_set(own)
    assert to_train_on(scenarios) == to_evaluate_on(scenarios) == scenarios
    assert len(scenarios) == 2


@pytest.mark.parametrize("domain", CONVERSATION_CONFIGS)
def test_what_ships_with_the_package_can_be_played(domain: str) -> None:
    scenarios = read_scenario_set(DataConfig(sources=(f"builtin:{domain}",)))
    shipped = CONVERSATION_CONFIGS[domain]["scenarios"]
    assert [one.id for one in scenarios] == [one["id"] for one in shipped]
    environment = make_environment(scenarios)
    assert environment.max_turns == 2 * max(len(one["user_responses"]) for one in shipped)


def test_all_problems_of_all_sources_are_told_at_once(tmp_path: Path, own: DataConfig) -> None:
    config = DataConfig(
        sources=("builtin:cooking", str(tmp_path / "no.jsonl")), intents=str(tmp_path / "no.yaml")
    )
    with pytest.raises(DataError) as caught:
        read_scenario_set(config)
    told = caught.value.problems
    assert len(told) == 3
    assert "found 'builtin:cooking'; allowed are builtin:customer_service" in told[0]
    assert "no.jsonl: no such file" in told[1]
    assert 'or set scenarios.intents to ""' in told[2]


def test_a_split_without_scenarios_is_told(own: DataConfig) -> None:
    heldout = [one for one in read_scenario_set(own) if one.split == "heldout"]
    with pytest.raises(DataError, match="none of the 1 scenarios has the split train"):
        to_train_on(heldout)
