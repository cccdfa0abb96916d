"""The command line, as a person calls it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stateset_agents import cli, doctor
from stateset_agents.cli.exit_codes import ExitCode
from stateset_agents.run_config import load, starter
from stateset_agents.training.config import TrainingConfig

COMMANDS = (
    *("doctor", "init", "validate", "train", "evaluate", "compare", "chat", "serve", "data"),
    "lineage",
)


def test_help_names_every_command_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(command in text for command in COMMANDS)
    for code in ExitCode:
        assert f" {code.value} " in text


def test_the_installed_command_starts() -> None:
    command = Path(sys.executable).parent / "stateset-agents"
    done = subprocess.run([str(command), "--help"], capture_output=True, text=True, check=True)
    assert "stateset-agents" in done.stdout


def test_the_module_is_the_command_too() -> None:
    command = [sys.executable, "-m", "stateset_agents.cli", "no_such_command"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2


def test_init_writes_a_configuration_that_loads(tmp_path: Path) -> None:
    assert cli.main(["init", "--path", str(tmp_path / "config.yaml")]) == 0
    assert load(tmp_path / "config.yaml") == starter()


def test_an_error_is_one_line_on_standard_error_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("", encoding="utf-8")
    assert cli.main(["init", "--path", str(path)]) == 1
    shown = capsys.readouterr()
    assert shown.err == f"error: {path}: is there already; give another path, or --force\n"
    assert shown.out == ""


def test_an_unknown_command_is_exit_code_2() -> None:
    assert cli.main(["fly"]) == 2


def test_doctor_finds_this_installation_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert report.endswith("ready\n")
    for subject in ("Python", "dependencies", "memory", "disk", "GPU", "bfloat16", "port 8000"):
        assert subject in report


def test_doctor_names_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        check = doctor.check_port("serving", port)
    assert check.verdict is doctor.Verdict.WARNING
    assert str(check) == (
        f"warning  port {port:<9} is in use, and the serving would take it; "
        "end what holds it, or give another port"
    )


@pytest.mark.parametrize(
    ("requirement", "told"),
    [
        ("pydantic>=2", None),
        ("pydantic<2", "is outside <2"),
        ("no-such-package-here>=1", "is not installed"),
        ("no-such-package-here>=1; extra == 'serve'", None),
        ("pydantic<2; extra == 'serve'", "is outside <2"),
    ],
)
def test_doctor_holds_what_is_installed_against_its_bounds(
    requirement: str, told: str | None
) -> None:
    check = doctor.check_dependency(requirement)
    assert (check is None) == (told is None)
    if check is not None and told is not None:
        assert told in check.found
        assert check.verdict is doctor.Verdict.PROBLEM


def test_doctor_holds_what_the_configured_model_needs_against_the_machine(
    tiny_model_dir: Path,
) -> None:
    config = TrainingConfig()
    enough = doctor.check_memory(tiny_model_dir, config, gib=8.0)
    assert enough.verdict is doctor.Verdict.OK
    assert enough.found.startswith(f"8.0 GiB; training {tiny_model_dir} (0 million parameters)")
    scarce = doctor.check_memory(tiny_model_dir, config, gib=0.5)
    assert scarce.verdict is doctor.Verdict.PROBLEM
    assert "train.use_lora" in scarce.advice
    unknown = doctor.check_memory(None, config, gib=4.0)
    assert unknown.verdict is doctor.Verdict.WARNING


def test_doctor_writes_its_checks_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] is True
    assert {"verdict", "subject", "found", "advice"} == set(report["checks"][0])
