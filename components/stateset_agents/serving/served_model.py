"""The model that is in service: which version it is, and how it answers one request.

Owns loading (from the registry or a folder) and the translation of a request into a call of the
agent. It does not know HTTP.
"""

from __future__ import annotations

import copy
import secrets
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.core.recorder import EpisodeRecorder, recording
from stateset_agents.exceptions import ServingError
from stateset_agents.inference.engine import FinishReason
from stateset_agents.tracking.config import TrackingConfig

if TYPE_CHECKING:
    from stateset_agents.core.agent import MultiTurnAgent
    from stateset_agents.serving.protocol import ChatRequest


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A version in service. Handlers take it once per request, so that another can take its place.

    Attributes:
        agent: how it answers.
        name: the registered model, or the folder.
        version: its number in the registry, or the first digits of the weights' SHA-256.
        weights_sha256: of all files of the model.
        created: Unix time of loading.
    """

    agent: MultiTurnAgent
    name: str
    version: str
    weights_sha256: str
    created: int

    @property
    def full_name(self) -> str:
        """What an answer says in `model`: NAME/VERSION."""
        return f"{self.name}/{self.version}"

    @property
    def fingerprint(self) -> str:
        """What an answer says in `system_fingerprint`: the version and the weights."""
        return f"{self.name}-{self.version}-{self.weights_sha256[:12]}"

    def answers_to(self, model: str) -> bool:
        """True for a name that a request may use for this version."""
        return model in (self.name, self.full_name, f"{self.name}@champion")

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """Answer a request, as OpenAI's chat completion object.

        Raises:
            ContextLengthError: conversation and answer do not fit the model.
            EngineError: generation failed.
        """
        agent = self._agent_for(request)
        seed = secrets.randbits(63) if request.seed is None else request.seed
        conversation = secrets.token_hex(12)
        with recording(EpisodeRecorder(conversation, seed)) as recorder:
            try:
                text = await agent.generate_response([m.as_chat() for m in request.messages])
            finally:
                agent.release(conversation)
        samples = recorder.samples
        ended = bool(samples) and samples[-1].finish_reason is FinishReason.STOP
        for stop in request.stop_texts:
            text, found, _ = text.partition(stop)
            ended = ended or bool(found)
        prompt_tokens = sum(len(sample.prompt_token_ids) for sample in samples)
        answer_tokens = sum(len(sample.token_ids) for sample in samples)
        message = {"role": "assistant", "content": text}
        finish = "stop" if ended else "length"
        return {
            "id": f"chatcmpl-{conversation}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.full_name,
            "system_fingerprint": self.fingerprint,
            "choices": [
                {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": answer_tokens,
                "total_tokens": prompt_tokens + answer_tokens,
            },
        }

    def _agent_for(self, request: ChatRequest) -> MultiTurnAgent:
        """The same agent on the same engine, with this request's sampling."""
        asked = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_new_tokens": request.answer_tokens,
        }
        update = {name: value for name, value in asked.items() if value is not None}
        agent = copy.copy(self.agent)
        agent.config = self.agent.config.model_copy(update=update)
        return agent


async def load_served_model(
    tracking: TrackingConfig,
    *,
    folder: Path | None = None,
    base_model: Path | None = None,
    generation: Mapping[str, Any] | None = None,
) -> ServedModel:
    """Load the champion from the registry, or a folder.

    Args:
        tracking: where the registry is.
        folder: a model folder, or a LoRA adapter's, instead of the champion.
        base_model: what the adapter belongs to.
        generation: system prompt and sampling of a folder that has none of its own; a version of
            the registry has them.

    Raises:
        ServingError: nothing was promoted yet, or the folder is no model.
        RegistryError: the registry does not answer.
        ModelSourceError: the model cannot be loaded.
    """
    from stateset_agents.tracking.registry import CHAMPION, champion_version, download_version

    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        work = Path(temporary)
        if folder is not None:
            model = _whole_model(folder, base_model, work)
            return await _load(model, folder.resolve().name, None, generation)
        name = tracking.registered_model
        if champion_version(tracking) is None:
            raise ServingError(
                f"no version of {name!r} is in service yet; run `make retrain` to train and "
                "promote one, or serve a folder: stateset-agents serve --checkpoint FOLDER"
            )
        version = download_version(tracking, f"models:/{name}@{CHAMPION}", work / "model")
        return await _load(work / "model", name, version.version, generation)


async def _load(
    model: Path, name: str, version: str | None, generation: Mapping[str, Any] | None
) -> ServedModel:
    from stateset_agents.core.agent import (
        AgentConfig,
        GenerationSettings,
        MultiTurnAgent,
        make_engine,
    )
    from stateset_agents.tracking.lineage import fingerprint
    from stateset_agents.tracking.registry import generation_settings

    own = generation_settings(model) or dict(generation or {})
    # a version that was registered by a later release may know more settings than this one
    own = {key: value for key, value in own.items() if key in GenerationSettings.model_fields}
    config = AgentConfig(model_name=str(model), **own)
    agent = MultiTurnAgent(config, make_engine(config, own_thread=True))
    digest = fingerprint(model)
    return ServedModel(agent, name, version or digest[:12], digest, int(time.time()))


def _whole_model(folder: Path, base_model: Path | None, work: Path) -> Path:
    from stateset_agents.tracking.merging import is_adapter, merge_adapter

    if not folder.is_dir():
        raise ServingError(f"{folder} is not a folder; give one with a model, or none at all")
    if not is_adapter(folder):
        return folder
    if base_model is None or not base_model.is_dir():
        raise ServingError(
            f"{folder} holds an adapter, and its base model is not at {base_model}; run the step "
            "fetch_base_model, or give a folder with a whole model"
        )
    merge_adapter(folder, base_model, work / "merged")
    return work / "merged"
