"""A server that follows the registry answers with what the alias names, and with what it has while
that cannot be had."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI

from stateset_agents.exceptions import ServingError
from stateset_agents.serving import serve
from stateset_agents.serving.app import create_app
from stateset_agents.serving.config import ServeConfig
from stateset_agents.serving.follow import Follower
from stateset_agents.serving.served_model import load_served_model
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.mlflow_run import open_client, start_run
from stateset_agents.tracking.registry import champion_address, register_version
from tests.tiny_model import make_tiny_model

ASK: dict[str, Any] = {
    "model": "support-agent",
    "messages": [{"role": "user", "content": "Where is my parcel?"}],
    "temperature": 0,
    "max_tokens": 6,
}


@dataclass(frozen=True)
class Registry:
    """Versions 1 and 2, with different weights, and 3, whose weights are cut short."""

    tracking: TrackingConfig
    runs: dict[str, str]

    def promote(self, version: str) -> None:
        client = open_client(self.tracking)
        client.set_registered_model_alias("support-agent", "champion", version)


@pytest.fixture(scope="module")
def registry(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("registry")
    tracking = TrackingConfig(
        tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=str(folder / "artifacts")
    )
    with start_run(tracking, "register") as run:
        first = register_version(tracking, run, tiny_model_dir, generation={"temperature": 0.0})
    client = open_client(tracking)
    stored = Path(urlsplit(client.get_model_version("support-agent", "1").source).path)
    other = make_tiny_model(folder / "other", seed=1)
    runs = {"1": first.run_id}
    for version in ("2", "3"):
        copy = shutil.copytree(stored, folder / version)
        weights = copy / "artifacts/policy/model.safetensors"
        whole = (other / "model.safetensors").read_bytes()
        weights.write_bytes(whole if version == "2" else whole[: len(whole) // 2])
        with start_run(tracking, f"register {version}") as run:
            client.create_model_version("support-agent", source=str(copy), run_id=run.run_id)
            runs[version] = run.run_id
    return Registry(tracking, runs)


@pytest.fixture
def followed(registry: Registry) -> tuple[FastAPI, Follower]:
    """An application that began with version 1, and what follows the alias for it."""
    registry.promote("1")
    model = asyncio.run(load_served_model(registry.tracking))
    app = create_app(model, ServeConfig())
    reference = champion_address(registry.tracking)
    return app, Follower(app.state.in_service, registry.tracking, reference, 30)


async def ask(app: FastAPI) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.post("/v1/chat/completions", json=ASK)


def said(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


async def test_a_promotion_and_its_rollback_are_served_without_a_restart(
    registry: Registry, followed: tuple[FastAPI, Follower], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stateset_agents")
    app, follower = followed
    first = await ask(app)
    assert first.json()["model"] == first.headers["x-model-version"] == "support-agent/1"
    assert first.headers["x-model-run-id"] == registry.runs["1"]
    await follower.look()  # nothing has moved
    assert (await ask(app)).json()["system_fingerprint"] == first.json()["system_fingerprint"]

    registry.promote("2")
    await follower.look()
    second = await ask(app)
    assert second.json()["model"] == second.headers["x-model-version"] == "support-agent/2"
    assert second.headers["x-model-run-id"] == registry.runs["2"]
    assert said(second) != said(first)
    assert f"support-agent/2 (run {registry.runs['2']}) answers from now on" in caplog.text

    registry.promote("1")
    await follower.look()
    third = await ask(app)
    assert (third.json()["model"], said(third)) == ("support-agent/1", said(first))
    await app.state.in_service.aclose()


async def test_a_request_is_answered_to_its_end_by_the_version_that_it_met(
    registry: Registry, followed: tuple[FastAPI, Follower]
) -> None:
    app, follower = followed
    expected = said(await ask(app))
    with app.state.in_service.used() as before:  # as a request that is under way
        registry.promote("2")
        await follower.look()
        assert (await ask(app)).json()["model"] == "support-agent/2"
        answer = await before.agent.generate_response(ASK["messages"])
        assert answer.startswith(expected)
    await asyncio.sleep(0.0)
    with pytest.raises(Exception, match="closed"):  # nobody needs it any more
        await before.agent.generate_response(ASK["messages"])
    await app.state.in_service.aclose()


async def test_a_broken_version_leaves_the_old_one_in_service_and_is_tried_less_and_less(
    registry: Registry, followed: tuple[FastAPI, Follower], caplog: pytest.LogCaptureFixture
) -> None:
    app, follower = followed
    registry.promote("3")

    async def tries(looks: int) -> int:
        caplog.clear()
        for _ in range(looks):
            await follower.look()
        return len([one for one in caplog.records if "cannot take over" in one.message])

    assert await tries(1) == 1
    assert "support-agent/3 cannot take over" in caplog.text
    assert "support-agent/1 stays in service" in caplog.text
    assert "tried again in 60 s" in caplog.text
    assert (await ask(app)).json()["model"] == "support-agent/1"
    # looks 2 to 5: it is passed over, tried, passed over twice
    assert await tries(4) == 1
    registry.promote("2")
    await follower.look()
    assert (await ask(app)).json()["model"] == "support-agent/2"
    await app.state.in_service.aclose()


async def test_a_registry_that_does_not_answer_is_told_once_and_the_service_goes_on(
    registry: Registry, followed: tuple[FastAPI, Follower], caplog: pytest.LogCaptureFixture
) -> None:
    app, follower = followed
    open_client(registry.tracking).delete_registered_model_alias("support-agent", "champion")
    await follower.look()
    await follower.look()
    told = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert len(told) == 1
    assert told[0].startswith("support-agent/1 stays in service: models:/support-agent@champion")
    assert (await ask(app)).status_code == 200
    await app.state.in_service.aclose()


async def test_it_looks_again_and_again_until_it_is_cancelled(
    registry: Registry, followed: tuple[FastAPI, Follower]
) -> None:
    app, _ = followed
    reference = champion_address(registry.tracking)
    follower = Follower(app.state.in_service, registry.tracking, reference, 0.01)
    following = asyncio.create_task(follower.run())
    for version in ("2", "1"):
        registry.promote(version)
        while app.state.in_service.current.version != version:
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await app.state.in_service.aclose()


@pytest.mark.slow
def test_the_command_serves_a_promotion_without_a_restart(registry: Registry) -> None:
    registry.promote("1")
    options = ("--model", champion_address(registry.tracking), "--follow", "0.5", "--port", "0")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry.tracking.tracking_uri}
    environment.pop("STATESET_API_KEY", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "stateset_agents.cli", "serve", *options],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        url = next(line for line in lines if line.startswith("serving ")).split()[3]
        assert httpx.post(f"{url}/chat/completions", json=ASK).json()["model"].endswith("/1")
        registry.promote("2")
        next(line for line in lines if "answers from now on" in line)
        assert httpx.post(f"{url}/chat/completions", json=ASK).json()["model"].endswith("/2")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_version_is_served_by_its_number(registry: Registry) -> None:
    model = asyncio.run(load_served_model(registry.tracking, reference="models:/support-agent/2"))
    assert (model.full_name, model.run_id) == ("support-agent/2", registry.runs["2"])
    assert model.answers_to("support-agent/2")
    assert not model.answers_to("support-agent@champion")


def test_what_cannot_move_cannot_be_followed(tmp_path: Path) -> None:
    config = ServeConfig(port=0, follow_seconds=5)
    with pytest.raises(ServingError, match="a folder cannot be followed: leave --follow out"):
        serve(config, TrackingConfig(), folder=tmp_path)
    with pytest.raises(ServingError, match="names one version for good"):
        serve(config, TrackingConfig(), reference="models:/support-agent/3")
