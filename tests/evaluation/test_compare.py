import numpy as np
import pytest
from scipy import stats

from stateset_agents.evaluation.compare import (
    cluster_bootstrap,
    compare,
    policy_means,
    tail_probability,
)
from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.evaluation.results import PolicyResult
from stateset_agents.exceptions import EvaluationError
from tests.evaluation.made import conversation, policy

QUICK = EvaluationConfig(seeds=[1, 2], bootstrap_samples=2_000)


def one_interval(values, clusters, confidence=0.95, samples=20_000, seed=0):
    values = np.asarray(values, dtype=np.float64)[:, None]
    return cluster_bootstrap(values, clusters, samples=samples, confidence=confidence, seed=seed)[0]


def test_the_interval_is_scipys_percentile_interval_at_the_expanded_confidence():
    values = np.random.default_rng(3).gamma(2.0, size=40)
    ours = one_interval(values, [f"s{i}" for i in range(40)])
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=20_000,
        method="percentile",
        confidence_level=1 - 2 * tail_probability(0.95, 40),
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.02 * values.std())
    assert ours.high == pytest.approx(theirs.high, abs=0.02 * values.std())


def test_the_expanded_tail_is_hesterbergs_and_the_plain_one_for_many_clusters():
    # t(0.975, 9) = 2.2622; sqrt(10 / 9) * 2.2622 = 2.3846; Phi(-2.3846) = 0.00855
    assert tail_probability(0.95, 10) == pytest.approx(0.00855, abs=1e-5)
    assert tail_probability(0.95, 100_000) == pytest.approx(0.025, abs=1e-5)


def test_conversations_of_one_scenario_are_drawn_together():
    # 8 scenarios, each repeated 25 times with the same value: there are 8 observations, not 200.
    values = np.repeat(np.arange(8.0), 25)
    together = one_interval(values, [f"s{i // 25}" for i in range(200)])
    alone = one_interval(np.arange(8.0), [f"s{i}" for i in range(8)])
    singly = one_interval(values, [f"c{i}" for i in range(200)])
    assert together == alone
    assert together.high - together.low > 3 * (singly.high - singly.low)


def test_a_large_cluster_keeps_its_weight_in_the_mean():
    # (0 + 0 + 0 + 4) / 4, not the mean of the clusters' means (0 + 4) / 2
    assert one_interval([0, 0, 0, 4], ["a", "a", "a", "b"]).mean == 1.0


def test_one_cluster_has_a_mean_and_no_ends():
    interval = one_interval([1.0, 3.0], ["a", "a"])
    assert (interval.mean, interval.low, interval.high) == (2.0, None, None)
    assert not interval.excludes_zero


def test_the_same_conversations_give_the_same_interval():
    values = np.random.default_rng(0).normal(size=30)
    clusters = [f"s{i}" for i in range(30)]
    assert one_interval(values, clusters, seed=5) == one_interval(values, clusters, seed=5)
    assert one_interval(values, clusters, seed=5) != one_interval(values, clusters, seed=6)


def test_the_interval_excludes_0_for_a_real_difference_and_covers_0_for_two_equal_policies():
    # 300 simulated evaluations of 12 scenarios x 2 seeds: a scenario's effect and a sample's.
    generator = np.random.default_rng(8)
    clusters = [f"s{i // 2}" for i in range(24)]
    covered = detected = 0
    for _ in range(300):
        scenario = np.repeat(generator.normal(0, 0.1, size=12), 2)
        equal = scenario + generator.normal(0, 0.1, size=24)
        covered += not one_interval(equal, clusters, samples=400).excludes_zero
        detected += one_interval(equal + 0.2, clusters, samples=400).low > 0
    # 95% of 300 is 285; three binomial standard deviations are 11.3
    assert 274 <= covered <= 296
    assert detected >= 295  # 0.2 is 5.6 standard errors of the mean


