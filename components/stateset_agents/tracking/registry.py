"""The model registry: versions of the policy, where each came from, and how to have one again.

Owns registration (a version that loads alone, with its origins as tags), finding a version by
number, alias or what it was made of, downloading it, and describing its lineage. Which version is
champion is decided and moved in `promotion`. A version holds merged full weights in safetensors,
never an adapter.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stateset_agents.core.reasoning import instruction
from stateset_agents.exceptions import ModelSourceError, RegistryError
from stateset_agents.tracking import merging
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.lineage import fingerprint
from stateset_agents.tracking.mlflow_run import TrackedRun, get_run, open_client, shown
from stateset_agents.tracking.model_files import make_readable, verify_model_folder
from stateset_agents.tracking.version_address import VersionAddress, parse_address

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from stateset_agents.inference.chat_template import ChatTokenizer

CHAMPION, CHALLENGER = "champion", "challenger"
MADE_OF = "made_of.sha256"
GENERATION_SETTINGS = "generation_settings.json"

# Where the model folder lies inside the version's artifacts: MLflow names it after the folder.
_POLICY_PATH = "artifacts/policy"
_MAX_TAG_CHARACTERS = 5000
_SCRIPT = Path(__file__).with_name("chat_model_script.py")
_REQUIREMENTS = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "jinja2")


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version in the registry.

    Attributes:
        name: the registered model.
        version: its number, as text.
        run_id: the run that registered it.
        tags: its origins and figures.
        aliases: names that point to it now.
    """

    name: str
    version: str
    run_id: str
    tags: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}/{self.version}"


def register_version(
    tracking: TrackingConfig,
    run: TrackedRun,
    policy: Path,
    *,
    base_model: Path | None = None,
    generation: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    description: str = "",
) -> RegisteredVersion:
    """Make a new version of the registered model, answer one message with it, and give it the
    alias `challenger`.

    Args:
        tracking: where the registry is, and the registered model's name.
        run: the run that the version belongs to.
        policy: a model folder, or a folder with a LoRA adapter.
        base_model: the model that the adapter belongs to.
        generation: system prompt and sampling, the settings that the policy was evaluated with;
            kept in the version, used by whoever serves it.
        tags: origins and figures.
        description: for the version's page.

    Raises:
        RegistryError: the folder is no model, the model does not answer, or MLflow refuses.
    """
    with tempfile.TemporaryDirectory(prefix="register-") as temporary:
        work = Path(temporary)
        model = _prepare(policy, base_model, generation or {}, work, tracking.registered_model)
        own = {"weights.sha256": fingerprint(model), **(tags or {})}
        with _mlflow_refuses(f"registering a version of {tracking.registered_model}"):
            packed = _pack(model, work)
            version = _create(run, tracking.registered_model, packed, own, description)
            run.client.set_registered_model_alias(version.name, CHALLENGER, version.version)
    return find_version(tracking, f"models:/{version.name}/{version.version}")


