"""The findings of an evaluation, in the forms that files, gates and people read.

Owns the names of the metrics, the bands that a policy must stay in, and the rows behind the plots.
It does not know files, templates or trackers.

Where no champion is in service yet, the base model stands in for it: it is played once, and every
champion number is the base's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from stateset_agents.evaluation.compare import Comparison, Interval, compare, policy_means
from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.evaluation.diversity import Diversity, diversity
from stateset_agents.evaluation.results import (
    OWN_MEASURES,
    EvaluatedConversation,
    PolicyName,
    PolicyResult,
)
from stateset_agents.exceptions import EvaluationError

BASE_STANDS_IN = "base"

_BINS = 20


@dataclass(frozen=True, slots=True)
class Band:
    """A range that the challenger's value must be in; an open end is None.

    `gate` is what promotion asks for; a gate may have several bands.
    """

    gate: Literal["fluency", "distinctness"]
    title: str
    description: str
    value: float
    low: float | None
    high: float | None

    @property
    def inside(self) -> bool:
        """True when the value is in the range, ends included; False for NaN."""
        return (self.low is None or self.value >= self.low) and (
            self.high is None or self.value <= self.high
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was found.

    Attributes:
        policies: those that were played: base, champion if there is one, challenger.
        means: by policy and measure.
        diversity: by policy.
        versus_champion: the challenger minus the champion (minus the base where it stands in).
        versus_base: the challenger minus the base; the same object where the base stands in.
        bands: what keeps the challenger honest.
        champion_version: the registry's version, or "base" where the base stands in.
        confidence: of every interval.
    """

    policies: dict[PolicyName, PolicyResult]
    means: dict[PolicyName, dict[str, Interval]]
    diversity: dict[PolicyName, Diversity]
    versus_champion: Comparison
    versus_base: Comparison
    bands: tuple[Band, ...]
    champion_version: str
    confidence: float

    @property
    def base_stands_in(self) -> bool:
        """True when there is no champion to compare with."""
        return "champion" not in self.policies

    def policy(self, name: PolicyName) -> PolicyResult:
        """A policy's conversations; the base's for a champion that is not there."""
        return self.policies[self.standing_for(name)]

    def counts(self) -> dict[str, int]:
        """Scenarios, intents, seeds and conversations that each policy played."""
        played = self.policies["challenger"].conversations
        return {
            "scenarios": len({one.key[0] for one in played}),
            "intents": len({one.intent for one in played}),
            "seeds": len({one.seed for one in played}),
            "conversations": len(played),
        }

    def standing_for(self, name: PolicyName) -> PolicyName:
        """The policy whose numbers are shown under a name."""
        return "base" if name == "champion" and self.base_stands_in else name


def summarise(policies: Sequence[PolicyResult], config: EvaluationConfig) -> Evaluation:
    """Compare what was played.

    Args:
        policies: base and challenger, and the champion if there is one, in any order.
        config: how to draw intervals, and the bands.

    Raises:
        EvaluationError: base or challenger is missing, too many conversations of one failed, or
            they did not play the same scenarios and seeds.
    """
    named: dict[PolicyName, PolicyResult] = {one.name: one for one in policies}
    missing = [name for name in ("base", "challenger") if name not in named]
    if missing:
        raise EvaluationError(f"no conversations of: {', '.join(missing)}; both are needed")
    for one in policies:
        _check_failures(one, config)
        _check_part_names(one)
    base, challenger = named["base"], named["challenger"]
    champion = named.get("champion")
    versus_base = compare(challenger, base, config)
    means = {one.name: policy_means(one, config) for one in policies}
    varied = {one.name: diversity(one) for one in policies}
    return Evaluation(
        policies=named,
        means=means,
        diversity=varied,
        versus_champion=compare(challenger, champion, config) if champion else versus_base,
        versus_base=versus_base,
        bands=_bands(means, varied, config),
        champion_version=(champion.version or "unregistered") if champion else BASE_STANDS_IN,
        confidence=config.confidence,
    )


