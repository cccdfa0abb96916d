"""Training, evaluating and serving from the command line, in the order in which a person does."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from stateset_agents import cli
from stateset_agents.cli.exit_codes import ExitCode
from stateset_agents.core.environment import CONVERSATION_CONFIGS
from stateset_agents.evaluation.policies import load_agent
from stateset_agents.tracking.policy_folder import read_policy_folder
from tests.tiny_model import make_tiny_model

COMMAND = [sys.executable, "-m", "stateset_agents.cli"]
ASK = [{"role": "user", "content": "Where is my parcel?"}]

# 4 steps on the conversations that ship with the package
SMALL_RUN: dict[str, Any] = {
    "scenarios": {"sources": ["builtin:customer_service"], "intents": ""},
    "agent": {"max_new_tokens": 6, "temperature": 1.0, "torch_dtype": "float32"},
    "rewards": {
        "weights": {"rubric": 0, "helpfulness": 1, "conciseness": 1, "learned": 0},
        "gates": {"repetition": 0, "fluency": 0, "padding": 0, "finished": 0},
    },
    "train": {
        "num_episodes": 4,
        "num_generations": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "use_lora": True,
        "bf16": False,
        "save_steps": 2,
        "logging_steps": 1,
        "kl_sample_rows": 0,
        "importance_sampling_cap": None,
    },
    "evaluate": {"seeds": [1, 2], "bootstrap_samples": 200},
}


@pytest.fixture
def small(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a configuration of a small run on the 2-layer model."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "config.yaml", base_model={"source": str(tiny_model_dir)})
    return tmp_path


def write_config(path: Path, **change: Any) -> None:
    """`SMALL_RUN` with the sections in `change` laid over it."""
    merged = {**SMALL_RUN}
    for section, values in change.items():
        merged[section] = {**merged.get(section, {}), **values}
    path.write_text(yaml.safe_dump(merged), encoding="utf-8")


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def adapter(folder: str = "checkpoints/final") -> bytes:
    return (Path(folder) / "adapter_model.safetensors").read_bytes()


def test_what_the_guide_types_works_in_an_empty_folder_with_stub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("init", "--path", "./config.yaml") == 0
    assert run("train", "--config", "./config.yaml", "--save", "./checkpoints", "--stub") == 0
    told = capsys.readouterr()
    assert "nothing is learned" in told.err
    assert "nothing learned in 8 steps" in told.out
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == [
        "conversations.md",
        "final",
        "metrics.jsonl",
        "step_5",
        "step_8",
    ]
    rows = rows_of("checkpoints/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))

    assert run("train", "--config", "config.yaml", "--stub", "--resume", "checkpoints/step_5") == 0
    again = rows_of("checkpoints/metrics.jsonl")
    assert [row["step"] for row in again] == list(range(1, 9))

    capsys.readouterr()
    assert run("evaluate", "--checkpoint", "./checkpoints/final", "--message", "Hello!") == 0
    told = capsys.readouterr()
    assert told.out == "Thank you for your message. Could you please tell me your order number?\n"
    assert "its answers are fixed" in told.err
    assert run("compare", "checkpoints/final", "checkpoints/final", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["wins"], found["losses"]) == ("undecided", 0, 0)
    assert found["measures"]["reward"]["difference"] == 0


def test_a_run_with_stub_loads_no_torch(tmp_path: Path) -> None:
    write_config(tmp_path / "config.yaml")
    code = (
        "import sys\nfrom stateset_agents import cli\n"
        "assert cli.main(['train', '--stub']) == 0\n"
        "asked = ['evaluate', '--checkpoint', 'checkpoints/final', '--message', 'Hi']\n"
        "assert cli.main(asked) == 0\n"
        "print([name for name in ('torch', 'transformers', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")


def test_json_says_that_a_stub_learned_nothing(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--stub", "--save", "elsewhere", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["learned"] is False
    assert summary["steps"] == 4
    assert summary["final"] == "elsewhere/final"
    assert not Path("checkpoints").exists()


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which a policy was trained to ./checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    write_config(folder / "config.yaml", base_model={"source": str(tiny_model_dir)})
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run("train", "--config", "./config.yaml", "--save", "./checkpoints") == 0
    finally:
        os.chdir(before)
    return folder


def test_what_was_trained_is_evaluated_and_served(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    greedy = ("--checkpoint", "./checkpoints/final", "--temperature", "0")
    assert run("evaluate", *greedy, "--message", ASK[0]["content"], "--json") == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    with serving("--checkpoint", "./checkpoints/final", "--api-key", "secret") as url:
        body = {"model": "final", "messages": ASK, "temperature": 0}
        refused = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
        assert refused.status_code == 401
        key = {"Authorization": "Bearer secret"}
        served = httpx.post(f"{url}/v1/chat/completions", json=body, headers=key, timeout=60)
    assert served.json()["choices"][0]["message"]["content"] == answer

    # and it is the trained policy, not the model that training started from
    assert answer != asyncio.run(_greedy_answer_of_the_base())


async def _greedy_answer_of_the_base() -> str:
    base = yaml.safe_load(Path("config.yaml").read_text())["base_model"]["source"]
    agent = await load_agent(
        read_policy_folder(base), overrides={**SMALL_RUN["agent"], "temperature": 0.0}
    )
    return await agent.generate_response(ASK)


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """A server in a process of its own, on a port that the system chose."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", *options], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("serving "):
                yield line.split(" at ")[1].split("/v1")[0]
                break
        else:
            raise AssertionError("the server did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def test_a_checkpoint_says_what_it_was_trained_on_and_how_it_speaks(trained: Path) -> None:
    policy = read_policy_folder(trained / "checkpoints/final")
    assert policy.kind == "adapter"
    assert policy.base().is_dir()
    assert policy.agent["max_new_tokens"] == 6


def test_a_whole_model_is_trained_evaluated_and_compared_as_well(
    small: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = yaml.safe_load((trained / "config.yaml").read_text())["base_model"]
    write_config(small / "config.yaml", base_model=base, train={"use_lora": False})
    assert run("train") == 0
    assert read_policy_folder("checkpoints/final").kind == "model"
    capsys.readouterr()
    adapter_folder = str(trained / "checkpoints/final")
    assert run("compare", adapter_folder, "checkpoints/final", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 2 * len(CONVERSATION_CONFIGS["customer_service"]["scenarios"])
    assert found["measures"]["reward"]["low"] <= found["measures"]["reward"]["difference"]


def test_prompts_are_answered_scored_and_written(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    rows = ["Hello", {"id": "second", "messages": ASK}]
    Path("prompts.json").write_text(json.dumps(rows), encoding="utf-8")
    asked = ("evaluate", "--checkpoint", "checkpoints/final", "--input", "prompts.json")
    assert run(*asked, "--output", "out/answers.jsonl", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    answers = rows_of("out/answers.jsonl")
    assert [row["id"] for row in answers] == ["prompt_1", "second"]
    assert answers[0]["messages"] == [{"role": "user", "content": "Hello"}]
    assert set(answers[0]["scores"]) == {"helpfulness", "conciseness", "safety"}
    mean = sum(row["reward"] for row in answers) / 2
    assert summary["mean_reward"] == pytest.approx(mean)
    assert summary["prompts"] == 2

    # the same seed gives the same answers, another seed others
    assert run(*asked, "--json") == 0
    assert [a["answer"] for a in json.loads(capsys.readouterr().out)["answers"]] == [
        row["answer"] for row in answers
    ]
    assert run(*asked, "--seed", "5", "--json") == 0
    assert [a["answer"] for a in json.loads(capsys.readouterr().out)["answers"]] != [
        row["answer"] for row in answers
    ]


def test_without_a_message_lines_are_answered_one_by_one_and_scored(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--stub") == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\nMy order?\n/quit\nnever read\n"))
    assert run("evaluate", "--checkpoint", "checkpoints/final") == 0
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "Thank you for your message. Could you please tell me your order number?",
        "I understand. Let me look into this for you.",
    ]
    assert told.err.count("  reward ") == 2


def test_a_chat_is_kept_as_a_file_that_can_be_imported(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--stub") == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("Old\n/reset\nHello\nMy order?\n"))
    assert run("chat", "--checkpoint", "checkpoints/final", "--save", "talk.jsonl") == 0
    assert run("data", "import", "openai-chat", "talk.jsonl", "own.jsonl", "--topic", "mine") == 0
    scenario = json.loads(Path("own.jsonl").read_text())
    assert scenario["user_responses"] == ["Hello", "My order?"]
    assert scenario["topic"] == "mine"
    write_config(small / "config.yaml", scenarios={"sources": ["own.jsonl"]})
    capsys.readouterr()
    assert run("validate", "--json") == 0
    assert json.loads(capsys.readouterr().out)["data"]["scenarios to train on"] == 1


def test_ctrl_c_saves_a_checkpoint_that_ends_as_if_nothing_had_happened(
    small: Path, tiny_model_dir: Path
) -> None:
    base = {"source": str(tiny_model_dir)}
    write_config(small / "config.yaml", base_model=base, train={"num_episodes": 12})
    log = small / "log"
    with log.open("w") as file:
        process = subprocess.Popen([*COMMAND, "train", "--save", "cut"], stderr=file, stdout=file)
    deadline = time.monotonic() + 120
    while "step 1/12" not in log.read_text() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == ExitCode.INTERRUPTED, log.read_text()
    told = log.read_text()
    assert "stopping after this step" in told
    saved = told.split("--resume ")[1].strip()
    assert (small / saved / "state.json").is_file()
    assert not (small / "cut/final").exists()
    assert f"stateset-agents train --config config.yaml --resume {saved}" in told

    assert run("train", "--config", "config.yaml", "--resume", saved) == 0
    assert run("train", "--config", "config.yaml", "--save", "whole") == 0
    assert adapter("cut/final") == adapter("whole/final")
    rows = [row["step"] for row in rows_of("cut/metrics.jsonl")]
    assert rows == list(range(1, 13))


def test_what_a_search_found_is_taken_where_it_is_asked_for_and_told_where_not(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def steps(*arguments: str) -> int:
        assert run("train", "--stub", "--json", *arguments) == 0
        told = capsys.readouterr()
        assert ("data/tuned.yaml holds what a search found" in told.err) == (not arguments)
        return int(json.loads(told.out)["steps"])

    (small / "data").mkdir()
    found = small / "data" / "tuned.yaml"
    found.write_text(yaml.safe_dump({"agent": {}, "train": {"gradient_accumulation_steps": 2}}))
    assert steps() == 4
    assert steps("--tuned", "data/tuned.yaml") == 2
    found.write_text("train: []")
    assert run("train", "--stub", "--tuned", "data/tuned.yaml") == 1
    assert "needed is a file with the sections agent and train" in capsys.readouterr().err


def test_a_second_ctrl_c_does_not_wait_for_the_step(small: Path) -> None:
    write_config(small / "config.yaml", train={"num_generations": 4000})  # a step takes seconds
    log = small / "log"
    with log.open("w") as file:
        process = subprocess.Popen([*COMMAND, "train", "--stub"], stderr=file, stdout=file)
    for line in ("nothing is learned", "stopping after this step"):
        deadline = time.monotonic() + 120
        while line not in log.read_text() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2 if line == "nothing is learned" else 0)  # into the first step
        process.send_signal(signal.SIGINT)
    assert process.wait(120) == ExitCode.INTERRUPTED
    told = log.read_text()
    assert "stopped at once, in step 1 of 4\nnothing was saved yet" in told
    assert "Traceback" not in told


def test_a_checkpoint_of_a_run_with_other_settings_is_refused(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--stub") == 0
    write_config(small / "config.yaml", train={"seed": 7})
    assert run("train", "--stub", "--resume", "checkpoints/step_2") == 1
    assert "checkpoints/step_2 belongs to another run" in capsys.readouterr().err


def test_every_problem_of_a_configuration_is_told_at_once(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(small / "config.yaml", train={"seed": "x", "num_episodez": 3}, agent={"top_p": 2})
    assert run("train", "--stub") == 1
    told = capsys.readouterr().err
    for key in ("train.seed: found 'x'", "train.num_episodez: unknown key", "agent.top_p: found 2"):
        assert key in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train", "--config", "no.yaml"), "no.yaml: no such file"),
        (("train", "--stub", "--resume", "no/step_1"), "no/step_1: there is no such folder"),
        (("evaluate", "--checkpoint", "no"), "no: there is nothing here"),
        (("evaluate", "--checkpoint", "config.yaml"), "config.yaml: there is a file here"),
        (("evaluate", "--checkpoint", "empty"), "empty holds no policy (found: nothing)"),
        (("evaluate", "--checkpoint", "foreign"), "foreign holds no policy (found: model.bin)"),
        (("evaluate", "--checkpoint", "lost"), "lost holds an adapter, and its base model is not"),
        (("serve", "--checkpoint", "no", "--port", "0"), "no: there is nothing here"),
        (("chat", "--checkpoint", "empty"), "empty holds no policy"),
        (("compare", "empty", "no"), "empty holds no policy"),
        (("evaluate", "--checkpoint", "x", "--input", "no.json"), "no.json: there is no such file"),
        (("evaluate", "--checkpoint", "x", "--input", "bad.jsonl"), "bad.jsonl:2: malformed JSON"),
        (("evaluate", "--checkpoint", "x", "--input", "bad.jsonl"), "bad.jsonl:3: key prompt: unk"),
        (("evaluate", "--checkpoint", "x", "--input", "nil.jsonl"), "nil.jsonl: the file is empty"),
        (("data", "import", "csv", "no.csv", "out.jsonl"), "no.csv: no such file"),
        (("init", "--path", "config.yaml"), "config.yaml: is there already"),
        (("train", "--stub", "--save", "config.yaml"), "name another place"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_exit_code_1(
    small: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    for folder in ("empty", "foreign", "lost"):
        Path(folder).mkdir()
    Path("foreign/model.bin").touch()
    lost = {"peft_type": "LORA", "base_model_name_or_path": "/nowhere"}
    Path("lost/adapter_config.json").write_text(json.dumps(lost))
    Path("bad.jsonl").write_text('"fine"\n{"message": \n{"prompt": "Hello"}\n')
    Path("nil.jsonl").touch()
    assert run(*arguments) == ExitCode.FAILED
    shown = capsys.readouterr()
    assert "error: " in shown.err
    assert told in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--no-such-option"),
        ("evaluate",),
        ("evaluate", "--checkpoint", "x", "--message", "a", "--input", "b.json"),
        ("evaluate", "--checkpoint", "x", "--message", " "),
        ("evaluate", "--checkpoint", "x", "--output", "b.jsonl"),
        ("serve", "--port", "70000"),
        ("serve", "--port", "many"),
        ("serve", "--follow", "-1"),
        ("serve", "--follow", "5", "--checkpoint", "x"),
        ("serve", "--follow", "5", "--model", "models:/support-agent/3"),
        ("serve", "--model", "models:/support-agent/3", "--checkpoint", "x"),
        ("data", "import", "excel", "a", "b"),
        ("compare", "one"),
    ],
)
def test_wrong_arguments_are_exit_code_2(small: Path, arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == ExitCode.WRONG_ARGUMENTS


def test_a_reader_that_closes_the_pipe_ends_a_command_without_a_word(small: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "validate", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == ExitCode.FAILED


def test_an_empty_list_of_scenarios_is_told_with_its_file(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("none.jsonl").touch()
    write_config(small / "config.yaml", scenarios={"sources": ["none.jsonl", "builtin:cooking"]})
    assert run("train", "--stub") == 1
    told = capsys.readouterr().err
    assert "none.jsonl: the file is empty" in told
    assert "found 'builtin:cooking'; allowed are builtin:customer_service" in told


def test_validate_tells_problems_of_data_model_rewards_and_pairs_together(
    small: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(
        small / "config.yaml",
        rewards={"weights": {"rubric": 1, "helpfulness": 0, "conciseness": 0, "learned": 0.5}},
        train={"warm_start_steps": 2, "max_prompt_length": 9999},
        base_model={"source": str(tiny_model_dir)},
    )
    assert run("validate", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["valid"] is False
    told = "\n".join(report["problems"])
    assert "train.max_prompt_length: found 9999, allowed: below 2048, the positions of" in told
    count = len(CONVERSATION_CONFIGS["customer_service"]["scenarios"])
    assert (
        f"rewards.weights.rubric is 1.0, but {count} of the {count} scenarios have no rubric"
        in told
    )
    assert "data/preferences/train.jsonl: no such file" in told
    assert "there is no reward model at data/reward_model" in told


def test_the_checkpoint_of_a_stub_is_no_start_for_a_model(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--stub") == 0
    for named in ("checkpoints/step_2", "checkpoints"):
        assert run("train", "--resume", named) == 1
        assert "is of a run with --stub, which has no weights" in capsys.readouterr().err
    assert run("evaluate", "--checkpoint", "checkpoints/step_2") == 1
    assert "is a training checkpoint" in capsys.readouterr().err
    assert run("evaluate", "--checkpoint", "checkpoints") == 1
    assert "give checkpoints/final" in capsys.readouterr().err


def test_an_adapter_on_a_model_of_another_size_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_tiny_model(tmp_path / "other", hidden=32)
    final = str(trained / "checkpoints/final")
    asked = ("evaluate", "--checkpoint", final, "--base-model", str(other), "--message", "Hi")
    assert run(*asked) == 1
    assert f"the adapter does not belong to {other}: it changes" in capsys.readouterr().err


def test_a_port_in_use_is_told_before_the_checkpoint_is_looked_at(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert run("serve", "--checkpoint", "no", "--port", port) == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in capsys.readouterr().err


def test_what_is_looked_at_while_it_trains_are_the_scenarios_of_the_split_validation(
    small: Path, tiny_model_dir: Path
) -> None:
    rows = [
        {"id": f"s{n}", "topic": "orders", "intent": f"i{n}", "user_responses": ["Hi"] * n}
        for n in (1, 2, 3)
    ]
    Path("s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = ("train", "validation", "heldout")
    entries = {f"i{n}": {"topic": "orders", "split": split} for n, split in enumerate(splits, 1)}
    Path("intents.yaml").write_text(yaml.safe_dump({"intents": entries}))
    write_config(
        small / "config.yaml",
        base_model={"source": str(tiny_model_dir)},
        scenarios={"sources": ["s.jsonl"], "intents": "intents.yaml"},
        train={"eval_steps": 4},
    )
    assert run("train") == 0
    steps = rows_of("checkpoints/metrics.jsonl")
    # the one of the split has two turns, the one that is trained on has one
    assert steps[-1]["eval/rollout/answers_mean"] == 2
    assert steps[-1]["rollout/answers_mean"] == 1