def test_the_same_scenarios_difficulty_falls_out_of_the_difference():
    hard = {f"{intent}-{i}": i / 10 for intent in ("refund", "delivery") for i in range(6)}
    challenger = policy("challenger", lambda scenario, seed: hard[scenario] + 0.1)
    champion = policy("champion", lambda scenario, seed: hard[scenario])
    difference = compare(challenger, champion, QUICK).differences["reward"]
    assert difference.mean == pytest.approx(0.1)
    assert difference.low == pytest.approx(0.1)
    assert difference.high == pytest.approx(0.1)
    alone = policy_means(champion, QUICK)["reward"]
    assert alone.high - alone.low > 0.15


def test_every_part_has_its_difference_overall_and_by_intent():
    better_at_refunds = policy("challenger", lambda scenario, seed: 0.5 + ("refund" in scenario))
    base = policy("base", lambda scenario, seed: 0.5)
    comparison = compare(better_at_refunds, base, QUICK)
    measures = ["reward", "rubric", "safety", "answer_tokens", "truncated", "log_likelihood"]
    assert list(comparison.differences) == measures
    assert comparison.differences["rubric"].mean == 0.5
    assert comparison.differences["safety"].mean == 0.0
    assert comparison.by_intent["refund"]["rubric"].mean == 1.0
    assert comparison.by_intent["delivery"]["rubric"].mean == 0.0
    assert comparison.pairs == 24


def test_drawing_intents_is_less_sure_than_drawing_scenarios():
    challenger = policy("challenger", lambda scenario, seed: 0.5 + 0.2 * ("refund" in scenario))
    comparison = compare(challenger, policy("base", lambda scenario, seed: 0.5), QUICK)
    by_scenario, by_intent = comparison.differences["reward"], comparison.reward_by_other_cluster
    assert by_scenario.excludes_zero
    assert not by_intent.excludes_zero  # two intents, one of which gained nothing
    assert by_intent.mean == by_scenario.mean


def test_a_tie_is_half_a_win():
    gains = {"refund-0": 0.3, "refund-1": 0.004, "refund-2": -0.3, "refund-3": 0.3}
    challenger = policy("challenger", lambda scenario, seed: 0.5 + gains[scenario],
                        intents=("refund",), scenarios_per_intent=4)  # fmt: skip
    base = policy("base", lambda s, seed: 0.5, intents=("refund",), scenarios_per_intent=4)
    rate = compare(challenger, base, QUICK).win_rate
    assert (rate.wins, rate.ties, rate.losses) == (4, 2, 2)
    assert rate.rate.mean == 5 / 8


def test_a_failed_conversation_drops_its_pair_and_is_counted():
    ours = [conversation("a", reward=1.0), conversation("b", reward=0.0, failed=True)]
    theirs = [conversation("a", reward=0.5), conversation("b", reward=0.5)]
    comparison = compare(
        PolicyResult("challenger", "new", tuple(ours)), PolicyResult("base", "old", tuple(theirs)),
        QUICK,
    )  # fmt: skip
    assert (comparison.pairs, comparison.dropped_pairs) == (1, 1)
    assert comparison.differences["reward"].mean == 0.5


def test_policies_that_played_different_scenarios_are_not_compared():
    ours = PolicyResult("challenger", "new", (conversation("a"), conversation("b")))
    theirs = PolicyResult("base", "old", (conversation("a"),))
    with pytest.raises(EvaluationError, match=r"1 \(scenario, seed\).*\('b', 1\)"):
        compare(ours, theirs, QUICK)


def test_when_every_conversation_failed_there_is_no_comparison():
    ours = PolicyResult("challenger", "new", (conversation("a", failed=True),))
    theirs = PolicyResult("base", "old", (conversation("a"),))
    with pytest.raises(EvaluationError, match="no conversation is left"):
        compare(ours, theirs, QUICK)
    with pytest.raises(EvaluationError, match="every conversation of a policy failed"):
        policy_means(ours, QUICK)
