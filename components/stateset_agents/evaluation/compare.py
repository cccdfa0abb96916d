"""Is one policy better than another, and how sure is that?

Two policies are compared on the same scenarios with the same seeds, so the difference is taken
pair by pair: what makes a scenario hard is in both and falls out. Intervals come from a bootstrap
that draws *whole scenarios*, not conversations: the conversations of one scenario with different
seeds share their words and their rubric, and drawing them singly would count them as independent
evidence and make the interval too narrow (Field and Welsh, "Bootstrapping clustered data", 2007).
Scenarios of one intent are related as well. Drawing whole intents answers the harder question, "on
intents that nobody has written yet", at the price of few clusters; both can be asked here.

The ends are those of the *expanded* percentile interval (Hesterberg, "What teachers should know
about the bootstrap", 2015): with C clusters the plain percentile interval is too narrow by about
sqrt((C - 1) / C) and by the ratio of normal to t quantiles, which matters for the handful of
scenarios of one intent. For many clusters the two are the same.

It does not know how conversations were played or scored.

Notation: N conversations, C clusters, M measures, S bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.evaluation.results import EvaluatedConversation, PolicyResult
from stateset_agents.exceptions import EvaluationError

Floats = NDArray[np.float64]

# The draws are made this many at a time, so that memory is this times C, not S times C.
_DRAWS_AT_ONCE = 1_000

# A number of clusters below which the ends of an interval are not shown: with one there are none.
_FEWEST_CLUSTERS = 2


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its confidence interval; the ends are None with a single cluster."""

    mean: float
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """True when the whole interval is on one side of 0."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


@dataclass(frozen=True, slots=True)
class WinRate:
    """Pairs that the challenger won, tied and lost; `rate` counts a tie as half a win."""

    wins: int
    ties: int
    losses: int
    rate: Interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """The challenger minus the baseline.

    Attributes:
        baseline: name of the policy that it was compared with.
        pairs: conversations that both policies finished.
        dropped_pairs: those where at least one failed.
        differences: by measure; the clusters are those of the configuration.
        reward_by_other_cluster: the reward's interval with the other kind of cluster.
        by_intent: reward and parts by intent, clusters are scenarios.
        win_rate: by the reward.
        reward_differences: by (scenario id, seed), for ordering the report.
    """

    baseline: str
    pairs: int
    dropped_pairs: int
    differences: dict[str, Interval]
    reward_by_other_cluster: Interval
    by_intent: dict[str, dict[str, Interval]]
    win_rate: WinRate
    reward_differences: dict[tuple[str, int], float]


def tail_probability(confidence: float, clusters: int) -> float:
    """The share of bootstrap means below the lower end of the expanded percentile interval.

    alpha' = Phi(-sqrt(C / (C - 1)) * t(1 - alpha / 2, C - 1)); the plain one is alpha / 2.
    """
    from scipy import stats  # here: it takes half a second, and loading a config needs none of it

    quantile = float(stats.t.ppf(0.5 + confidence / 2, clusters - 1))
    return NormalDist().cdf(-math.sqrt(clusters / (clusters - 1)) * quantile)


def cluster_bootstrap(
    values: Floats, clusters: Sequence[str], *, samples: int, confidence: float, seed: int
) -> list[Interval]:
    """Means of M measures with intervals from drawing clusters again.

    A draw takes C clusters with replacement and averages all their conversations; clusters of
    different sizes keep their weight. Every measure sees the same draws.

    Args:
        values: `(N, M)`, finite.
        clusters: `(N,)`, the cluster of each row.
        samples: S, how often to draw.
        confidence: for instance 0.95.
        seed: of the draws.

    Returns:
        M intervals.

    Raises:
        EvaluationError: nothing to average, or a value that is not finite.
    """
    if values.ndim != 2 or len(values) != len(clusters) or len(values) == 0:
        raise EvaluationError(
            f"cannot average {values.shape} values in {len(clusters)} clusters; one row of "
            "measures per conversation is needed, and at least one conversation"
        )
    if not np.isfinite(values).all():
        raise EvaluationError("a measure is NaN or infinite; failed conversations must be left out")
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    count = len(names)
    means = values.mean(axis=0)
    if count < _FEWEST_CLUSTERS:
        return [Interval(float(mean), None, None) for mean in means]
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, index, values)
    sizes = np.bincount(index, minlength=count).astype(np.float64)
    draws = _bootstrap_means(sums, sizes, samples, np.random.default_rng(seed))
    tail = tail_probability(confidence, count)
    lows, highs = np.quantile(draws, [tail, 1 - tail], axis=0)
    return [
        Interval(float(m), float(low), float(high))
        for m, low, high in zip(means, lows, highs, strict=True)
    ]


def _bootstrap_means(
    sums: Floats, sizes: Floats, samples: int, generator: np.random.Generator
) -> Floats:
    """`(S, M)` means; `sums` is `(C, M)`, `sizes` is `(C,)`."""
    count = len(sizes)
    parts = []
    for start in range(0, samples, _DRAWS_AT_ONCE):
        rows = min(_DRAWS_AT_ONCE, samples - start)
        times = generator.multinomial(count, np.full(count, 1 / count), size=rows)
        parts.append((times @ sums) / (times @ sizes)[:, None])
    return np.concatenate(parts)


def policy_means(result: PolicyResult, config: EvaluationConfig) -> dict[str, Interval]:
    """Every measure's mean over a policy's conversations, with its interval.

    A measure that only some conversations have (the log-likelihood) is averaged over those.

    Raises:
        EvaluationError: every conversation failed.
    """
    return _intervals([(one, one.measures()) for one in result.scored], config, config.cluster)


def compare(
    challenger: PolicyResult, baseline: PolicyResult, config: EvaluationConfig
) -> Comparison:
    """Compare two policies that played the same scenarios with the same seeds.

    Raises:
        EvaluationError: the two did not play the same scenarios and seeds, or no pair is left.
    """
    pairs, dropped = _paired(challenger, baseline)
    rows = [(ours, _difference(ours, theirs)) for ours, theirs in pairs]
    rewards = {ours.key: values["reward"] for ours, values in rows}
    other = "intent" if config.cluster == "scenario" else "scenario"
    reward_rows = [(ours, {"reward": values["reward"]}) for ours, values in rows]
    intents = sorted({ours.intent for ours, _ in rows})
    return Comparison(
        baseline=baseline.name,
        pairs=len(pairs),
        dropped_pairs=dropped,
        differences=_intervals(rows, config, config.cluster),
        reward_by_other_cluster=_intervals(reward_rows, config, other)["reward"],
        by_intent={
            intent: _intervals([row for row in rows if row[0].intent == intent], config, "scenario")
            for intent in intents
        },
        win_rate=_win_rate(rows, config),
        reward_differences=rewards,
    )


Pair = tuple[EvaluatedConversation, EvaluatedConversation]
Measured = tuple[EvaluatedConversation, dict[str, float]]


def _paired(challenger: PolicyResult, baseline: PolicyResult) -> tuple[list[Pair], int]:
    """The pairs that both finished, and how many were dropped because one failed."""
    ours = {one.key: one for one in challenger.conversations}
    theirs = {one.key: one for one in baseline.conversations}
    if ours.keys() != theirs.keys():
        alone = sorted(ours.keys() ^ theirs.keys())
        raise EvaluationError(
            f"{challenger.name} and {baseline.name} did not play the same conversations: "
            f"{len(alone)} (scenario, seed) of one are missing in the other, for instance "
            f"{alone[0]}; evaluate both on the same scenarios and seeds"
        )
    pairs = [(ours[key], theirs[key]) for key in ours]
    finished = [pair for pair in pairs if not (pair[0].failed or pair[1].failed)]
    if not finished:
        raise EvaluationError(
            f"no conversation is left to compare: in each of the {len(pairs)} pairs of "
            f"{challenger.name} and {baseline.name} at least one failed; see conversations.jsonl"
        )
    return finished, len(pairs) - len(finished)


def _difference(ours: EvaluatedConversation, theirs: EvaluatedConversation) -> dict[str, float]:
    """Ours minus theirs, for the measures that both have."""
    mine, yours = ours.measures(), theirs.measures()
    return {name: value - yours[name] for name, value in mine.items() if name in yours}


def _intervals(
    rows: Sequence[Measured], config: EvaluationConfig, cluster: str
) -> dict[str, Interval]:
    """An interval for each measure. Measures that the same rows have share their draws."""
    if not rows:
        raise EvaluationError("every conversation of a policy failed; see conversations.jsonl")
    cluster_of: Callable[[EvaluatedConversation], str] = (
        (lambda one: one.key[0]) if cluster == "scenario" else (lambda one: one.intent)
    )
    names = list(dict.fromkeys(name for _, values in rows for name in values))
    having = {name: tuple(i for i, row in enumerate(rows) if name in row[1]) for name in names}
    found: dict[str, Interval] = {}
    for indices in dict.fromkeys(having.values()):
        together = [name for name in names if having[name] == indices]
        intervals = cluster_bootstrap(
            np.array([[rows[i][1][name] for name in together] for i in indices], dtype=np.float64),
            [cluster_of(rows[i][0]) for i in indices],
            samples=config.bootstrap_samples,
            confidence=config.confidence,
            seed=config.bootstrap_seed,
        )
        found |= dict(zip(together, intervals, strict=True))
    return {name: found[name] for name in names}


def _win_rate(rows: Sequence[Measured], config: EvaluationConfig) -> WinRate:
    """Wins, ties and losses by the reward."""
    differences = [values["reward"] for _, values in rows]
    wins = sum(d > config.tie_tolerance for d in differences)
    losses = sum(d < -config.tie_tolerance for d in differences)
    points = [0.5 if abs(d) <= config.tie_tolerance else float(d > 0) for d in differences]
    scored = [(one, {"win": point}) for (one, _), point in zip(rows, points, strict=True)]
    rate = _intervals(scored, config, config.cluster)["win"]
    return WinRate(wins, len(rows) - wins - losses, losses, rate)
