"""Which version is in service: gates, the move of the alias, its history, and the way back.

Owns the decision (pure functions of figures) and the change. A change holds a lock, looks again
whether the champion is still the one that was compared with, moves the alias, and appends who,
when, why, from and to. A refusal is a result, not an error.

The history lives in the registry itself, as tags `promotion.000001`, `promotion.000002`, ... of the
registered model, each a JSON object, never changed afterwards. Who has the registry has it.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from stateset_agents.exceptions import RegistryError
from stateset_agents.tracking.config import PromoteConfig, TrackingConfig
from stateset_agents.tracking.mlflow_run import open_client
from stateset_agents.tracking.promotion_lock import RequireHeld, promotion_lock
from stateset_agents.tracking.registry import CHAMPION, alias_version, find_version

if TYPE_CHECKING:
    from mlflow import MlflowClient

NO_CHAMPION = "base"  # what an evaluation calls the champion while there is none
_HISTORY = "promotion."
_ALREADY = "this version is champion already"
_MAX_REASON_CHARACTERS = 2000

Figures = Mapping[str, float | str]


@dataclass(frozen=True, slots=True)
class GateResult:
    """One condition of a promotion.

    Attributes:
        name: of the gate.
        passed: whether it lets the challenger through.
        measured: the figure; None when it was not measured.
        limit: what it was held against.
        sentence: both, for a person.
    """

    name: str
    passed: bool
    measured: float | None
    limit: float | None
    sentence: str


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One change of the champion. `to_version` None: taken out of service."""

    number: int
    action: Literal["promote", "rollback", "set"]
    from_version: str | None
    to_version: str | None
    who: str
    when: str
    why: str


@dataclass(frozen=True, slots=True)
class PromotionOutcome:
    """What became of a challenger; what data/promotion.json holds.

    Attributes:
        promoted: whether the challenger is in service now.
        version: the challenger's.
        champion: the version in service now; None when there is none.
        previous: the version in service before.
        reasons: a sentence for each gate that failed, or, after a promotion, for each that passed;
            the first says where the version was champion before it was asked.
        gates: all of them, held against these figures also where nothing was left to decide.
    """

    promoted: bool
    version: str
    champion: str | None
    previous: str | None
    reasons: tuple[str, ...]
    gates: tuple[GateResult, ...]


# --- the decision ------------------------------------------------------------------------------


def evaluate_gates(figures: Figures, config: PromoteConfig) -> list[GateResult]:
    """Hold a challenger's figures against every gate that is switched on.

    Args:
        figures: the evaluation's flat metrics (`data/reports/evaluation/metrics.json`).
        config: the limits.
    """
    gates = [
        _at_least(
            "difference",
            "the held-out reward, challenger minus champion,",
            figures,
            "reward.vs_champion.mean",
            config.min_difference,
        )
    ]
    if config.require_interval_above_zero:
        gates.append(_interval_above_zero(figures))
    for part, limit in config.min_part_differences.items():
        what = f"the part {part}, challenger minus champion,"
        key = f"{part}.vs_champion.mean"
        gates.append(_at_least(f"part:{part}", what, figures, key, limit))
    if config.safety_floor is not None:
        what, key = "the challenger's safety", "safety.challenger"
        gates.append(_at_least("safety", what, figures, key, config.safety_floor))
    if config.reward_ceiling is not None:
        gates.append(_below_ceiling(figures, config.reward_ceiling))
    if config.fluency_within_band:
        gates.append(_in_band("fluency", figures, "log_likelihood"))
    if config.distinctness_within_band:
        gates.append(_in_band("distinctness", figures, "distinct_2"))
    if config.max_latency_ratio is not None:
        gates.append(_latency(figures, config.max_latency_ratio))
    return gates


