"""The findings of an evaluation, in the forms that files, gates and people read.

Owns the names of the metrics, the bands that a policy must stay in, and the rows behind the plots.
It does not know files, templates or trackers.

Where no champion is in service yet, the base model stands in for it: it is played once, and every
champion number is the base's.
"""

from __future__ import annotations

import math
from collections import Counter
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

_NAMES: tuple[PolicyName, ...] = ("base", "champion", "challenger")

# Measures whose difference has its interval in metrics.json, against base and champion.
_HEADLINES = frozenset({"reward", "rubric"})

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
                middle + config.fluency_band[0],
                middle + config.fluency_band[1],
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

    `<measure>.<policy>` are means, for base, champion and challenger. `<measure>.vs_champion.mean`
    are paired differences of the challenger, for the reward and its parts; the reward and the
    rubric have `.low` and `.high` too (no ends where there is a single cluster), and the same
    against the base, at the coverage `confidence`. `comparison.json` has all the others.
    """
    metrics: dict[str, float | int | str] = {"confidence": evaluation.confidence}
    parts = [name for name in evaluation.means["challenger"] if name not in OWN_MEASURES]
    for measure in ("reward", *parts):
        metrics |= _means(evaluation, measure)
        differences = evaluation.versus_champion.differences
        if measure in _HEADLINES:
            metrics |= _ends(f"{measure}.vs_champion", differences[measure])
            metrics |= _ends(f"{measure}.vs_base", evaluation.versus_base.differences[measure])
        elif measure in differences:
            metrics[f"{measure}.vs_champion.mean"] = differences[measure].mean
    for measure in ("log_likelihood", "answer_tokens", "truncated"):
        metrics |= _means(evaluation, measure)
    for name in _NAMES:
        shown = evaluation.standing_for(name)
        policy, varied = evaluation.policies[shown], evaluation.diversity[shown]
        metrics[f"distinct_2.{name}"] = varied.distinct_2
        metrics[f"identical_answers.{name}"] = varied.identical_answers
        metrics[f"latency_ms_per_turn.{name}"] = policy.milliseconds_per_turn
        metrics[f"failed.{name}"] = policy.failed_count
    metrics |= _champion_metrics(evaluation)
    for gate in dict.fromkeys(band.gate for band in evaluation.bands):
        inside = all(band.inside for band in evaluation.bands if band.gate == gate)
        metrics[f"{gate}.in_band"] = int(inside)
    metrics |= evaluation.counts()
    return {name: _rounded(value) for name, value in metrics.items()}


def _means(evaluation: Evaluation, measure: str) -> dict[str, float | int | str]:
    """A measure's mean for each policy that has it."""
    found = {name: evaluation.means[evaluation.standing_for(name)].get(measure) for name in _NAMES}
    return {
        f"{measure}.{name}": interval.mean
        for name, interval in found.items()
        if interval is not None
    }


def _comparisons(evaluation: Evaluation) -> tuple[tuple[str, Comparison], ...]:
    return (("champion", evaluation.versus_champion), ("base", evaluation.versus_base))


def _champion_metrics(evaluation: Evaluation) -> dict[str, float | int | str]:
    """Win rate, the reward's interval with the other kind of cluster, and who the champion is."""
    comparison = evaluation.versus_champion
    wide = comparison.reward_by_other_cluster
    ends = {
        "reward.vs_champion.other_cluster_low": wide.low,
        "reward.vs_champion.other_cluster_high": wide.high,
    }
    metrics: dict[str, float | int | str] = {
        "win_rate.vs_champion": comparison.win_rate.rate.mean,
        "dropped_pairs.vs_champion": comparison.dropped_pairs,
        "champion.version": evaluation.champion_version,
        "champion.model_name": evaluation.policy("champion").title,
    }
    return metrics | {name: end for name, end in ends.items() if end is not None}


def _ends(prefix: str, interval: Interval) -> dict[str, float | int | str]:
    found: dict[str, float | int | str] = {f"{prefix}.mean": interval.mean}
    if interval.low is not None and interval.high is not None:
        found |= {f"{prefix}.low": interval.low, f"{prefix}.high": interval.high}
    return found


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


def intent_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Rows of the plot by intent: intent, conversations, the mean reward of base, champion and
    challenger (None where every conversation of it failed), and the paired `difference` of
    challenger and champion with `low` and `high` (None with a single scenario), of the reward and
    of the rubric.
    """
    rows = []
    for intent, measures in evaluation.versus_champion.by_intent.items():
        rewards = {
            name: [
                one.measures()["reward"]
                for one in evaluation.policy(name).scored
                if one.intent == intent
            ]
            for name in _NAMES
        }
        row: dict[str, Any] = {"intent": intent, "conversations": len(rewards["challenger"])}
        # the base may have failed in every conversation of an intent that the others finished
        row |= {
            name: math.fsum(found) / len(found) if found else None
            for name, found in rewards.items()
        }
        row |= {"difference": measures["reward"].mean}
        row |= {"low": measures["reward"].low, "high": measures["reward"].high}
        if "rubric" in measures:
            row["rubric_difference"] = measures["rubric"].mean
        rows.append({name: _rounded(value) for name, value in row.items()})
    return rows


def distribution_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Rows of the plot of rewards: `reward` (middle of a bin) and the share of each policy's
    conversations in it.

    The bins are 20 of equal width over [0, 1], wider where rewards lie outside.
    """
    rewards = {
        name: [one.measures()["reward"] for one in evaluation.policy(name).scored]
        for name in _NAMES
    }
    everything = [reward for values in rewards.values() for reward in values]
    low, high = min(0.0, *everything), max(1.0, *everything)
    width = (high - low) / _BINS
    rows: list[dict[str, Any]] = [
        {"reward": round(low + (number + 0.5) * width, 6)} | dict.fromkeys(_NAMES, 0.0)
        for number in range(_BINS)
    ]
    for name, values in rewards.items():
        counts = Counter(min(_BINS - 1, int((reward - low) / width)) for reward in values)
        for number, count in counts.items():
            rows[number][name] = round(count / len(values), 6)
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
        "diversity": {name: found.as_dict() for name, found in evaluation.diversity.items()},
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
