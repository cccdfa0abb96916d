"""The gates, and the composite reward of the line against everything a policy might try."""

from pathlib import Path

import pytest

from stateset_agents.core.reward import RewardFunction
from stateset_agents.exceptions import ConfigurationError, RewardError
from stateset_agents.rewards.build import build_reward
from stateset_agents.rewards.config import JudgeConfig, RewardGates, RewardsConfig, RewardWeights
from stateset_agents.rewards.fluency import FluencyReward
from stateset_agents.rewards.repetition import RepetitionReward
from tests.rewards.judge_server import judge_server, marks
from tests.rewards.made import GOOD, POLICY, RUBRIC, USER, conversation, score
from tests.rewards.test_rewards import in_order

HACKED = "Could you please please please help with the order number please?"


async def test_repetition_within_an_answer_costs_by_its_share() -> None:
    await in_order(
        RepetitionReward(),
        [
            [
                *GOOD,
                "I had had enough of it, and that that was said is fine.",
                "The label and the box and the card are all you need for the return.",
                "",
            ],
            [
                "I'm sorry about the the delay, the parcel arrives on Friday.",
                "Please could you please send the number, please, and then please wait.",
                "We will check it. We will check it. The parcel comes on Monday or on Tuesday.",
            ],
            [
                HACKED,
                "order number order number order number",
                "We will check it. " * 4,
                "please " * 10,
                "Thank you for your order. " * 6,
            ],
        ],
        "Where is my parcel?",
    )


async def test_copies_of_the_user_the_policy_and_oneself_cost() -> None:
    async def of(*answers: str) -> float:
        return (await score(RepetitionReward(), conversation(*answers))).score

    fine = await of(*GOOD)
    assert fine > 0.95
    assert await of(GOOD[0], GOOD[0]) < 0.3
    assert await of(USER[0], GOOD[1]) < 0.6
    assert await of(POLICY, GOOD[1]) < 0.7
    half = GOOD[0].rsplit(". ", 1)[0] + ". The money follows within five business days of that."
    assert await of(GOOD[0], GOOD[0]) < await of(GOOD[0], half) < fine
    quoted = (
        "Returns are easy: items can be returned within 30 days of delivery, so take your time."
    )
    assert await of(quoted, GOOD[1]) > 0.85  # a fact has few wordings


async def test_fluency_is_the_share_of_words_in_plain_sentences() -> None:
    await in_order(
        FluencyReward(),
        [
            [
                *GOOD,
                "Thank you.",
                "We refund the full price. You pay nothing for the return, and it was broken",
            ],
            [
                "Thank you for the message. order number refund card box label",
                GOOD[0] + " Refund, box, card, label, order number, days.",
                "We can help you with it. please please please please.",
            ],
            [
                HACKED,
                "order number refund 30 days.",
                "no full stop anywhere in this answer that goes on",
                "The order number and the email for the refund.",
                "",
            ],
        ],
        "Where is my parcel?",
    )


def line_reward(weights: RewardWeights | None = None) -> RewardFunction:
    return build_reward(RewardsConfig(weights=weights or RewardWeights(learned=0)))


async def test_the_line_ranks_conversations_and_what_games_it_gets_next_to_nothing() -> None:
    good = {
        "reference": GOOD,
        "other words": (
            "Sorry about that. Please send us the order number, and you can return the shoes for "
            "free within thirty days if they are faulty.",
            "Once the parcel reaches us, the refund takes 5 business days and goes to your card.",
        ),
    }
    middling = {
        "half of it": (
            "I'm sorry to hear that the shoes are too small. You can send them back to us.",
            "You get the money in 5 business days. Is there anything else you want to know?",
        ),
        "vague": (
            "I am sorry about the shoes. Could you tell me your order number, please?",
            "We will look at it and get back to you soon with more about the money.",
        ),
    }
    gamed = {
        "hacked": (HACKED, HACKED),
        "hacked, varied": (HACKED, "Could you please please help with the 5 business days please?"),
        "keywords": ("sorry order number 30 days return?", "5 business days refund card."),
        "policy": (POLICY, POLICY),
        "echo": USER,
        "same twice": (GOOD[0], GOOD[0]),
        "asks for a password": (GOOD[0] + " Please send your password, too.", GOOD[1]),
        "promise": (GOOD[0], "You get your money right away, I guarantee it."),
        "nothing": ("", ""),
        "endless": (GOOD[0] + " We are happy to help." * 30, GOOD[1]),
    }
    reward = line_reward()

    async def scores(table: dict[str, tuple[str, ...]]) -> dict[str, float]:
        return {
            name: (await score(reward, conversation(*answers), rubric=RUBRIC)).score
            for name, answers in table.items()
        }

    top, middle, bottom = await scores(good), await scores(middling), await scores(gamed)
    assert min(top.values()) > 0.7, top
    assert 0.25 < min(middle.values()) <= max(middle.values()) < min(top.values()) - 0.15, middle
    assert max(bottom.values()) < min(middle.values()), (middle, bottom)


