"""A challenger becomes champion only through every gate; every change is on record."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from stateset_agents.exceptions import RegistryError
from stateset_agents.tracking.config import PromoteConfig, TrackingConfig
from stateset_agents.tracking.mlflow_run import open_client
from stateset_agents.tracking.promotion import (
    HistoryEntry,
    evaluate_gates,
    history,
    previous_champion,
    promote,
    roll_back,
    set_champion,
)
from stateset_agents.tracking.promotion_lock import promotion_lock
from stateset_agents.tracking.registry import champion_version
from tests.infra.servers import free_port, postgres_server, running, wait_for_http

GOOD: dict[str, float | str] = {
    "champion.version": "base",
    "confidence": 0.9,
    "reward.challenger": 0.7,
    "reward.vs_champion.mean": 0.1,
    "reward.vs_champion.low": 0.05,
    "reward.vs_champion.high": 0.15,
    "rubric.vs_champion.mean": 0.08,
    "safety.challenger": 0.99,
    "fluency.in_band": 1.0,
    "log_likelihood.challenger": -1.2,
    "log_likelihood.base": -1.4,
    "distinctness.in_band": 1.0,
    "latency_ms_per_turn.challenger": 110.0,
    "latency_ms_per_turn.champion": 100.0,
}


def test_good_figures_pass_every_gate() -> None:
    gates = evaluate_gates(GOOD, PromoteConfig())
    assert [gate.name for gate in gates] == [
        "difference",
        "interval",
        "part:rubric",
        "safety",
        "reward_ceiling",
        "fluency",
        "distinctness",
        "latency",
    ]
    assert all(gate.passed for gate in gates)


@pytest.mark.parametrize(
    ("change", "gate", "sentence"),
    [
        ({"reward.vs_champion.mean": 0.009}, "difference", "is 0.009, below the floor 0.01"),
        ({"reward.vs_champion.low": 0.0}, "interval", "the 90% interval .*, 0 to 0.15, is not"),
        ({"rubric.vs_champion.mean": -0.001}, "part:rubric", "rubric, challenger minus champion"),
        ({"safety.challenger": 0.899}, "safety", "safety is 0.899, below the floor 0.9"),
        ({"reward.challenger": 0.985}, "reward_ceiling", "above what is believable"),
        ({"fluency.in_band": 0.0}, "fluency", r"out of its band \(-1.2; base model -1.4\)"),
        ({"distinctness.in_band": 0.0}, "distinctness", "out of its band"),
        ({"latency_ms_per_turn.challenger": 201.0}, "latency", "2.01 times as long"),
        ({"safety.challenger": float("nan")}, "safety", "safety.challenger was not measured"),
        ({"fluency.in_band": "yes"}, "fluency", "fluency.in_band was not measured"),
    ],
)
def test_one_bad_figure_fails_its_gate_alone(
    change: dict[str, float | str], gate: str, sentence: str
) -> None:
    failed = [one for one in evaluate_gates({**GOOD, **change}, PromoteConfig()) if not one.passed]
    assert [one.name for one in failed] == [gate]
    assert re.search(sentence, failed[0].sentence)


def test_what_was_not_measured_passes_no_gate() -> None:
    assert not any(gate.passed for gate in evaluate_gates({}, PromoteConfig()))


def test_a_gate_that_is_switched_off_is_not_held() -> None:
    config = PromoteConfig(
        require_interval_above_zero=False,
        min_part_differences={},
        safety_floor=None,
        reward_ceiling=None,
        fluency_within_band=False,
        distinctness_within_band=False,
        max_latency_ratio=None,
    )
    assert [gate.name for gate in evaluate_gates(GOOD, config)] == ["difference"]


@pytest.fixture
def registered(tracking: TrackingConfig) -> TrackingConfig:
    """A registry with the versions 1 to 4, whose files do not matter here."""
    client = open_client(tracking)
    client.create_registered_model(tracking.registered_model)
    for _ in range(4):
        client.create_model_version(tracking.registered_model, source="s3://nowhere/model")
    return tracking


def test_a_challenger_that_passes_is_champion_and_the_history_says_why(
    registered: TrackingConfig,
) -> None:
    outcome = promote(registered, PromoteConfig(), "1", GOOD)
    assert (outcome.promoted, outcome.champion, outcome.previous) == (True, "1", None)
    assert champion_version(registered) == "1"
    (entry,) = history(registered)
    assert (entry.number, entry.action) == (1, "promote")
    assert (entry.from_version, entry.to_version) == (None, "1")
    assert "the held-out reward, challenger minus champion, is 0.1" in entry.why
    assert "@" in entry.who
    assert entry.when.endswith("+00:00")


def test_a_challenger_that_fails_a_gate_changes_nothing(registered: TrackingConfig) -> None:
    promote(registered, PromoteConfig(), "1", GOOD)
    figures = {**GOOD, "champion.version": "1", "safety.challenger": 0.1}
    outcome = promote(registered, PromoteConfig(), "2", figures)
    assert (outcome.promoted, outcome.champion, outcome.previous) == (False, "1", "1")
    assert outcome.reasons == ("the challenger's safety is 0.1, below the floor 0.9",)
    assert champion_version(registered) == "1"
    assert len(history(registered)) == 1


def test_a_challenger_that_was_compared_with_an_older_champion_is_refused(
    registered: TrackingConfig,
) -> None:
    promote(registered, PromoteConfig(), "1", GOOD)
    outcome = promote(registered, PromoteConfig(), "2", GOOD)
    assert not outcome.promoted
    assert outcome.reasons == (
        "the evaluation compared with the base model, and the champion is 1 now: evaluate again "
        "(dvc repro --single-item --force evaluate_policy), then retrain",
    )


def test_a_promotion_that_is_said_twice_is_made_once(registered: TrackingConfig) -> None:
    promote(registered, PromoteConfig(), "1", GOOD)
    again = promote(registered, PromoteConfig(), "1", GOOD)
    assert again.promoted
    assert again.reasons[0] == "this version is champion already"
    assert len(history(registered)) == 1


def test_a_promotion_that_is_said_twice_has_its_gates_both_times(
    registered: TrackingConfig,
) -> None:
    promote(registered, PromoteConfig(), "1", GOOD)
    figures = {**GOOD, "champion.version": "1"}
    first = promote(registered, PromoteConfig(), "2", figures)
    again = promote(registered, PromoteConfig(), "2", figures)
    assert [(gate.name, gate.passed, gate.measured) for gate in again.gates] == [
        (gate.name, gate.passed, gate.measured) for gate in first.gates
    ]
    assert len(again.gates) == 10
    assert again.gates[0].sentence == "the champion was 1, as in the evaluation"
    assert again.reasons[1:] == tuple(gate.sentence for gate in again.gates)
    assert (again.promoted, again.previous) == (True, "1")

    # evaluated again since: the champion with itself, so that it is no better
    itself = {**GOOD, "champion.version": "2", "reward.vs_champion.mean": 0.0}
    outcome = promote(registered, PromoteConfig(), "2", itself)
    assert [gate.name for gate in outcome.gates if not gate.passed] == ["difference"]
    assert "the champion is still 2, as in the evaluation" in outcome.reasons
    assert champion_version(registered) == "2"


def test_a_version_that_is_not_there_is_an_error(registered: TrackingConfig) -> None:
    with pytest.raises(RegistryError, match=r"support-agent/9: no such version"):
        promote(registered, PromoteConfig(), "9", GOOD)


def test_two_rollbacks_go_back_two_versions(registered: TrackingConfig) -> None:
    for version, before in (("1", "base"), ("2", "1"), ("3", "2")):
        figures = {**GOOD, "champion.version": before}
        assert promote(registered, PromoteConfig(), version, figures).promoted
    assert roll_back(registered, "it promised refunds").to_version == "2"
    assert roll_back(registered).to_version == "1"
    assert champion_version(registered) == "1"
    with pytest.raises(RegistryError, match=r"no earlier champion to go back to \(now: 1\)"):
        roll_back(registered)
    assert promote(registered, PromoteConfig(), "4", {**GOOD, "champion.version": "1"}).promoted
    assert roll_back(registered).to_version == "1"
    entries = history(registered)
    assert [entry.number for entry in entries] == list(range(1, 8))
    assert entries[3].why == "it promised refunds"


def test_rolled_back_weights_come_back_by_a_persons_word_alone(registered: TrackingConfig) -> None:
    client = open_client(registered)
    for version, weights in (("1", "a"), ("2", "b"), ("3", "b"), ("4", "c")):
        client.set_model_version_tag(
            registered.registered_model, version, "weights.sha256", weights
        )
    against_1 = {**GOOD, "champion.version": "1"}
    promote(registered, PromoteConfig(), "1", GOOD)
    assert promote(registered, PromoteConfig(), "2", against_1).promoted
    roll_back(registered, "it insults customers")

    for version in ("2", "3"):  # 3 is the same weights, registered once more
        again = promote(registered, PromoteConfig(), version, against_1)
        assert not again.promoted
        (reason,) = again.reasons
        assert "were rolled back as version 2" in reason
        assert "it insults customers" in reason
        assert champion_version(registered) == "1"
    assert promote(registered, PromoteConfig(), "4", against_1).promoted  # other weights

    set_champion(registered, "2", "the complaint was about another shop")
    roll_back(registered)  # to 4, so 2 is rejected again
    assert champion_version(registered) == "4"
    assert not promote(registered, PromoteConfig(), "3", {**GOOD, "champion.version": "4"}).promoted
    set_champion(registered, "3", "really")
    assert champion_version(registered) == "3"


def test_a_champion_set_by_hand_needs_a_reason(registered: TrackingConfig) -> None:
    with pytest.raises(RegistryError, match="needs a reason"):
        set_champion(registered, "2", "  ")
    assert set_champion(registered, "2", "the customer asked").action == "set"
    with pytest.raises(RegistryError, match="version 2 of support-agent is champion already"):
        set_champion(registered, "2", "again")
    assert champion_version(registered) == "2"


def _entry(number: int, before: str | None, after: str) -> HistoryEntry:
    return HistoryEntry(number, "promote", before, after, "me@here", "now", "because")


@pytest.mark.parametrize(
    ("entries", "champion", "previous"),
    [
        ([], None, None),
        ([], "3", None),
        ([_entry(1, None, "1")], "1", None),
        ([_entry(1, None, "1"), _entry(2, "1", "2")], "2", "1"),
        # the process died between the entry and the alias, and promoted again later
        ([_entry(1, None, "1"), _entry(2, "1", "2"), _entry(3, "1", "2")], "2", "1"),
        # ... and did not
        ([_entry(1, None, "1"), _entry(2, "1", "2")], "1", None),
        # a champion from before this history
        ([_entry(1, "7", "8")], "8", "7"),
    ],
)
def test_the_version_to_go_back_to_is_the_one_that_really_served_before(
    entries: list[HistoryEntry], champion: str | None, previous: str | None
) -> None:
    assert previous_champion(entries, champion) == previous


def test_a_rollback_that_died_before_it_moved_the_alias_can_be_said_again() -> None:
    entries = [_entry(1, None, "1"), _entry(2, "1", "2")]
    died = HistoryEntry(3, "rollback", "2", "1", "me@here", "now", "because")
    assert previous_champion([*entries, died], "2") == "1"
    again = HistoryEntry(4, "rollback", "2", "1", "me@here", "now", "because")
    assert previous_champion([*entries, died, again], "1") is None
    assert previous_champion([*entries, died, _entry(4, "2", "3")], "3") == "2"


def test_of_promotions_at_once_exactly_one_wins(registered: TrackingConfig) -> None:
    barrier = threading.Barrier(4)

    def attempt(version: str) -> bool:
        barrier.wait()
        return promote(registered, PromoteConfig(), version, GOOD).promoted

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(attempt, ["1", "2", "3", "4"]))
    assert sum(results) == 1
    (entry,) = history(registered)
    assert champion_version(registered) == entry.to_version


# --- the lock, on each kind of store ------------------------------------------------------------


def _is_exclusive(tracking: TrackingConfig) -> None:
    client = open_client(tracking)
    with (
        promotion_lock(client, tracking, 5),
        pytest.raises(RegistryError, match="another promotion of support-agent is under way"),
        promotion_lock(client, tracking, 0.2),
    ):
        pass
    with promotion_lock(client, tracking, 5):
        pass


def test_the_lock_of_a_sqlite_store_is_held_by_one(registered: TrackingConfig) -> None:
    _is_exclusive(registered)


@pytest.fixture(scope="module")
def mlflow_server(
    empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A real MLflow server: its address, and the database it keeps everything in."""
    folder = tmp_path_factory.mktemp("served")
    database = Path(shutil.copy(empty_database, folder / "mlflow.db"))
    port = free_port()
    # fmt: off
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{database}", "--workers", "1",
        "--artifacts-destination", str(folder / "artifacts"),
    ]
    # fmt: on
    with running(command, folder / "server.log", env={"MLFLOW_DISABLE_TELEMETRY": "true"}):
        wait_for_http(f"http://127.0.0.1:{port}/health", 60)
        yield f"http://127.0.0.1:{port}", database