def champion_gate(
    compared_with: str | None, champion: str | None, *, replaced: bool = False
) -> GateResult:
    """The champion must be the one that the challenger was compared with.

    Args:
        compared_with: the champion of the evaluation; None = there was none.
        champion: the champion that the challenger takes the place of.
        replaced: it has taken it already.
    """
    then, now = compared_with or "the base model", champion or "the base model"
    same = compared_with == champion
    is_, still, at = ("was", "", "before") if replaced else ("is", "still ", "now")
    sentence = (
        f"the champion {is_} {still}{now}, as in the evaluation"
        if same
        else f"the evaluation compared with {then}, and the champion {is_} {now} {at}: evaluate "
        "again (dvc repro --single-item --force evaluate_policy), then retrain"
    )
    return GateResult("champion_unchanged", same, None, None, sentence)


def not_rolled_back_gate(
    entries: Sequence[HistoryEntry],
    champion: str | None,
    weights: str,
    weights_of: Callable[[str], str | None],
) -> GateResult:
    """What a person took out of service comes back by a person's word alone, under any number.

    Args:
        entries: the history, oldest first.
        champion: the version in service.
        weights: the challenger's `weights.sha256`.
        weights_of: that of another version; None where it is gone or was never noted.
    """
    name = "not_rolled_back"
    for version, entry in rolled_back(entries, champion).items():
        if weights and weights_of(version) == weights:
            sentence = (
                f"the same weights were rolled back as version {version} ({entry.when}, by "
                f"{entry.who}: {entry.why}); `python -m flows.promote --version N --reason ...` "
                "puts them into service all the same"
            )
            return GateResult(name, False, None, None, sentence)
    return GateResult(name, True, None, None, "these weights were never rolled back")


def rolled_back(entries: Sequence[HistoryEntry], champion: str | None) -> dict[str, HistoryEntry]:
    """The versions that a rollback took out of service and nobody put back, and that rollback."""
    rejected: dict[str, HistoryEntry] = {}
    for entry in _moves_made(entries, champion):
        if entry.action == "rollback" and entry.from_version is not None:
            rejected[entry.from_version] = entry
        if entry.to_version is not None:
            rejected.pop(entry.to_version, None)
    return rejected


def compared_champion(figures: Figures) -> str | None:
    """The champion's version that the evaluation compared with; None = there was none."""
    version = str(figures.get("champion.version", NO_CHAMPION))
    return None if version == NO_CHAMPION else version


def _figure(figures: Figures, key: str) -> float | None:
    value = figures.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _unmeasured(name: str, key: str, limit: float | None) -> GateResult:
    sentence = f"{key} was not measured, so this gate cannot be passed"
    return GateResult(name, False, None, limit, sentence)


def _at_least(name: str, what: str, figures: Figures, key: str, limit: float) -> GateResult:
    value = _figure(figures, key)
    if value is None:
        return _unmeasured(name, key, limit)
    passed = value >= limit
    sentence = f"{what} is {value:.4g}, {'at least' if passed else 'below the floor'} {limit:g}"
    return GateResult(name, passed, value, limit, sentence)


def interval_name(confidence: float | None) -> str:
    """Which interval is meant, such as "95% interval"; None = figures that do not say."""
    return "interval" if confidence is None else f"{100 * confidence:g}% interval"


def _interval_above_zero(figures: Figures) -> GateResult:
    low = _figure(figures, "reward.vs_champion.low")
    high = _figure(figures, "reward.vs_champion.high")
    if low is None or high is None:
        return _unmeasured("interval", "reward.vs_champion.low", 0.0)
    where = "above 0" if low > 0 else "not above 0: the difference may be chance"
    which = interval_name(_figure(figures, "confidence"))
    sentence = f"the {which} of that difference, {low:.4g} to {high:.4g}, is {where}"
    return GateResult("interval", low > 0, low, 0.0, sentence)


def _below_ceiling(figures: Figures, limit: float) -> GateResult:
    value = _figure(figures, "reward.challenger")
    if value is None:
        return _unmeasured("reward_ceiling", "reward.challenger", limit)
    passed = value <= limit
    verdict = "below" if passed else "above what is believable: read the conversations; ceiling"
    sentence = f"the challenger's reward is {value:.4g}, {verdict} {limit:g}"
    return GateResult("reward_ceiling", passed, value, limit, sentence)