def made_of(policy_sha256: str, base_model: Path | None, generation: Mapping[str, Any]) -> str:
    """What a version is made of, as one SHA-256: `register_version`'s arguments, and the code that
    answers in it. Two versions with the same one are the same; it becomes the tag `MADE_OF`.

    Args:
        policy_sha256: the policy folder's `fingerprint`.
        base_model: the model that it is merged with; None for a policy that is whole.
        generation: the settings kept in the version.
    """
    parts = {
        "policy": policy_sha256,
        "base_model": None if base_model is None else fingerprint(base_model),
        "generation": dict(generation),
        "script": fingerprint(_SCRIPT),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find_made_of(tracking: TrackingConfig, digest: str) -> RegisteredVersion | None:
    """The newest version with this tag `MADE_OF`, or None.

    Raises:
        RegistryError: MLflow does not answer.
    """
    client = open_client(tracking)
    name = tracking.registered_model
    with _mlflow_refuses(f"the versions of {name}"):
        found = client.search_model_versions(
            f"name = '{name}' AND tags.`{MADE_OF}` = '{digest}'",
            order_by=["version_number DESC"],
            max_results=1,
        )
    return find_version(tracking, f"models:/{name}/{found[0].version}") if found else None


def renew_version(
    tracking: TrackingConfig,
    version: RegisteredVersion,
    tags: Mapping[str, str],
    description: str = "",
) -> RegisteredVersion:
    """Make a version that is there the challenger, with the tags and description of today.

    Args:
        tracking: where the registry is.
        version: as `find_made_of` found it.
        tags: take the place of those with the same names.
        description: takes the place of the one that is there, unless it is empty.

    Raises:
        RegistryError: MLflow does not answer or refuses.
    """
    client = open_client(tracking)
    name, number = version.name, version.version
    with _mlflow_refuses(f"registering version {number} of {name} again"):
        for tag, value in _short(tags).items():
            client.set_model_version_tag(name, number, tag, value)
        if description:
            client.update_model_version(name, number, description)
        client.set_registered_model_alias(name, CHALLENGER, number)
    return find_version(tracking, version.uri)


def _short(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: str(value)[:_MAX_TAG_CHARACTERS] for name, value in tags.items()}


def champion_address(tracking: TrackingConfig) -> str:
    """How the version in service is asked for, promoted yet or not."""
    return str(VersionAddress(tracking.registered_model, alias=CHAMPION))


def champion_version(tracking: TrackingConfig) -> str | None:
    """The number of the version in service, or None before the first promotion.

    Raises:
        RegistryError: MLflow does not answer.
    """
    return alias_version(open_client(tracking), tracking.registered_model, CHAMPION)


def alias_version(client: MlflowClient, name: str, alias: str) -> str | None:
    """The number behind an alias, or None when there is no such alias or no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise RegistryError(f"MLflow cannot look up {name}@{alias}: {error}") from error


def find_version(tracking: TrackingConfig, reference: str) -> RegisteredVersion:
    """A version by `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        RegistryError: there is none; the message says which there are.
    """
    client = open_client(tracking)
    found = _look_up(client, tracking, reference)
    return RegisteredVersion(
        name=found.name,
        version=str(found.version),
        run_id=str(found.run_id),
        tags=dict(found.tags),
        aliases=tuple(found.aliases),
    )


def download_version(
    tracking: TrackingConfig, reference: str, folder: Path, work: Path | None = None
) -> RegisteredVersion:
    """Put a version's model folder (config, safetensors, tokenizer, generation_settings.json) at
    `folder`, which must not exist; it is whole or not there.

    Args:
        tracking: where the registry is.
        reference: as for `find_version`.
        folder: the folder to make.
        work: a folder on the same file system for the files on their way; default: beside it.

    Raises:
        RegistryError: there is no such version, or its files cannot be had.
    """
    import mlflow.artifacts

    client = open_client(tracking)
    found = _look_up(client, tracking, reference)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".version-", dir=work or folder.parent) as temporary:
        with _mlflow_refuses(f"the files of {reference}"):
            location = client.get_model_version_download_uri(found.name, found.version)
            if location.startswith("models:/"):
                model_id = location.removeprefix("models:/")
                location = client.get_logged_model(model_id).artifact_location
            got = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{location}/{_POLICY_PATH}",
                dst_path=temporary,
                tracking_uri=tracking.effective_uri,
            )
        try:
            verify_model_folder(Path(got), source=reference, load=False)
        except ModelSourceError as error:
            raise RegistryError(f"the stored files are not whole: {error}") from error
        make_readable(Path(got))
        Path(got).rename(folder)
    return find_version(tracking, f"models:/{found.name}/{found.version}")


def generation_settings(folder: Path) -> dict[str, Any]:
    """The settings that a version was registered with, from its downloaded folder; {} if none."""
    path = folder / GENERATION_SETTINGS
    if not path.is_file():
        return {}
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for made_here in ("model", "thinking_prompt"):
        settings.pop(made_here, None)
    return settings


def describe_lineage(tracking: TrackingConfig, reference: str) -> dict[str, Any]:
    """From a version back to what made it: runs with their parameters, code revision, data hashes.

    Returns:
        name, version, aliases, tracking_uri, weights_sha256, code, data (by name: path, sha256 and
        dvc_md5, as far as they were noted), evaluation, runs (role to id, name, status, params and
        tags); a run that was deleted since has only its id.

    Raises:
        RegistryError: there is no such version.
    """
    found = find_version(tracking, reference)
    client = open_client(tracking)
    groups: dict[str, dict[str, str]] = {"git": {}, "data": {}, "evaluation": {}, "run": {}}
    for tag, value in sorted(found.tags.items()):
        group, _, rest = tag.partition(".")
        if group in groups:
            groups[group][rest] = value
    data: dict[str, dict[str, str]] = {}
    for tag, value in groups["data"].items():
        of, _, what = tag.rpartition(".")
        data.setdefault(of, {})[what] = value
    run_ids = {**groups["run"], "register": found.run_id}
    return {
        "name": found.name,
        "version": found.version,
        "aliases": list(found.aliases),
        "tracking_uri": shown(tracking.effective_uri),
        "code": groups["git"],
        "data": data,
        "evaluation": groups["evaluation"],
        "weights_sha256": found.tags.get("weights.sha256"),
        "runs": {role: _describe_run(client, run_id) for role, run_id in run_ids.items()},
    }


def _describe_run(client: MlflowClient, run_id: str) -> dict[str, Any]:
    run = get_run(client, run_id)
    if run is None:
        return {"id": run_id}
    return {
        "id": run_id,
        "name": run.info.run_name,
        "status": run.info.status,
        "params": dict(run.data.params),
        "tags": {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")},
    }


def _look_up(client: MlflowClient, tracking: TrackingConfig, reference: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    address = parse_address(reference)
    try:
        if address.alias:
            return client.get_model_version_by_alias(address.name, address.alias)
        return client.get_model_version(address.name, str(address.version))
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise RegistryError(f"MLflow cannot look up {reference}: {error}") from error
        with _mlflow_refuses(f"the versions of {address.name}"):
            known = client.search_model_versions(f"name = '{address.name}'", max_results=10)
        there = ", ".join(str(one.version) for one in known)
        raise RegistryError(
            f"{reference}: no such version in the registry {shown(tracking.effective_uri)}; "
            + (f"there are: {there}" if there else "nothing is registered yet: run `make retrain`")
        ) from error


def _prepare(
    policy: Path, base: Path | None, generation: Mapping[str, Any], work: Path, name: str
) -> Path:
    """A whole model folder called `policy`, with the settings in it."""
    model = work / "policy"
    if not policy.is_dir():
        raise RegistryError(f"{policy}: no policy to register; run the step train_policy first")
    if merging.is_adapter(policy):
        if base is None:
            raise RegistryError(f"{policy} is an adapter; its base model is needed as well")
        merging.merge_adapter(policy, base, model)
    else:
        shutil.copytree(policy, model, ignore=shutil.ignore_patterns(".*"))
    tokenizer = _ensure_chat_template(model)
    settings = {"model": name, **generation}
    if generation.get("enable_reasoning"):
        # what the agent puts there itself, for the version that answers without it
        settings["thinking_prompt"] = instruction(tokenizer, generation["reasoning_tags"])
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
    (model / GENERATION_SETTINGS).write_text(text + "\n", encoding="utf-8")
    try:
        verify_model_folder(model, source=str(policy))
    except ModelSourceError as error:
        raise RegistryError(f"{policy} cannot be registered: {error}") from error
    return model


def _ensure_chat_template(model: Path) -> ChatTokenizer:
    """A tokenizer without a template gets the one it was trained with, in the version itself."""
    from stateset_agents.inference.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    if not any(model.glob("chat_template*")):
        tokenizer.hf.save_pretrained(model)
    return tokenizer


def _pack(model: Path, work: Path) -> Path:
    """MLflow's form of the model, proven to answer a message."""
    import mlflow.pyfunc

    packed = work / "packed"
    mlflow.pyfunc.save_model(
        path=str(packed),
        python_model=str(_SCRIPT),
        artifacts={"policy": str(model)},
        # explicitly, without local suffixes: no one else can install torch 2.x+cpu
        pip_requirements=[
            f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
            for name in _REQUIREMENTS
        ],
        metadata={"task": "llm/v1/chat"},
    )
    loaded = mlflow.pyfunc.load_model(str(packed))
    request = {"messages": [{"role": "user", "content": "Where is my order?"}], "max_tokens": 8}
    try:
        loaded.predict([request])
    except Exception as error:  # whatever a broken model raises, it must not become a version
        raise RegistryError(
            f"the model does not answer a message, so it is not registered: {error}"
        ) from error
    return packed


def _create(
    run: TrackedRun, name: str, packed: Path, tags: Mapping[str, str], description: str
) -> ModelVersion:
    """Upload as a logged model of the run, then make a version of it."""
    from mlflow.exceptions import MlflowException

    client = run.client
    with contextlib.suppress(MlflowException):  # it exists from the second time on
        client.create_registered_model(name)
    logged = client.create_logged_model(
        run.experiment_id, name="policy", source_run_id=run.run_id, model_type="chat"
    )
    try:
        _name_logged_model(packed, logged.model_id, run.run_id)
        client.log_model_artifacts(logged.model_id, str(packed))
        client.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    return client.create_model_version(
        name,
        # not models:/ID: resolving that, MLflow would look into its global store, not into ours
        source=logged.artifact_location,
        run_id=run.run_id,
        model_id=logged.model_id,
        tags=_short(tags),
        description=description,
    )


def _name_logged_model(packed: Path, model_id: str, run_id: str) -> None:
    from mlflow.models import Model

    description = Model.load(str(packed))
    description.model_id = model_id
    description.run_id = run_id
    description.save(os.fspath(packed / "MLmodel"))


@contextlib.contextmanager
def _mlflow_refuses(what: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise RegistryError(f"MLflow refuses {what}: {error}") from error
    except _s3_errors() as error:
        raise RegistryError(f"{what}: the S3 store refuses: {error}") from error


def _s3_errors() -> tuple[type[Exception], ...]:
    """What boto3 raises, which MLflow lets through as it is; () where it is not installed."""
    try:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return ()
    return (Boto3Error, BotoCoreError, ClientError)