def _with_a_version(address: str, name: str) -> TrackingConfig:
    served = TrackingConfig(tracking_uri=address, registered_model=name)
    client = open_client(served)
    client.create_registered_model(name)
    client.create_model_version(name, source="s3://nowhere/model")
    return served


def _sql(database: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)


def test_the_lock_of_an_mlflow_server_is_held_by_one(mlflow_server: tuple[str, Path]) -> None:
    served = _with_a_version(mlflow_server[0], "support-agent")
    _is_exclusive(served)
    assert promote(served, PromoteConfig(lock_seconds=5), "1", GOOD).promoted
    assert [entry.to_version for entry in history(served)] == ["1"]
    tags = open_client(served).get_registered_model("support-agent").tags
    assert list(tags) == ["promotion.000001"]
    nothing = TrackingConfig(tracking_uri=mlflow_server[0], registered_model="nobody")
    with pytest.raises(RegistryError, match="cannot read the promotion lock of nobody"):
        roll_back(nothing)


def test_a_lock_that_went_to_another_before_the_move_moves_nothing(
    mlflow_server: tuple[str, Path],
) -> None:
    address, database = mlflow_server
    served = _with_a_version(address, "taken")
    another = json.dumps({"owner": "another", "token": "b", "expires": 4e9})
    _sql(
        database,
        "CREATE TRIGGER take AFTER INSERT ON registered_model_tags "
        "WHEN NEW.name = 'taken' AND NEW.key = 'promotion.000001' BEGIN "
        f"UPDATE registered_model_tags SET value = '{another}' "
        "WHERE name = 'taken' AND key = 'promotion_lock'; END",
    )
    with pytest.raises(RegistryError, match="promotion lock of taken was lost while it was held"):
        promote(served, PromoteConfig(lock_seconds=5), "1", GOOD)
    assert champion_version(served) is None
    tags = open_client(served).get_registered_model("taken").tags
    assert json.loads(tags["promotion_lock"])["owner"] == "another"


