import json
import math

import pytest

from stateset_agents.evaluation.config import EvaluationConfig
from stateset_agents.evaluation.results import PolicyResult
from stateset_agents.evaluation.summary import (
    comparison_document,
    conversation_rows,
    distribution_rows,
    flat_metrics,
    intent_rows,
    summarise,
)
from stateset_agents.exceptions import EvaluationError
from tests.evaluation.made import conversation, policy

CONFIG = EvaluationConfig(
    seeds=[1, 2],
    bootstrap_samples=500,
    confidence=0.9,
    distinctness_floor=0.0,
    max_identical_answers=0.6,
)


def three():
    return [
        policy("base", lambda scenario, seed: 0.25),
        policy("champion", lambda scenario, seed: 0.5),
        policy("challenger", lambda scenario, seed: 0.75),
    ]


def test_the_metrics_are_one_flat_mapping_of_numbers_and_the_champions_name():
    metrics = flat_metrics(summarise(three(), CONFIG))
    assert {k for k, v in metrics.items() if isinstance(v, str)} == {
        "champion.version", "champion.model_name"
    }  # fmt: skip
    assert all(math.isfinite(v) for v in metrics.values() if not isinstance(v, str))
    expected = {
        "confidence": 0.9,
        "reward.base": 0.25,
        "reward.champion": 0.5,
        "reward.challenger": 0.75,
        "rubric.vs_champion.mean": 0.25,
        "rubric.vs_base.low": 0.5,
        "safety.challenger": 1.0,
        "log_likelihood.base": -2.0,
        "win_rate.vs_champion": 1.0,
        "safety.vs_champion.mean": 0.0,
        "failed.challenger": 0,
        "latency_ms_per_turn.challenger": 100.0,  # 4.8 s for 24 conversations of 2 turns
        "fluency.in_band": 1,
        "distinctness.in_band": 1,
        "scenarios": 12,
        "intents": 2,
        "seeds": 2,
        "conversations": 24,
    }
    assert {name: metrics[name] for name in expected} == expected


def test_without_a_champion_the_base_stands_in_and_its_numbers_are_the_champions():
    base, _, challenger = three()
    evaluation = summarise([base, challenger], CONFIG)
    metrics = flat_metrics(evaluation)
    assert evaluation.base_stands_in
    assert metrics["champion.version"] == "base"
    assert metrics["champion.model_name"] == "the base"
    for name, value in metrics.items():
        if name.endswith(".champion"):
            assert value == metrics[name.removesuffix(".champion") + ".base"]
    assert metrics["reward.vs_champion.mean"] == metrics["reward.vs_base.mean"] == 0.5
    assert all(row["champion"] == row["base"] for row in distribution_rows(evaluation))


def test_a_policy_that_parrots_is_out_of_the_band_of_distinctness():
    base, _, challenger = three()
    strict = EvaluationConfig(seeds=[1, 2], bootstrap_samples=500, max_identical_answers=0.4)
    # half of all made answers are "You are welcome.", in every scenario
    assert flat_metrics(summarise([base, challenger], strict))["distinctness.in_band"] == 0


@pytest.mark.parametrize(("change", "inside"), [(0.69, 1), (-0.49, 1), (0.71, 0), (-0.51, 0)])
def test_fluency_is_out_of_band_when_it_moved_too_far_in_either_direction(change, inside):
    def said(name, log_likelihood):
        return PolicyResult(name, name, tuple(
            conversation(f"s{i}", fluency=log_likelihood) for i in range(3)
        ))  # fmt: skip

    config = CONFIG.model_copy(update={"fluency_band": (-0.5, 0.7)})
    evaluation = summarise([said("base", -2.0), said("challenger", -2.0 + change)], config)
    assert flat_metrics(evaluation)["fluency.in_band"] == inside


def test_many_failures_end_the_evaluation_and_a_few_are_counted():
    def with_failures(count):
        return PolicyResult("challenger", "new", tuple(
            conversation(f"s{i}", failed=i < count) for i in range(50)
        ))  # fmt: skip

    base = PolicyResult("base", "old", tuple(conversation(f"s{i}") for i in range(50)))
    metrics = flat_metrics(summarise([base, with_failures(1)], CONFIG))
    assert metrics["failed.challenger"] == 1
    assert metrics["dropped_pairs.vs_champion"] == 1
    with pytest.raises(EvaluationError, match=r"2 of 50.*challenger.*s0.*the engine is closed"):
        summarise([base, with_failures(2)], CONFIG)


def test_a_reward_with_the_name_of_a_measure_is_refused():
    taken = conversation("s")
    taken.trajectory.reward_parts["truncated"] = 1.0
    one = PolicyResult("base", "b", (taken,))
    with pytest.raises(EvaluationError, match="a reward is named truncated"):
        summarise([one, PolicyResult("challenger", "c", (taken,))], CONFIG)


def test_base_and_challenger_are_both_needed():
    with pytest.raises(EvaluationError, match="challenger"):
        summarise(three()[:2], CONFIG)


def test_the_rows_behind_the_plots_add_up():
    evaluation = summarise(three(), CONFIG)
    rows = distribution_rows(evaluation)
    for name, reward in (("base", 0.25), ("champion", 0.5), ("challenger", 0.75)):
        # all of a policy's made rewards are equal, and lie on the lower edge of a bin of 0.05
        assert {row["reward"]: row[name] for row in rows if row[name]} == {reward + 0.025: 1.0}
    assert intent_rows(evaluation)[0] == {
        "intent": "delivery",
        "conversations": 12,
        "base": 0.25,
        "champion": 0.5,
        "challenger": 0.75,
        "difference": 0.25,
        "low": 0.25,
        "high": 0.25,
        "rubric_difference": 0.25,
    }


def test_every_conversation_is_kept_failed_ones_too():
    base = PolicyResult("base", "b", tuple(conversation(f"s{i}") for i in range(60)))
    ours = [conversation(f"s{i}", failed=i == 0) for i in range(60)]
    evaluation = summarise([base, PolicyResult("challenger", "c", tuple(ours))], CONFIG)
    rows = conversation_rows(evaluation)
    assert len(rows) == 120
    failed = rows[60]
    assert (failed["stop_reason"], failed["error"]) == ("failed", "the engine is closed")
    assert failed["measures"] == {}
    assert rows[0]["messages"][0] == {"role": "system", "content": "Refunds take five days."}
    assert rows[0]["rubric"][1]["met"] is True
    json.dumps([rows, comparison_document(evaluation)], allow_nan=False)


def test_an_intent_in_which_every_conversation_of_the_base_failed_has_no_mean_of_it():
    policies = three()
    base = policies[0]
    told = tuple(
        conversation(*one.key, intent=one.intent, failed=one.intent == "refund", fluency=-2.0)
        for one in base.conversations
    )
    policies[0] = PolicyResult("base", "the base", told, seconds=4.8)
    config = CONFIG.model_copy(update={"max_failed_share": 0.5})
    rows = {row["intent"]: row for row in intent_rows(summarise(policies, config))}
    assert (rows["refund"]["base"], rows["refund"]["difference"]) == (None, 0.25)
    assert rows["delivery"]["base"] == 0.5
