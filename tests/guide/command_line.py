"""`stateset-agents` commands of a page: run in this process, a server in one of its own.

Owns what the tests run smaller than a page writes it: numbers in the configuration that `init`
wrote, and the words below. The commands and their flags are the page's.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

from stateset_agents import cli

# What a starter configuration says -> what the tests let it say, by section and key.
CONFIG_SCALES: Mapping[str, Mapping[str, Any]] = {
    "base_model": {"source": "$STATESET_MODELS_DIR/llama-7b"},
    "agent": {"max_new_tokens": 6},
    "train": {"num_episodes": 8, "num_generations": 2, "save_steps": 1},
    "evaluate": {"scenarios_per_intent": 1},
}
# Words of a command: of a run of two steps there is no 200th checkpoint.
WORDS = {"./checkpoints/step_200": "./checkpoints/step_1"}
# What is typed where a command asks.
TYPED = "Hello!\n/quit\n"
SECONDS_TO_START = 120


def run(words: Sequence[str]) -> None:
    """Carry out one command after `stateset-agents`.

    Raises:
        AssertionError: it did not end with 0, or its server does not answer.
    """
    words = [WORDS.get(word, word) for word in words]
    _scale_configuration(words)
    if words[0] == "serve":
        _serve(words)
        return
    with mock.patch("sys.stdin", io.StringIO(TYPED)):
        try:
            code: object = cli.main(words)
        except SystemExit as ended:
            code = ended.code
    assert code in (0, None), (words, code)


def _scale_configuration(words: Sequence[str]) -> None:
    """Before a model is trained by it; the stub takes no time, and needs no smaller run."""
    if words[0] != "train" or "--stub" in words or "--config" not in words:
        return
    path = Path(words[words.index("--config") + 1])
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section, settings in CONFIG_SCALES.items():
        for key, value in settings.items():
            small = os.path.expandvars(value) if isinstance(value, str) else value
            document.setdefault(section, {})[key] = small
    path.write_text(yaml.safe_dump(document), encoding="utf-8")


def _serve(words: Sequence[str]) -> None:
    """Start it on a port that is free, ask it one question, and end it."""
    words = list(words)
    if "--port" in words:
        words[words.index("--port") + 1] = str(_free_port())
    port = words[words.index("--port") + 1]
    key = words[words.index("--api-key") + 1] if "--api-key" in words else None
    command = [sys.executable, "-m", "stateset_agents.cli", *words]
    with Path("serve.log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        answer = _ask_when_ready(server, f"http://127.0.0.1:{port}/v1", key)
        assert isinstance(answer["choices"][0]["message"]["content"], str)
        if key is not None:
            _assert_refused(f"http://127.0.0.1:{port}/v1")
    finally:
        server.terminate()
        server.wait(timeout=30)


def _ask_when_ready(
    server: subprocess.Popen[bytes], address: str, key: str | None
) -> dict[str, Any]:
    last = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < last:
        assert server.poll() is None, Path("serve.log").read_text(encoding="utf-8")
        try:
            model = _request(f"{address}/models", key)["data"][0]["id"]
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
            continue
        question = {"role": "user", "content": "Hello!"}
        return _request(f"{address}/chat/completions", key, model=model, messages=[question])
    raise AssertionError(f"no answer after {SECONDS_TO_START} s")


def _assert_refused(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        _request(f"{address}/models", None)
    refused.value.close()
    assert refused.value.code == 401


def _request(url: str, key: str | None, **body: Any) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
