"""`stateset-agents lineage`: from an answer back to the version, runs and data that made it."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stateset_agents.cli.console import (
    ConfigOption,
    JsonOption,
    load_config,
    print_json,
    set_up_logging,
)
from stateset_agents.exceptions import RegistryError

if TYPE_CHECKING:
    from stateset_agents.data.schemas import PreferencePair, Scenario
    from stateset_agents.run_config import RunConfig
    from stateset_agents.tracking.version_address import AnswerOrigin

_SCENARIOS = ("scenarios", "heldout")  # what the steps call the files of scenarios
_PAIRS = ("preferences", "preferences_heldout")


def lineage(
    of: Annotated[
        str | None,
        typer.Argument(
            help="A file with a served answer (- reads standard input), an answer's `model` "
            "(NAME/VERSION), models:/NAME/VERSION or models:/NAME@ALIAS; default: the version in "
            "service."
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lead from an answer back to its version, runs, code, data and scenarios."""
    from stateset_agents.tracking.promotion import history
    from stateset_agents.tracking.registry import describe_lineage

    set_up_logging()
    settings = load_config(config)
    asked = _read(of, settings)
    found = describe_lineage(settings.tracking, str(asked.address))
    _check_weights(asked, found)
    tracking = settings.tracking.model_copy(update={"registered_model": found["name"]})
    changes = [
        asdict(one)
        for one in history(tracking)
        if found["version"] in (one.from_version, one.to_version)
    ]
    report = {**found, "history": changes, "data": _look_for(found["data"])}
    if as_json:
        print_json(report)
    else:
        print("\n".join(_lines(report)))


def _read(of: str | None, settings: RunConfig) -> AnswerOrigin:
    from stateset_agents.tracking.registry import CHAMPION
    from stateset_agents.tracking.version_address import (
        AnswerOrigin,
        VersionAddress,
        parse_address,
        parse_answer_ids,
    )

    if of is None:
        return AnswerOrigin(VersionAddress(settings.tracking.registered_model, alias=CHAMPION))
    if of.startswith("models:"):
        return AnswerOrigin(parse_address(of))
    if of != "-" and not Path(of).is_file():
        return parse_answer_ids(of)
    text = sys.stdin.read() if of == "-" else Path(of).read_text(encoding="utf-8")
    try:
        answer = json.loads(text)
        model, fingerprint = answer["model"], answer.get("system_fingerprint") or ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"{of}: no answer of a chat server ({type(error).__name__}: {error}); allowed is its "
            "JSON as it came, with the key `model`"
        ) from error
    return parse_answer_ids(str(model), str(fingerprint))


def _check_weights(asked: AnswerOrigin, found: dict[str, Any]) -> None:
    registered = str(found["weights_sha256"])
    if not registered.startswith(asked.weights):
        raise RegistryError(
            f"the answer is of weights {asked.weights}, and {asked.address} of the registry "
            f"{found['tracking_uri']} has {registered[: len(asked.weights)]}: it is of another "
            "registry (tracking.tracking_uri, MLFLOW_TRACKING_URI)"
        )


def _look_for(data: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
    """The same with `here`, where this machine has it, and what stands in it."""
    from stateset_agents.tracking.lineage import find_data

    found: dict[str, dict[str, Any]] = {}
    for name, noted in data.items():
        found[name] = dict(noted)
        if not {"path", "sha256"} <= noted.keys():
            continue
        place = find_data(noted["path"], noted["sha256"], noted.get("dvc_md5", ""))
        found[name]["here"] = None if place is None else str(place)
        if place is not None and name in (*_SCENARIOS, *_PAIRS):
            rows = _rows(place, Path(noted["path"]).name, name in _SCENARIOS)
            found[name]["ids"] = [row.id for row in rows]
            found[name]["intents"] = dict(sorted(Counter(str(row.intent) for row in rows).items()))
    return found


def _rows(place: Path, called: str, are_scenarios: bool) -> list[Any]:
    from stateset_agents.data.readers import read_preferences, read_scenarios

    read = read_scenarios if are_scenarios else read_preferences
    with tempfile.TemporaryDirectory(prefix="stateset-lineage-") as work:
        # DVC's cache names files by their hash, and the reader goes by the suffix
        rows: list[Scenario] | list[PreferencePair] = read(shutil.copy(place, Path(work) / called))
    return list(rows)


def _lines(report: dict[str, Any]) -> list[str]:
    aliases = ", ".join(report["aliases"])
    lines = [
        f"version    {report['name']}/{report['version']}" + (f" ({aliases})" if aliases else ""),
        f"weights    {report['weights_sha256']}",
    ]
    for one in report["history"]:
        came, went = one["from_version"] or "none", one["to_version"] or "none"
        lines.append(f"history    {one['when']}  {one['action']} {came} -> {went}, by {one['who']}")
    code = report["code"]
    changed = ", with changes that were not committed" if code.get("dirty") == "true" else ""
    lines.append(f"code       {code.get('revision', 'not noted')}{changed}")
    for role, run in report["runs"].items():
        told = f"{run['status']}, {len(run['params'])} parameters" if "status" in run else "deleted"
        lines.append(f"run        {role:<19} {run['id']}  {told}")
    for name, noted in report["data"].items():
        digest = noted.get("sha256", "")[:12]
        lines.append(f"data       {name:<19} {digest}  {noted.get('path', '')}  {_where(noted)}")
        if "ids" in noted:
            intents = ", ".join(f"{intent} ({count})" for intent, count in noted["intents"].items())
            lines.append(f"           {len(noted['ids'])} rows: {intents}")
    return lines


def _where(noted: dict[str, Any]) -> str:
    if "here" not in noted:
        return "(its path was not noted)"
    if noted["here"] == noted["path"]:
        return "(as it is here)"
    if noted["here"]:
        return f"(changed since; as it was: {noted['here']})"
    md5 = noted.get("dvc_md5")
    kept = f"; DVC keeps it as files/md5/{md5[:2]}/{md5[2:]} in its cache and remote" if md5 else ""
    return f"(changed or gone here{kept})"