def _check_failures(result: PolicyResult, config: EvaluationConfig) -> None:
    """Raise when more conversations failed than may be left out."""
    total = len(result.conversations)
    if result.failed_count <= config.max_failed_share * total:
        return
    first = next(one for one in result.conversations if one.failed)
    raise EvaluationError(
        f"{result.failed_count} of {total} conversations of {result.name} ({result.title}) failed; "
        f"allowed is a share of {config.max_failed_share:g} (evaluate.max_failed_share). The first "
        f"is scenario {first.key[0]}, seed {first.seed}: {first.trajectory.error}"
    )


def _check_part_names(result: PolicyResult) -> None:
    """Raise when a part of the reward has the name of a measure of our own."""
    ours = OWN_MEASURES | {field.name for field in fields(Diversity)}
    taken = sorted({name for one in result.scored for name in one.trajectory.reward_parts} & ours)
    if taken:
        raise EvaluationError(
            f"a reward is named {', '.join(taken)}, as a measure of the evaluation is; give it "
            f"another name (taken are {', '.join(sorted(ours))})"
        )


def _bands(
    means: dict[PolicyName, dict[str, Interval]],
    varied: dict[PolicyName, Diversity],
    config: EvaluationConfig,
) -> tuple[Band, ...]:
    """The challenger's bands around the base."""
    bands = []
    if "log_likelihood" in means["base"] and "log_likelihood" in means["challenger"]:
        middle = means["base"]["log_likelihood"].mean
        bands.append(
            Band(
                "fluency",
                "log-likelihood",
                "mean log-likelihood of the answers under the base model, nats a token",
                means["challenger"]["log_likelihood"].mean,
                middle - config.fluency_band,
                middle + config.fluency_band,
            )
        )
    floor = max(config.distinctness_floor, varied["base"].distinct_2 - config.distinctness_band)
    bands.append(
        Band(
            "distinctness",
            "distinct pairs of words",
            "different pairs of words among all pairs, in blocks of equal size",
            varied["challenger"].distinct_2,
            floor,
            None,
        )
    )
    bands.append(
        Band(
            "distinctness",
            "identical answers",
            "share of answers that are given word for word in another scenario",
            varied["challenger"].identical_answers,
            None,
            config.max_identical_answers,
        )
    )
    return tuple(bands)


def flat_metrics(evaluation: Evaluation) -> dict[str, float | int | str]:
    """`metrics.json`: one flat mapping, names with dots, rounded to 6 places.

    `<measure>.<policy>` are means; `<measure>.vs_<policy>.mean|low|high` are paired differences of
    the challenger (no ends where there is a single cluster). Measures are `reward`, its parts,
    `log_likelihood` (of the answers under the base model, nats a token), `answer_tokens` (a turn),
    `truncated` (share); diversity's are shares.
    """
    names: tuple[PolicyName, ...] = ("base", "champion", "challenger")
    metrics: dict[str, float | int | str] = {}
    for measure in evaluation.means["challenger"]:
        for name in names:
            found = evaluation.means[evaluation.standing_for(name)].get(measure)
            if found is not None:
                metrics[f"{measure}.{name}"] = found.mean
        for other, comparison in _comparisons(evaluation):
            if measure in comparison.differences:
                metrics |= _ends(f"{measure}.vs_{other}", comparison.differences[measure])
    for measure in evaluation.diversity["challenger"].as_dict():
        for name in names:
            varied = evaluation.diversity[evaluation.standing_for(name)].as_dict()
            metrics[f"{measure}.{name}"] = varied[measure]
    for other, comparison in _comparisons(evaluation):
        metrics |= _comparison_metrics(other, comparison)
    for name in names:
        policy = evaluation.policy(name)
        metrics[f"latency_ms_per_turn.{name}"] = policy.milliseconds_per_turn
        metrics[f"failed.{name}"] = policy.failed_count
    for gate in dict.fromkeys(band.gate for band in evaluation.bands):
        inside = all(band.inside for band in evaluation.bands if band.gate == gate)
        metrics[f"{gate}.in_band"] = int(inside)
    metrics |= evaluation.counts()
    metrics["champion.version"] = evaluation.champion_version
    metrics["champion.model_name"] = evaluation.policy("champion").title
    return {name: _rounded(value) for name, value in metrics.items()}


def _comparisons(evaluation: Evaluation) -> tuple[tuple[str, Comparison], ...]:
    return (("champion", evaluation.versus_champion), ("base", evaluation.versus_base))


