"""The model that is in service: which version it is, and what its answers look like.

Owns loading (from the registry or a folder) and what an answer says of the version that gave it. It
does not know HTTP.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.exceptions import ServingError
from stateset_agents.serving.answer import Answer
from stateset_agents.serving.streaming import answer_events
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.policy_folder import PolicyFolder, read_policy_folder
from stateset_agents.tracking.version_address import parse_address

if TYPE_CHECKING:
    from stateset_agents.core.agent import MultiTurnAgent
    from stateset_agents.tracking.registry import RegisteredVersion

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A version in service.

    Attributes:
        agent: how it answers.
        name: the registered model, or the folder.
        version: its number in the registry, or the first digits of the weights' SHA-256.
        weights_sha256: of all files of the model.
        created: Unix time of loading.
        run_id: the run of MLflow that registered the version; "" for a folder.
        alias: by which it was found in the registry; "" for one that was named otherwise.
    """

    agent: MultiTurnAgent
    name: str
    version: str
    weights_sha256: str
    created: int
    run_id: str = ""
    alias: str = ""

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
        alias = f"{self.name}@{self.alias}" if self.alias else None
        return model in (self.name, self.full_name, alias)

    def head(self, answer: Answer, kind: str) -> dict[str, Any]:
        """What OpenAI's object of a kind says beside the answer itself."""
        return {
            "id": f"chatcmpl-{answer.id}",
            "object": kind,
            "created": int(time.time()),
            "model": self.full_name,
            "system_fingerprint": self.fingerprint,
        }

    async def completion(self, answer: Answer) -> dict[str, Any]:
        """An answer, once it has ended, as OpenAI's chat completion object.

        Raises:
            ContextLengthError: conversation and answer do not fit the model.
            EngineError: generation failed.
        """
        message = {"role": "assistant", "content": await answer.whole()}
        finish = answer.finish_reason
        return {
            **self.head(answer, "chat.completion"),
            "choices": [
                {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
            ],
            "usage": answer.usage,
        }

    def events(self, answer: Answer, *, with_usage: bool) -> AsyncGenerator[str, None]:
        """An answer as server-sent events, piece by piece as it is sampled."""
        head = self.head(answer, "chat.completion.chunk")
        return answer_events(answer, head, with_usage=with_usage)


async def load_served_model(
    tracking: TrackingConfig,
    *,
    reference: str | None = None,
    folder: Path | None = None,
    base_model: Path | None = None,
    generation: Mapping[str, Any] | None = None,
) -> ServedModel:
    """Load a version of the registry, or a folder.

    Args:
        tracking: where the registry is.
        reference: `models:/NAME@ALIAS` or `models:/NAME/VERSION`; default: the champion of
            `tracking.registered_model`.
        folder: a policy's folder (a model, a LoRA adapter, what a stub's run left), instead.
        base_model: what the adapter belongs to, instead of the one that its folder names.
        generation: system prompt and sampling of a folder that has none of its own; a version of
            the registry has them.

    Raises:
        ServingError: nothing was promoted yet.
        RegistryError: there is no such version, the registry does not answer, or an adapter does
            not belong to its base.
        ModelSourceError: the folder is no policy's, or its model cannot be loaded.
    """
    from stateset_agents.tracking.registry import (
        champion_address,
        champion_version,
        find_version,
    )

    if folder is not None:
        return await _load_folder(folder, base_model, generation)
    name = tracking.registered_model
    if reference is None and champion_version(tracking) is None:
        raise ServingError(
            f"no version of {name!r} is in service yet; run `make retrain` to train and "
            "promote one, or serve a folder: stateset-agents serve --checkpoint FOLDER"
        )
    reference = reference or champion_address(tracking)
    found = find_version(tracking, reference)
    return await load_version(tracking, found, reference, generation)


async def load_version(
    tracking: TrackingConfig,
    found: RegisteredVersion,
    reference: str,
    generation: Mapping[str, Any] | None = None,
) -> ServedModel:
    """Load a version that `find_version` gave for a reference.

    Raises:
        RegistryError: its files cannot be had.
        ModelSourceError: its model cannot be loaded.
    """
    from stateset_agents.tracking.registry import download_version

    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        folder = Path(temporary) / "model"
        # by its number: an alias may have moved since
        download_version(tracking, found.uri, folder)
        agent, digest = await _load(read_policy_folder(folder), None, generation)
    alias = parse_address(reference).alias or ""
    return ServedModel(
        agent, found.name, found.version, digest, int(time.time()), found.run_id, alias
    )


async def _load_folder(
    folder: Path, base_model: Path | None, generation: Mapping[str, Any] | None
) -> ServedModel:
    policy = read_policy_folder(folder)
    if policy.kind == "stub":
        logger.warning("%s is of a run without a model: its answers are fixed", folder)
    agent, digest = await _load(policy, base_model, generation)
    return ServedModel(agent, folder.resolve().name, digest[:12], digest, int(time.time()))


async def _load(
    policy: PolicyFolder, base_model: Path | None, generation: Mapping[str, Any] | None
) -> tuple[MultiTurnAgent, str]:
    """The agent, and the SHA-256 of the folder's files."""
    from stateset_agents.evaluation.policies import load_agent
    from stateset_agents.tracking.lineage import fingerprint

    agent = await load_agent(policy, base_model=base_model, fallback=generation, own_thread=True)
    return agent, fingerprint(policy.folder)