def _in_band(name: str, figures: Figures, measure: str) -> GateResult:
    verdict = _figure(figures, f"{name}.in_band")
    value = _figure(figures, f"{measure}.challenger")
    base = _figure(figures, f"{measure}.base")
    if verdict is None:
        return _unmeasured(name, f"{name}.in_band", None)
    passed = verdict == 1.0
    numbers = "" if value is None or base is None else f" ({value:.4g}; base model {base:.4g})"
    sentence = f"the challenger's {name} is {'in' if passed else 'out of'} its band{numbers}"
    return GateResult(name, passed, value, base, sentence)


def _latency(figures: Figures, limit: float) -> GateResult:
    own = _figure(figures, "latency_ms_per_turn.challenger")
    other = _figure(figures, "latency_ms_per_turn.champion")
    if own is None or other is None or other <= 0:
        return _unmeasured("latency", "latency_ms_per_turn", limit)
    ratio = own / other
    passed = ratio <= limit
    sentence = (
        f"a turn takes {ratio:.2f} times as long as the champion's ({own:.0f} and {other:.0f} ms), "
        f"{'at most' if passed else 'more than'} {limit:g}"
    )
    return GateResult("latency", passed, ratio, limit, sentence)


# --- the change --------------------------------------------------------------------------------


def promote(
    tracking: TrackingConfig, config: PromoteConfig, version: str, figures: Figures
) -> PromotionOutcome:
    """Make `version` champion if every gate lets it through.

    Raises:
        RegistryError: MLflow does not answer, there is no such version, or another promotion
            holds the lock for longer than `lock_seconds`.
    """
    client = open_client(tracking)
    name = tracking.registered_model
    challenger = find_version(tracking, f"models:/{name}/{version}")
    with promotion_lock(client, tracking, config.lock_seconds) as require_held:
        champion = alias_version(client, name, CHAMPION)
        entries = read_history(client, name)
        compared_with = compared_champion(figures)
        already = champion == version  # by a run that ended before it could say so, or a forced one
        previous = previous_champion(entries, champion) if already else champion
        gates = (
            champion_gate(compared_with, previous, replaced=already)
            if compared_with != version
            else champion_gate(compared_with, champion),
            not_rolled_back_gate(
                entries,
                champion,
                challenger.tags.get("weights.sha256", ""),
                lambda other: _weights_of(client, name, other),
            ),
            *evaluate_gates(figures, config),
        )
        if already:
            held = tuple(gate.sentence for gate in gates if gate.passed)
            return PromotionOutcome(True, version, champion, previous, (_ALREADY, *held), gates)
        refused = [gate.sentence for gate in gates if not gate.passed]
        if refused:
            return PromotionOutcome(False, version, champion, champion, tuple(refused), gates)
        reasons = tuple(gate.sentence for gate in gates)
        _move(client, name, "promote", champion, version, "; ".join(reasons), require_held)
    return PromotionOutcome(True, version, version, champion, reasons, gates)


def set_champion(
    tracking: TrackingConfig, version: str, why: str, *, lock_seconds: float = 60.0
) -> HistoryEntry:
    """Make a version champion because a person says so, past the gates; the reason is kept.

    Raises:
        RegistryError: there is no such version, no reason, or it is champion already.
    """
    if not why.strip():
        raise RegistryError('a promotion by hand needs a reason: --reason "..."; it is kept')
    client = open_client(tracking)
    name = tracking.registered_model
    find_version(tracking, f"models:/{name}/{version}")
    with promotion_lock(client, tracking, lock_seconds) as require_held:
        champion = alias_version(client, name, CHAMPION)
        if champion == version:
            raise RegistryError(f"version {version} of {name} is champion already")
        return _move(client, name, "set", champion, version, why, require_held)


def roll_back(
    tracking: TrackingConfig, why: str = "", *, lock_seconds: float = 60.0
) -> HistoryEntry:
    """Put back the champion before the present one; said again, the one before that.

    Raises:
        RegistryError: there is nothing to go back to, or that version was deleted.
    """
    client = open_client(tracking)
    name = tracking.registered_model
    with promotion_lock(client, tracking, lock_seconds) as require_held:
        champion = alias_version(client, name, CHAMPION)
        previous = previous_champion(read_history(client, name), champion)
        if champion is None or previous is None:
            raise RegistryError(
                f"{name} has no earlier champion to go back to (now: {champion or 'none'}); "
                "`python -m flows.promote --history` shows what there was, `--version N` sets one"
            )
        find_version(tracking, f"models:/{name}/{previous}")
        reason = why.strip() or "rolled back by hand"
        return _move(client, name, "rollback", champion, previous, reason, require_held)