def _comparison_metrics(other: str, comparison: Comparison) -> dict[str, float | int | str]:
    """Win rate and the reward's interval with the other kind of cluster."""
    rate = comparison.win_rate
    pairs = comparison.pairs
    metrics: dict[str, float | int | str] = {
        f"win_rate.vs_{other}": rate.rate.mean,
        f"ties.vs_{other}": rate.ties / pairs,
        f"dropped_pairs.vs_{other}": comparison.dropped_pairs,
    }
    wide = comparison.reward_by_other_cluster
    ends = {
        f"win_rate.vs_{other}.low": rate.rate.low,
        f"win_rate.vs_{other}.high": rate.rate.high,
        f"reward.vs_{other}.other_cluster_low": wide.low,
        f"reward.vs_{other}.other_cluster_high": wide.high,
    }
    return metrics | {name: end for name, end in ends.items() if end is not None}


def _ends(prefix: str, interval: Interval) -> dict[str, float | int | str]:
    found: dict[str, float | int | str] = {f"{prefix}.mean": interval.mean}
    if interval.low is not None and interval.high is not None:
        found |= {f"{prefix}.low": interval.low, f"{prefix}.high": interval.high}
    return found


def _rounded(value: float | int | str) -> float | int | str:
    return round(value, 6) if isinstance(value, float) else value


def intent_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Rows of the plot by intent: policy, intent, mean reward and rubric, conversations."""
    rows = []
    for name, policy in evaluation.policies.items():
        for intent in sorted({one.intent for one in policy.scored}):
            measured = [one.measures() for one in policy.scored if one.intent == intent]
            row: dict[str, Any] = {"policy": name, "intent": intent, "conversations": len(measured)}
            for measure in ("reward", "rubric"):
                if all(measure in one for one in measured):
                    row[measure] = round(math.fsum(m[measure] for m in measured) / len(measured), 6)
            rows.append(row)
    return rows


def distribution_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Rows of the plot of rewards: policy, `reward` (middle of a bin) and share of conversations.

    The bins are 20 of equal width over [0, 1], wider where rewards lie outside.
    """
    rewards = {
        name: [one.measures()["reward"] for one in policy.scored]
        for name, policy in evaluation.policies.items()
    }
    everything = [reward for values in rewards.values() for reward in values]
    low, high = min(0.0, *everything), max(1.0, *everything)
    width = (high - low) / _BINS
    rows = []
    for name, values in rewards.items():
        counts = [0] * _BINS
        for reward in values:
            counts[min(_BINS - 1, int((reward - low) / width))] += 1
        rows += [
            {
                "policy": name,
                "reward": round(low + (bin_number + 0.5) * width, 6),
                "share": round(count / len(values), 6),
            }
            for bin_number, count in enumerate(counts)
        ]
    return rows


def comparison_document(evaluation: Evaluation) -> dict[str, Any]:
    """`comparison.json`: every comparison in full, by intent too, and the bands."""
    return {
        "confidence": evaluation.confidence,
        "champion_version": evaluation.champion_version,
        "bands": [asdict(band) | {"inside": band.inside} for band in evaluation.bands],
        "means": {
            name: {measure: asdict(interval) for measure, interval in measures.items()}
            for name, measures in evaluation.means.items()
        },
    } | {
        f"versus_{other}": {
            name: value
            for name, value in asdict(comparison).items()
            if name != "reward_differences"
        }
        for other, comparison in _comparisons(evaluation)
    }


def conversation_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Rows of `conversations.jsonl`: every conversation of every policy, failed ones too."""
    return [
        _conversation_row(name, one)
        for name, policy in evaluation.policies.items()
        for one in policy.conversations
    ]


def _conversation_row(name: PolicyName, one: EvaluatedConversation) -> dict[str, Any]:
    scenario, seed = one.key
    return {
        "policy": name,
        "scenario": scenario,
        "intent": one.intent,
        "seed": seed,
        "stop_reason": str(one.trajectory.stop_reason),
        "error": one.trajectory.error,
        "measures": {} if one.failed else {k: _rounded(v) for k, v in one.measures().items()},
        "rubric": [
            {"kind": item.kind, "description": item.description, "met": item.met}
            for item in one.rubric
        ],
        "messages": [{"role": turn.role, "content": turn.content} for turn in one.trajectory.turns],
    }