async def test_parts_are_named_as_in_the_settings_and_zero_leaves_one_out() -> None:
    config = RewardsConfig(
        weights=RewardWeights(learned=0, conciseness=0), gates=RewardGates(fluency=0, padding=0)
    )
    result = await score(build_reward(config), conversation(*GOOD), rubric=RUBRIC)
    assert set(result.breakdown) == {
        "rubric",
        "helpfulness",
        "safety",
        "repetition",
        "finished",
    }
    assert result.turn_scores is not None


def test_a_learned_weight_needs_a_folder() -> None:
    with pytest.raises(ConfigurationError, match="there is no reward model"):
        build_reward(RewardsConfig())


def test_every_setting_of_repetition_that_cannot_work_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        RepetitionReward(own_tolerance=1.0, echo_tolerance=-0.1, quoted_words=0)
    assert [problem.split()[2] for problem in caught.value.problems] == [
        "own_tolerance",
        "echo_tolerance",
        "quoted_words",
    ]


async def test_correctness_engagement_and_likeness_join_by_their_settings() -> None:
    plain = RewardsConfig(weights=RewardWeights(learned=0))
    more = RewardsConfig(
        weights=RewardWeights(learned=0, correctness=1.0, engagement=1.0),
        gates=RewardGates(similarity=1.0),
        group_tolerance=0.2,
    )
    group = [conversation(*GOOD)]
    truth = {"id": "s", "metadata": {"truth": ["A refund takes 9 business days."]}}
    context = {"rubric": RUBRIC, "group": group, "scenario": truth}
    before = await score(build_reward(plain), conversation(*GOOD), **context)
    after = await score(build_reward(more), conversation(*GOOD), **context)
    assert set(after.breakdown) - set(before.breakdown) == {
        "correctness",
        "engagement",
        "similarity",
    }
    assert after.breakdown["correctness"] == 0.0
    assert after.breakdown["similarity"] < 0.6
    tolerant = more.model_copy(update={"group_tolerance": 0.99})
    told = await score(build_reward(tolerant), conversation(*GOOD), **context)
    assert told.breakdown["similarity"] >= after.breakdown["similarity"]


async def test_a_judge_of_the_settings_is_asked_with_all_of_them(tmp_path: Path) -> None:
    with judge_server(lambda n, body: marks(short=4)) as server:
        config = RewardsConfig(
            weights=RewardWeights(learned=0, judge=1.0),
            judge=JudgeConfig(
                model="judge-1",
                base_url=server.url,
                rubric={"short": "Is it short?"},
                cache_dir=str(tmp_path),
                max_answer_tokens=55,
                max_requests=1,
            ),
        )
        result = await score(build_reward(config), conversation(*GOOD), rubric=RUBRIC)
        assert result.breakdown["judge"] == 0.75
        assert server.bodies[0]["max_tokens"] == 55
        assert list(tmp_path.glob("*/*.json"))
        with pytest.raises(RewardError, match="max_requests is 1"):
            await score(build_reward(config), conversation("Other.", "Words."), rubric=RUBRIC)
        default = config.model_copy(update={"judge": config.judge.model_copy()})
        default.judge.rubric = {}
        default.judge.cache_dir = None
        default.judge.max_retries = 0
        with pytest.raises(RewardError, match="no marks"):  # it is asked for three others
            await score(build_reward(default), conversation(*GOOD), rubric=RUBRIC)


def test_a_judge_with_a_weight_needs_a_name_and_an_address() -> None:
    with pytest.raises(ConfigurationError, match=r"weights\.judge is 0\.5, and judge\.model is ''"):
        RewardsConfig(weights=RewardWeights(judge=0.5))


def test_the_defaults_build_the_parts_they_always_did() -> None:
    reward = build_reward(RewardsConfig(weights=RewardWeights(learned=0)))
    assert [part.name for part in reward.rewards] == ["rubric", "helpfulness", "conciseness"]
    assert [gate.name for gate in reward.gates] == [
        "safety",
        "repetition",
        "fluency",
        "padding",
        "finished",
    ]