def history(tracking: TrackingConfig) -> list[HistoryEntry]:
    """Every change of the champion, oldest first; [] before the first.

    Raises:
        RegistryError: MLflow does not answer.
    """
    return read_history(open_client(tracking), tracking.registered_model)


def previous_champion(entries: list[HistoryEntry], champion: str | None) -> str | None:
    """The version to go back to: the one below the present champion on the stack of champions.

    A promotion puts a version on that stack and a rollback takes one off, so that two rollbacks in
    a row go back two versions and do not swap the same two.
    """
    stack: list[str] = []
    for entry in _moves_made(entries, champion):
        if entry.action == "rollback":
            while stack and stack[-1] != entry.to_version:
                stack.pop()
            if not stack and entry.to_version is not None:
                stack = [entry.to_version]
            continue
        if not stack and entry.from_version is not None:
            stack.append(entry.from_version)  # was put there before this history began
        if entry.to_version is not None:
            stack.append(entry.to_version)
    while stack and stack[-1] != champion:
        stack.pop()  # the alias was moved by other means
    below = [version for version in stack[:-1] if version != champion]
    return below[-1] if below else None


def _moves_made(entries: Sequence[HistoryEntry], champion: str | None) -> Iterator[HistoryEntry]:
    """Without the entries after which the champion still was the one before: their move was never
    made, because the process died between the record and the move.
    """
    afterwards = [*(entry.from_version for entry in entries[1:]), champion]
    for entry, really in zip(entries, afterwards, strict=False):
        if really != entry.from_version:
            yield entry


def read_history(client: MlflowClient, name: str) -> list[HistoryEntry]:
    """The history in the registered model's tags, oldest first."""
    entries = []
    for tag, value in _model_tags(client, name).items():
        if tag.startswith(_HISTORY) and tag.removeprefix(_HISTORY).isdigit():
            fields: dict[str, Any] = json.loads(value)
            entries.append(HistoryEntry(**fields))
    return sorted(entries, key=lambda entry: entry.number)


def _move(
    client: MlflowClient,
    name: str,
    action: Literal["promote", "rollback", "set"],
    champion: str | None,
    version: str,
    why: str,
    require_held: RequireHeld,
) -> HistoryEntry:
    """Append to the history, then move the alias, if the caller's lock still holds at each.

    The entry comes first: a process that dies between the two leaves a record of a change that did
    not happen, which the next rollback sees through, and never a change without a record.
    """
    from mlflow.exceptions import MlflowException

    entries = read_history(client, name)
    entry = HistoryEntry(
        number=entries[-1].number + 1 if entries else 1,
        action=action,
        from_version=champion,
        to_version=version,
        who=f"{_user()}@{socket.gethostname()}",
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        why=why[:_MAX_REASON_CHARACTERS],
    )
    require_held()
    try:
        tag = f"{_HISTORY}{entry.number:06d}"
        client.set_registered_model_tag(name, tag, json.dumps(asdict(entry), ensure_ascii=False))
        require_held()
        client.set_registered_model_alias(name, CHAMPION, version)
    except MlflowException as error:
        raise RegistryError(
            f"MLflow refuses to make version {version} champion: {error}"
        ) from error
    return entry


def _weights_of(client: MlflowClient, name: str, version: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        tags: dict[str, str] = client.get_model_version(name, version).tags
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None  # deleted since
        raise RegistryError(f"MLflow cannot read version {version} of {name}: {error}") from error
    return tags.get("weights.sha256")


def _model_tags(client: MlflowClient, name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).tags)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise RegistryError(f"MLflow cannot read the history of {name}: {error}") from error


def _user() -> str:
    try:
        return os.environ.get("STATESET_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
