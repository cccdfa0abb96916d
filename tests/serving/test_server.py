"""A real server on a free port answers what OpenAI's clients send, and refuses by name what it
cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stateset_agents import cli
from stateset_agents.core.agent import AgentConfig, MultiTurnAgent
from stateset_agents.exceptions import ModelSourceError, ServingError
from stateset_agents.inference.loading import load_tokenizer
from stateset_agents.serving import serve
from stateset_agents.serving.config import ServeConfig
from stateset_agents.serving.server import bind, listen
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.mlflow_run import start_run
from stateset_agents.tracking.registry import describe_lineage, register_version

KEY = "secret-key"
SYSTEM_PROMPT = "You are kind."
ASK = {"model": "support-agent", "messages": [{"role": "user", "content": "Where is my parcel?"}]}

_PROGRAM = """
import sys
from stateset_agents.serving import serve
from stateset_agents.serving.config import ServeConfig
from stateset_agents.tracking.config import TrackingConfig
config = ServeConfig(port=int(sys.argv[2]), max_body_bytes=20_000, max_messages=5)
serve(config, TrackingConfig(tracking_uri=sys.argv[1]))
"""


def _free_port() -> int:
    with contextlib.closing(bind("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def tracking(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    """A registry whose champion is the tiny model."""
    folder = tmp_path_factory.mktemp("registry")
    config = TrackingConfig(
        tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=str(folder / "artifacts")
    )
    generation = {"system_prompt": SYSTEM_PROMPT, "temperature": 0.0, "max_new_tokens": 8}
    with start_run(config, "register") as run:
        version = register_version(config, run, tiny_model_dir, generation=generation)
    run.client.set_registered_model_alias(version.name, "champion", version.version)
    return config


@contextlib.contextmanager
def _serving(tracking: TrackingConfig, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = _free_port()
    environment = {**os.environ, "STATESET_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _PROGRAM, tracking.tracking_uri, str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            time.sleep(0.2)
        assert process.poll() is None, log.read_text()
        yield process, url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(
    tracking: TrackingConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process that serves the champion, and its address."""
    with _serving(tracking, tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture
def client(server: tuple[subprocess.Popen[bytes], str]) -> Iterator[httpx.Client]:
    """A client of the server, with the right key."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server[1], headers=headers, timeout=60) as one:
        yield one


def _post(client: httpx.Client, **change: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={**ASK, **change})


def test_an_answer_is_the_agents_own_and_says_its_version(
    client: httpx.Client, tiny_model_dir: Path
) -> None:
    response = _post(client)
    assert response.status_code == 200
    body = response.json()

    config = AgentConfig(
        model_name=str(tiny_model_dir),
        system_prompt=SYSTEM_PROMPT,
        temperature=0.0,
        max_new_tokens=8,
    )

    async def ask_the_agent() -> str:
        agent = MultiTurnAgent(config)
        await agent.initialize()
        try:
            return await agent.generate_response(ASK["messages"])  # type: ignore[arg-type]
        finally:
            await agent.engine.aclose()

    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": asyncio.run(ask_the_agent()),
    }
    assert body["object"] == "chat.completion"
    assert body["model"] == response.headers["x-model-version"] == "support-agent/1"
    assert body["system_fingerprint"].startswith("support-agent-1-")
    prompt = load_tokenizer(tiny_model_dir).render(
        [{"role": "system", "content": SYSTEM_PROMPT}, *ASK["messages"]]  # type: ignore[list-item]
    )
    usage = body["usage"]
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert body["choices"][0]["finish_reason"] == "length"
    assert usage["completion_tokens"] == 8


def test_an_answer_names_the_weights_whose_origins_the_registry_keeps(
    client: httpx.Client,
    tracking: TrackingConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = _post(client).json()
    lineage = describe_lineage(tracking, f"models:/{body['model']}")
    name, version = lineage["name"], lineage["version"]
    assert body["system_fingerprint"] == f"{name}-{version}-{lineage['weights_sha256'][:12]}"

    (tmp_path / "answer.json").write_text(json.dumps(body))
    (tmp_path / "config.yaml").write_text(json.dumps({"tracking": tracking.model_dump()}))
    asked = ["lineage", str(tmp_path / "answer.json"), "--config", str(tmp_path / "config.yaml")]
    assert cli.main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == lineage["runs"]


def test_the_readmes_request_is_answered(
    server: tuple[subprocess.Popen[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATESET_API_KEY", KEY)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^curl (?:.*\\\n)*.*$", readme, re.M)
    words = shlex.split(os.path.expandvars(command))
    headers = dict(words[i + 1].split(": ", 1) for i, word in enumerate(words) if word == "-H")
    (address,) = [word for word in words if word.startswith("http")]
    response = httpx.post(
        address.replace("http://127.0.0.1:8000", server[1]),
        headers=headers,
        content=words[words.index("-d") + 1],
        timeout=60,
    )
    assert response.status_code == 200, response.text
    assert response.json()["model"] == "support-agent/1"


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(
    client: httpx.Client,
) -> None:
    def sample(seed: int) -> str:
        body = _post(client, temperature=1.0, seed=seed, max_tokens=16).json()
        return str(body["choices"][0]["message"]["content"])

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)


def test_the_answer_ends_before_a_stop_text(client: httpx.Client) -> None:
    whole = _post(client, max_tokens=30).json()["choices"][0]["message"]["content"]
    stop = whole[5:8]
    choice = _post(client, max_tokens=30, stop=stop).json()["choices"][0]
    assert choice["message"]["content"] == whole.partition(stop)[0]
    assert choice["finish_reason"] == "stop"


def test_a_streamed_answer_comes_in_pieces_and_is_the_same_answer(client: httpx.Client) -> None:
    at_once = _post(client, temperature=1, seed=3).json()["choices"][0]
    body = {**ASK, "temperature": 1, "seed": 3, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines]
    pieces = [choice["delta"].get("content", "") for choice in choices]
    assert len(pieces) > 3
    assert "".join(pieces) == at_once["message"]["content"]
    assert choices[-1]["finish_reason"] == at_once["finish_reason"]


def test_a_client_that_leaves_does_not_keep_the_server_busy(client: httpx.Client) -> None:
    body = {**ASK, "max_tokens": 1000, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert next(response.iter_lines()).startswith("data: ")
    assert _post(client).status_code == 200


def test_fields_that_ask_for_nothing_and_contents_in_parts_are_fine(client: httpx.Client) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Where is my parcel?"}]}]
    plain = _post(client).json()["choices"]
    neutral = {"user": "me", "frequency_penalty": 0, "n": 1, "stream": False, "logit_bias": None}
    assert _post(client, messages=parts, **neutral).json()["choices"] == plain
    empty = {"refusal": None, "annotations": [], "audio": None, "tool_calls": None, "name": None}
    sent_back = [{**ASK["messages"][0], **empty}]
    assert _post(client, messages=sent_back).json()["choices"] == plain


@pytest.mark.parametrize(
    ("change", "status", "param", "message"),
    [
        ({"stream_options": {}}, 400, "body", "stream_options needs stream to be true"),
        ({"n": 2}, 400, "n", "Input should be 1"),
        ({"tools": [{"type": "function"}]}, 400, "tools", "does not support this field"),
        ({"presence_penalty": 1}, 400, "presence_penalty", "does not support this field"),
        ({"temprature": 1}, 400, "temprature", "does not support this field"),
        ({"temperature": 3}, 400, "temperature", "less than or equal to 2"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 5000}, 400, "max_tokens", "at most 1024 are allowed"),
        ({"max_tokens": 1000, "messages": [{"role": "user", "content": "zq " * 2000}]},
         400, "messages", "context"),
        ({"messages": []}, 400, "messages", "at least 1 item"),
        ({"messages": [ASK["messages"][0]] * 6}, 400, "messages", "at most 5 are allowed"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role", "'system'"),
        ({"messages": [{"role": "user", "content": "x", "name": "ann"}]},
         400, "messages.0.name", "does not support this field"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
         400, "messages.0.tool_calls", "does not support this field"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content", "Field required"),
        ({"stop": ["a", ""]}, 400, "stop", "none of them empty"),
        ({"model": "gpt-4o"}, 404, "model", "'gpt-4o' is not served here; use 'support-agent'"),
        ({"messages": [{"role": "user", "content": "x" * 30_000}]}, 413, None, "20,000 bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_openais_form(
    change: dict[str, Any], status: int, param: str | None, message: str, client: httpx.Client
) -> None:
    response = _post(client, **change)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert message in error["message"]
    assert error["param"] == param
    assert response.headers["x-model-version"] == "support-agent/1"


def test_a_body_that_is_no_json_and_a_path_that_is_not_there_are_errors_too(
    client: httpx.Client,
) -> None:
    headers = {"Content-Type": "application/json"}
    broken = client.post("/v1/chat/completions", content=b'{"model":', headers=headers)
    assert broken.status_code == 400
    error = broken.json()["error"]
    assert (error["message"], error["param"]) == (
        "body: not JSON: Expecting value at character 9",
        "body",
    )
    half = {**ASK, "messages": [{"role": "user", "content": "\ud83d"}]}  # JSON can write it
    broken = client.post("/v1/chat/completions", content=json.dumps(half), headers=headers)
    assert (broken.status_code, broken.json()["error"]["param"]) == (400, "messages.0.content")
    assert "found half of a surrogate pair" in broken.json()["error"]["message"]
    absent = client.get("/v1/embeddings")
    assert (absent.status_code, absent.json()["error"]["type"]) == (404, "not_found_error")
    assert client.get("/v1/chat/completions").status_code == 405
    assert absent.headers["x-model-version"] == "support-agent/1"


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}]
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions"])
def test_without_the_key_nothing_is_answered_but_health(
    headers: dict[str, str], path: str, client: httpx.Client
) -> None:
    method = "GET" if path == "/v1/models" else "POST"
    response = httpx.request(method, client.base_url.join(path), headers=headers, json=ASK)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert httpx.get(client.base_url.join("/health")).json() == {"status": "ok"}
    assert httpx.get(client.base_url.join("/ready")).json()["status"] == "ready"


def test_the_models_page_lists_the_version_in_service(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["version"]) == ("support-agent", "model", "1")
    assert client.get("/v1/models/support-agent").json() == model
    assert client.get("/v1/models/support-agent/1").json() == model
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_requests_at_once_are_each_answered_as_if_alone(client: httpx.Client) -> None:
    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(
            base_url=client.base_url, headers=client.headers, timeout=60
        ) as many:
            bodies = [
                {**ASK, "temperature": 1.0, "seed": seed, "max_tokens": 10} for seed in range(6)
            ]
            posts = [many.post("/v1/chat/completions", json=body) for body in bodies]
            answers = await asyncio.gather(*posts)
        return [one.json()["choices"][0]["message"]["content"] for one in answers]

    together = asyncio.run(ask_all())
    alone = [
        _post(client, temperature=1.0, seed=seed, max_tokens=10).json()["choices"][0]["message"][
            "content"
        ]
        for seed in range(6)
    ]
    assert together == alone


def test_a_port_in_use_is_an_error_before_a_model_is_loaded(tmp_path: Path) -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as other:
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServingError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            serve(ServeConfig(port=port), TrackingConfig(), folder=tmp_path / "no_such_folder")


def test_of_two_servers_that_start_at_once_the_second_is_told_that_the_port_is_in_use() -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with contextlib.closing(bind("127.0.0.1", port)) as second:  # while neither listens
            listen(first)
            with pytest.raises(ServingError, match=rf"127\.0\.0\.1:{port}: Address already in"):
                listen(second)


def test_a_registry_without_a_champion_says_what_to_do(tmp_path: Path) -> None:
    empty = TrackingConfig(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ServingError, match=r"no version of 'support-agent' is in service yet; run"):
        serve(ServeConfig(port=0), empty)
    with pytest.raises(ModelSourceError, match="no_such_folder: there is nothing here"):
        serve(ServeConfig(port=0), empty, folder=tmp_path / "no_such_folder")


def test_a_key_that_was_not_filled_in_does_not_open_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATESET_API_KEY", " ")
    with pytest.raises(ServingError, match="the API key is empty; give STATESET_API_KEY or"):
        serve(ServeConfig(port=0), TrackingConfig(), folder=tmp_path)


# The last one, because it ends the server that the others share.
def test_a_server_that_is_told_to_stop_answers_what_is_under_way_and_ends_well(
    server: tuple[subprocess.Popen[bytes], str], client: httpx.Client
) -> None:
    process, _url = server
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(_post(client, max_tokens=1000)))
    thread.start()
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    thread.join()
    assert answers[0].status_code == 200
    assert answers[0].json()["usage"]["completion_tokens"] > 8
