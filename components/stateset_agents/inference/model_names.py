"""From a model's name to its folder.

Owns where a name is looked for, in this order:

    a folder                     the name is a path of one on this machine
    $STATESET_MODELS_DIR/NAME    one folder of models, each under its name (`gpt2`, `org/model`)
    the hub                      what its client has in its cache, or else downloads

The hub is asked as its own client asks it: HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE=1 (the
cache alone) mean what they always mean. It does not know what is in a folder; `loading.py` does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from stateset_agents.exceptions import ModelSourceError

MODELS_DIR_VARIABLE = "STATESET_MODELS_DIR"

# What a model needs: no pickles, because unpickling runs whatever the file says.
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


def model_folder(name: Path | str) -> Path:
    """The folder of a model; a `Path` is one already, and so is a name with a folder of that path.

    Raises:
        ModelSourceError: the name is found nowhere; every place that was looked in is in the
            message.
    """
    local = local_model_folder(name)
    if local is not None:
        return local
    name = str(name)
    own = os.environ.get(MODELS_DIR_VARIABLE)
    looked = (
        f"{own} ({MODELS_DIR_VARIABLE}) has no folder of that name"
        if own
        else (
            f"{MODELS_DIR_VARIABLE} is not set (it names a folder of models, each under its name)"
        )
    )
    return hub_folder(
        name,
        title=f"model {name!r}",
        otherwise=f"a model's folder would do as well: there is none at {name}, and {looked}",
    )


def local_model_folder(name: Path | str) -> Path | None:
    """The folder of a model where it can be told without the hub; None where the hub is next."""
    if isinstance(name, Path) or Path(name).is_dir() or not _HUB_NAME.fullmatch(name):
        return Path(name)
    own = os.environ.get(MODELS_DIR_VARIABLE)
    if own and (Path(own) / name).is_dir():
        return Path(own) / name
    return None


def hub_folder(name: str, revision: str | None = None, *, title: str, otherwise: str) -> Path:
    """The snapshot of a model on the hub, in the hub client's cache; treat it as read-only.

    Args:
        name: `NAME` or `OWNER/NAME`.
        revision: a branch, tag or commit; None: the main branch.
        title: what the messages call it.
        otherwise: what else a person could do, for the messages.

    Raises:
        ModelSourceError: the hub has no such model or revision, does not let this machine read it,
            or does not answer and the model is not in the cache.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES, endpoint=endpoint)
        )
    except GatedRepoError as error:
        raise ModelSourceError(
            f"{title}: the hub wants you to accept this model's licence first; do so on its page, "
            "and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelSourceError(
            f"{title}: {name} has no revision {revision!r}; give a branch, tag or commit of that "
            "repository"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelSourceError(
            f"{title}: {endpoint} has no model {name!r} that this machine may read; check the "
            f"spelling, or set HF_TOKEN for a private one; {otherwise}"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelSourceError(
            f"{title}: {endpoint} does not answer and the model is not in the local hub cache "
            f"({type(error).__name__}); check the network; {otherwise}"
        ) from error