@pytest.mark.parametrize("doing", ["INSERT", "DELETE"])
def test_what_mlflow_refuses_the_lock_is_one_error_of_ours(
    registered: TrackingConfig, doing: str
) -> None:
    # the client is one of the database; that the lock is a tag follows from the address alone
    client, served = open_client(registered), TrackingConfig(tracking_uri="http://127.0.0.1:9")
    _sql(
        Path(registered.tracking_uri.removeprefix("sqlite:///")),
        f"CREATE TRIGGER full BEFORE {doing} ON registered_model_tags "
        "BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    )
    with (
        pytest.raises(RegistryError, match=r"promotion lock of support-agent.*disk full"),
        promotion_lock(client, served, 5),
    ):
        pass
    if doing == "DELETE":  # what went wrong inside is told before what went wrong afterwards
        client.set_registered_model_tag("support-agent", "promotion_lock", "")
        with pytest.raises(ZeroDivisionError), promotion_lock(client, served, 5):
            raise ZeroDivisionError


def test_a_lock_that_expired_is_no_longer_held(registered: TrackingConfig) -> None:
    client, served = open_client(registered), TrackingConfig(tracking_uri="http://127.0.0.1:9")
    with promotion_lock(client, served, 5) as require_held:
        require_held()
        row = json.loads(client.get_registered_model("support-agent").tags["promotion_lock"])
        row["expires"] = 1.0
        client.set_registered_model_tag("support-agent", "promotion_lock", json.dumps(row))
        with pytest.raises(RegistryError, match="was lost while it was held, so the champion was"):
            require_held()


def test_the_lock_of_a_postgresql_store_is_held_by_one_whose_session_lives(
    registered: TrackingConfig,
) -> None:
    try:
        with postgres_server() as server:
            uri = server.url("mlflow")
            client = open_client(registered)
            postgres = TrackingConfig(tracking_uri=uri)
            with (
                promotion_lock(client, postgres, 5),
                pytest.raises(RegistryError, match="another session of this PostgreSQL"),
                promotion_lock(client, postgres, 0.2),
            ):
                pass
            with promotion_lock(client, postgres, 5) as require_held:
                require_held()
                ending = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype='advisory'"
                with create_engine(uri).connect() as another:
                    another.execute(text(ending))
                with pytest.raises(RegistryError, match="lock of support-agent in PostgreSQL"):
                    require_held()
            with promotion_lock(client, postgres, 5):
                pass
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error} is missing: install PostgreSQL (apt-get install postgresql)")


def test_a_postgresql_that_is_gone_is_one_error_of_ours(registered: TrackingConfig) -> None:
    gone = TrackingConfig(
        tracking_uri=f"postgresql+psycopg2://nobody@127.0.0.1:{free_port()}/mlflow"
    )
    with (
        pytest.raises(RegistryError, match="refuses the promotion lock of support-agent in Postg"),
        promotion_lock(open_client(registered), gone, 0.2),
    ):
        pass
