"""One retraining and one DVC at a time in a checkout; a dead process holds nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import repository
from stateset_agents.exceptions import PipelineError
from tasks import entry, history
from tests.pipeline import project

HOLD_A_LOCK = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that is a checkout as far as locks go."""
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


@pytest.fixture
def other_process(checkout: Path) -> Iterator[subprocess.Popen[str]]:
    """A living process that holds DVC's lock in the checkout."""
    lock = checkout / ".dvc/tmp/lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_LOCK, str(lock)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    lock.write_text(f" {process.pid}\n")
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_dvc_lock_of_a_living_process_is_one_clear_message(
    checkout: Path, other_process: subprocess.Popen[str]
) -> None:
    with pytest.raises(PipelineError) as caught:
        repository.require_idle_dvc(checkout)
    message = str(caught.value)
    assert message.startswith(
        f"DVC is at work in this checkout: process {other_process.pid} ({sys.executable}"
    )
    assert message.endswith(
        "holds .dvc/tmp/lock. Wait until it has ended, or end it; nothing was started or changed"
    )


def test_the_flow_ends_at_once_and_non_zero_where_dvc_is_at_work(
    checkout: Path, other_process: subprocess.Popen[str]
) -> None:
    done = project.run(
        checkout,
        "-m",
        "flows.retrain",
        PYTHONPATH=os.pathsep.join([str(project.ROOT), str(project.ROOT / "components")]),
    )
    assert done.returncode == 1
    assert done.stdout.startswith("error: DVC is at work in this checkout: process")
    assert "Traceback" not in done.stdout


def test_a_dvc_lock_that_its_process_left_behind_is_no_hindrance(
    checkout: Path, other_process: subprocess.Popen[str]
) -> None:
    other_process.kill()
    other_process.wait()
    repository.require_idle_dvc(checkout)


def test_a_stage_that_a_living_process_runs_is_one_clear_message(checkout: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        table = {"write": {"data/policy": {"pid": process.pid, "cmd": "dvc repro"}}, "read": {}}
        (checkout / ".dvc/tmp/rwlock").write_text(json.dumps(table))
        with pytest.raises(PipelineError, match=rf"process {process.pid} .*\.dvc/tmp/rwlock"):
            repository.require_idle_dvc(checkout)
        process.communicate(b"\n")
    repository.require_idle_dvc(checkout)
    assert not (checkout / ".dvc/tmp/rwlock").exists()


def test_a_lock_whose_process_id_went_to_somebody_else_is_taken_away(checkout: Path) -> None:
    table = checkout / ".dvc/tmp/rwlock"
    info = {"pid": os.getpid(), "cmd": "dvc repro"}
    table.write_text(json.dumps({"write": {"data/policy": info}, "read": {}}))
    os.utime(table, (0, 0))  # written before this process was there
    repository.require_idle_dvc(checkout)
    assert not table.exists()


def test_a_second_retraining_is_refused_and_told_who_runs_the_first(checkout: Path) -> None:
    with repository.hold_checkout(checkout):
        with (
            pytest.raises(PipelineError) as caught,
            repository.hold_checkout(checkout),
        ):
            pass
        assert f"a retraining runs in this checkout already: process {os.getpid()}, since" in str(
            caught.value
        )
    with repository.hold_checkout(checkout):
        pass


def test_a_step_ends_soon_after_the_process_that_started_it_was_killed(tmp_path: Path) -> None:
    step = (
        "import os, time\n"
        "from tasks import entry\n"
        "entry.end_with_parent(0.05)\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(600)\n"
    )
    starter = "import subprocess, sys\nsubprocess.run(['sh', '-c', sys.argv[1] + '; true'])"
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, f'{sys.executable} -c "{step}"'],
        cwd=project.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert parent.stdout.read() == ""  # closed by the child's end, and not before
    parent.stdout.close()
    assert not _is_running(child)


def test_a_flow_that_is_told_to_end_ends_what_it_started() -> None:
    program = (
        "import atexit, time\n"
        "from flows import environment\n"
        "atexit.register(print, 'ended the server', flush=True)\n"  # as Prefect does
        "environment.end_well_when_told()\n"
        "print('started', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=project.ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.terminate()
        assert process.stdout.read() == "ended the server\n"
    assert process.returncode == 128 + signal.SIGTERM


def _is_running(process: int) -> bool:
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize(
    ("code", "told", "by_itself"),
    [
        ("from stateset_agents.exceptions import DataError; raise DataError('row 3: bad')",
         "step validate_scenarios: row 3: bad", True),
        ("raise OSError(28, 'No space left on device', 'data/policy')",
         "No space left on device: 'data/policy'; make room and start again", True),
        ("raise OSError(30, 'Read-only file system', 'data/policy')",
         "Read-only file system: 'data/policy'; give this user the right to it", True),
        ("raise KeyError('x')", "step validate_scenarios: it crashed with exit code 1", False),
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL (out of memory, perhaps)", False),
    ],
)  # fmt: skip
def test_how_a_step_failed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str, by_itself: bool
) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (tmp_path / "params.yaml").write_text("train: {}\n")
    (tmp_path / "step.py").write_text(
        "from tasks import entry\n"
        f"def run(config):\n    {code}\n"
        "if __name__ == '__main__':\n    entry.main(run)\n"
    )
    (tmp_path / "dvc.yaml").write_text(
        f"stages:\n  validate_scenarios:\n    cmd: {sys.executable} step.py\n    deps: [step.py]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(project.ROOT))
    with pytest.raises(repository.StepFailedError) as caught:
        repository.reproduce(tmp_path, "validate_scenarios")
    assert told in str(caught.value)
    assert caught.value.by_itself is by_itself


def test_a_record_of_a_step_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = history.StepRecord("train_policy", 10.0, 2.5, 1, "no such file")
    history.append(tmp_path, record)
    assert history.read(tmp_path) == [record]
    assert history.last(tmp_path, "train_policy", since=10.0) == record
    assert history.last(tmp_path, "train_policy", since=10.1) is None


def test_a_record_that_a_full_disk_cut_short_stops_no_later_start(tmp_path: Path) -> None:
    record = history.StepRecord("train_policy", 10.0, 2.5, 0)
    history.append(tmp_path, record)
    path = tmp_path / ".stateset/steps.jsonl"
    path.write_text(path.read_text() + '{"step": "evalu')
    assert history.read(tmp_path) == [record]
    history.append(tmp_path, record)
    assert history.read(tmp_path) == [record, record]


def test_quieten_leaves_what_a_person_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    for name in set(entry.QUIET) - {"DO_NOT_TRACK"}:
        monkeypatch.delenv(name, raising=False)
    entry.quieten()
    assert os.environ["DO_NOT_TRACK"] == "0"
    assert os.environ["DVC_NO_ANALYTICS"] == "true"


def test_a_temporary_server_that_does_not_start_in_time_is_one_clear_message(
    checkout: Path,
) -> None:
    done = project.run(
        checkout,
        "-m",
        "flows.retrain",
        PYTHONPATH=os.pathsep.join([str(project.ROOT), str(project.ROOT / "components")]),
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="1",
        PREFECT_HOME=str(checkout / "prefect"),
    )
    assert done.returncode == 1
    assert "error: Prefect's temporary server did not start within 1 s" in done.stdout
    assert "Traceback" not in done.stdout
