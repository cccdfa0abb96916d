"""The model that is in service: which version it is, and how it answers one request.

Owns loading (from the registry or a folder) and the translation of a request into a call of the
agent. It does not know HTTP.
"""

from __future__ import annotations

import copy
import logging
import secrets
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.core.recorder import EpisodeRecorder, recording
from stateset_agents.exceptions import ServingError, StateSetError
from stateset_agents.inference.engine import FinishReason
from stateset_agents.serving.protocol import error_body
from stateset_agents.serving.streaming import DONE, StopScanner, chunk, event
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.policy_folder import PolicyFolder, read_policy_folder

if TYPE_CHECKING:
    from stateset_agents.core.agent import MultiTurnAgent
    from stateset_agents.serving.protocol import ChatRequest

logger = logging.getLogger(__name__)


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
        scanner = StopScanner(request.stop_texts)
        message = {"role": "assistant", "content": scanner.feed(text) + scanner.finish()}
        finish = _finish_reason(recorder, scanner)
        return {
            **self._head(conversation, "chat.completion"),
            "choices": [
                {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
            ],
            "usage": _usage(recorder),
        }

    async def stream(self, request: ChatRequest) -> AsyncGenerator[str, None]:
        """Answer a request as server-sent events, piece by piece as it is sampled.

        Whoever stops listening stops the generation. A failure after the first piece is an event
        with an `error`.

        Raises:
            ContextLengthError: conversation and answer do not fit the model.
            EngineError: generation failed before the first piece.
        """
        agent = self._agent_for(request)
        seed = secrets.randbits(63) if request.seed is None else request.seed
        recorder = EpisodeRecorder(secrets.token_hex(12), seed)
        pieces = agent.stream_response([m.as_chat() for m in request.messages])
        try:
            # the answer's own task begins here, and keeps the recorder
            with recording(recorder):
                first = await anext(pieces, "")
        except BaseException:
            agent.release(recorder.conversation_id)
            raise
        return self._events(request, agent, recorder, first, pieces)

    async def _events(
        self,
        request: ChatRequest,
        agent: MultiTurnAgent,
        recorder: EpisodeRecorder,
        first: str,
        pieces: AsyncGenerator[str, None],
    ) -> AsyncGenerator[str, None]:
        head = self._head(recorder.conversation_id, "chat.completion.chunk")
        scanner = StopScanner(request.stop_texts)
        try:
            yield chunk(head, {"role": "assistant", "content": ""})
            if text := scanner.feed(first):
                yield chunk(head, {"content": text})
            # tokens are counted at the end of an answer, so a count waits for it
            while not scanner.found or request.wants_usage:
                piece = await anext(pieces, None)
                if piece is None:
                    break
                if text := scanner.feed(piece):
                    yield chunk(head, {"content": text})
            if text := scanner.finish():
                yield chunk(head, {"content": text})
            yield chunk(head, {}, _finish_reason(recorder, scanner))
            if request.wants_usage:
                yield event({**head, "choices": [], "usage": _usage(recorder)})
            yield DONE
        except StateSetError as error:
            logger.error("a request failed while it was answered: %s", error)
            yield event(error_body(str(error), "server_error"))
        finally:
            try:
                await pieces.aclose()
            finally:
                agent.release(recorder.conversation_id)

    def _head(self, conversation: str, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{conversation}",
            "object": kind,
            "created": int(time.time()),
            "model": self.full_name,
            "system_fingerprint": self.fingerprint,
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


def _finish_reason(recorder: EpisodeRecorder, scanner: StopScanner) -> str:
    samples = recorder.samples
    ended = bool(samples) and samples[-1].finish_reason is FinishReason.STOP
    return "stop" if ended or scanner.found else "length"


def _usage(recorder: EpisodeRecorder) -> dict[str, int]:
    prompt_tokens = sum(len(sample.prompt_token_ids) for sample in recorder.samples)
    answer_tokens = sum(len(sample.token_ids) for sample in recorder.samples)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer_tokens,
        "total_tokens": prompt_tokens + answer_tokens,
    }


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
        folder: a policy's folder (a model, a LoRA adapter, what a stub's run left), instead of the
            champion.
        base_model: what the adapter belongs to, instead of the one that its folder names.
        generation: system prompt and sampling of a folder that has none of its own; a version of
            the registry has them.

    Raises:
        ServingError: nothing was promoted yet.
        RegistryError: the registry does not answer, or an adapter does not belong to its base.
        ModelSourceError: the folder is no policy's, or its model cannot be loaded.
    """
    from stateset_agents.tracking.registry import CHAMPION, champion_version, download_version

    if folder is not None:
        policy = read_policy_folder(folder)
        if policy.kind == "stub":
            logger.warning("%s is of a run without a model: its answers are fixed", folder)
        return await _load(policy, folder.resolve().name, None, base_model, generation)
    name = tracking.registered_model
    if champion_version(tracking) is None:
        raise ServingError(
            f"no version of {name!r} is in service yet; run `make retrain` to train and "
            "promote one, or serve a folder: stateset-agents serve --checkpoint FOLDER"
        )
    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        model = Path(temporary) / "model"
        version = download_version(tracking, f"models:/{name}@{CHAMPION}", model)
        return await _load(read_policy_folder(model), name, version.version, None, generation)


async def _load(
    policy: PolicyFolder,
    name: str,
    version: str | None,
    base_model: Path | None,
    generation: Mapping[str, Any] | None,
) -> ServedModel:
    from stateset_agents.evaluation.policies import load_agent
    from stateset_agents.tracking.lineage import fingerprint

    agent = await load_agent(policy, base_model=base_model, fallback=generation, own_thread=True)
    digest = fingerprint(policy.folder)
    return ServedModel(agent, name, version or digest[:12], digest, int(time.time()))
