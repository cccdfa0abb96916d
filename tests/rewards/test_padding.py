"""The gates against padding and against answers that break off, on answers written by hand and on
the reference answers of the data.
"""

from pathlib import Path

import pytest

from stateset_agents.core.reward import RewardFunction, Scorable
from stateset_agents.core.rubric import Rubric, RubricItem
from stateset_agents.core.trajectory import ConversationTurn
from stateset_agents.data.readers import read_scenarios
from stateset_agents.data.schemas import Scenario
from stateset_agents.data.splits import assign_splits, read_intents
from stateset_agents.rewards.build import build_reward
from stateset_agents.rewards.config import RewardsConfig, RewardWeights
from stateset_agents.rewards.finished import FinishedReward
from stateset_agents.rewards.padding import PaddingReward
from tests.rewards.made import GOOD, RUBRIC, USER, conversation, score
from tests.rewards.test_rewards import in_order

FOLDER = Path(__file__).parents[2] / "data" / "scenarios"
PADS = "I see what you mean. Sorry for the trouble. Let me help you."


async def test_the_more_of_an_answer_is_padding_the_less_it_is_worth() -> None:
    await in_order(
        PaddingReward(),
        [
            [
                *GOOD,
                "Of course. You can return the shoes within 30 days.",
                "I'm sorry about that. Please send me the order number.",
                "Thanks. The refund takes 5 business days.",
                "We cannot make it faster, I am afraid.",
                "I am sorry, this is not for me to say. I can help you with an order.",
                "I understand that the shoes are too small for you.",
            ],
            [
                "You can return the shoes within 30 days of delivery. I hope this helps you.",
                "Let me help you. The refund goes to the original payment method, and it takes 5 "
                "business days after the parcel reaches our warehouse.",
            ],
            [
                "Let me help you. The refund takes 5 business days.",
                "I see what you mean. Items can be returned within 30 days.",
            ],
            [
                PADS,
                f"{PADS} The refund takes 5 business days.",
                "I am happy to help you with the shoes today.",
                "Good question, I can tell you that.",
                "Is there anything else that I can do for you?",
                "Things like this happen, and normally they get better with time.",
                "Of course. Sure. Certainly. Understood.",
            ],
        ],
        USER[0],
    )


async def test_courtesy_that_comes_again_in_other_words_is_padding() -> None:
    async def of(*answers: str) -> list[float] | None:
        user = ("My kettle is late.", "It is still not here.", "And now?")
        return (await score(PaddingReward(), conversation(*answers, user=user))).turn_scores

    fact = "The refund takes 5 business days."
    again = await of(f"I am sorry. {fact}", f"I apologise for that. {fact}")
    assert again == pytest.approx([1.0, 1 - 2 * 4 / 10])
    assert await of(f"I am sorry. {fact}", f"Thank you. {fact}") == [1.0, 1.0]
    named = "I am sorry that the kettle is late."
    assert await of(named, "I am so sorry that your kettle is late.") == [1.0, 0.0]
    assert await of(named, "Sorry, the refund takes 5 business days.") == [1.0, 1.0]


async def test_a_line_of_the_policy_that_the_rubric_does_not_ask_for_is_padding() -> None:
    rubric = Rubric(items=(RUBRIC.items[2],))  # the refund takes 5 business days

    async def of(answer: str, said: str = "When do I get my money?", **context: Rubric) -> float:
        turns = conversation(answer, user=(said,))
        return (await score(PaddingReward(), turns, **context)).score

    wanted = "It takes 5 business days after the parcel reaches our warehouse."
    unasked = "Return shipping costs $5 unless the item is faulty."
    assert await of(wanted, rubric=rubric) == 1.0
    assert await of(unasked, rubric=rubric) == 0.0
    assert await of(f"{wanted} {unasked}", rubric=rubric) == pytest.approx(1 - 2 * 10 / 21)
    assert await of(unasked, "What does the return shipping cost me?", rubric=rubric) == 1.0
    assert await of(unasked) == 1.0  # nothing says which line applies


async def test_a_not_makes_nothing_that_is_beside_the_point_belong_to_it() -> None:
    async def of(answer: str) -> float:
        return (await score(PaddingReward(), conversation(answer))).score

    for plain, denied in (
        ("My uncle is a dentist.", "My uncle is not a dentist."),
        ("We are glad that you wrote to us.", "We have never been so glad that you wrote to us."),
        ("The moon is made of cheese.", "Nobody ever said that the moon is made of cheese."),
    ):
        assert await of(plain) == await of(denied) == 0.0, denied
    refusal = "We cannot do that."  # once an answer, and one courteous sentence that leads on
    assert await of(refusal) == await of(f"{refusal} I can help you today.") == 1.0
    assert await of(f"{refusal} We will not do so. That is not for us.") == 0.0
    assert await of(f"{refusal} I can help you today. I am glad to assist. We hope for it.") < 0.1


async def test_what_is_made_up_is_padding_though_a_word_of_it_is_known() -> None:
    """Sentences of policies that reinforcement drove astray while this gate let them pass."""
    policy = (
        "You answer customers of Larkmoor, an online shop. Policy:\n"
        "- The security team blocks an account within 1 hour of a report.\n"
        "- The police write to our legal team.\n"
        "- The receiver of a gift gets the value as a gift card, not as cash.\n"
        "- A new battery must charge for 3 hours before first use."
    )

    async def of(answer: str, policy: str = policy) -> float:
        turns = [
            ConversationTurn("system", policy),
            ConversationTurn("user", "There are purchases in my name that I never made."),
            ConversationTurn("assistant", answer),
        ]
        return (await score(PaddingReward(), turns)).score

    for made_up in (
        "The security people next door keep a close eye on everybody's garden.",
        "You can give a gift of 20 grimmels, a coin of the realm.",
        "It is not wise to make a lot of money at once, and the neighbours will never understand.",
        "The report is paid for the last 10 days of an excellent summer.",
    ):
        assert await of(made_up) == 0.0, made_up
    without_policy = "Purchases by a stranger are paid back by the bank within ten days."
    assert await of(without_policy, "You are a helpful assistant.") == 1.0
    for held in (
        "The security team can block your account within one hour.",
        "The gift card has the value of the gift.",
        "We cannot do that.",
    ):
        assert await of(held) == 1.0, held


async def test_a_refusal_that_names_nothing_is_padding_where_nothing_is_to_be_refused() -> None:
    async def of(*items: RubricItem) -> float:
        turns = conversation("That is not possible.", user=("Where is my money?",))
        return (await score(PaddingReward(), turns, rubric=Rubric(items=items))).score

    manners = RubricItem(kind="acknowledge", description="thanks", any_of=(("thanks",),))
    fact = RUBRIC.items[2]  # the refund takes 5 business days
    scope = RubricItem(kind="stay_in_scope", description="the shop", any_of=(("order",),))
    assert await of(fact, manners) < await of(fact, scope)


async def test_padding_counts_by_its_words() -> None:
    turns = conversation("Let me help you. The refund takes 5 business days after that.")
    result = await score(PaddingReward(), turns)  # 4 words of 12
    assert result.turn_scores == pytest.approx([1 - 2 * 4 / 12])
    assert result.breakdown == pytest.approx({"padded_share": 4 / 12})


async def test_a_short_reply_to_a_goodbye_may_be_courtesy_alone() -> None:
    async def of(answer: str, user: str) -> float:
        return (await score(PaddingReward(), conversation(answer, user=(user,)))).score

    thanks = "Cheers, you have been really helpful."
    assert await of("You are welcome. Have a nice day.", thanks) == 1.0
    assert await of("You are welcome. Have a nice day.", "When do I get my money?") == 0.0
    assert await of("You are welcome. The return shipping costs $5.", thanks) == 0.0
    assert await of("You are welcome. " + "We are always glad to help you. " * 4, thanks) == 0.0


async def test_an_answer_that_breaks_off_is_worth_less_than_one_with_a_sentence_less() -> None:
    reward = build_reward(RewardsConfig(weights=RewardWeights(learned=0), without_rubric=1.0))
    for cut in (GOOD[0].rsplit(" ", 1)[0], f"{GOOD[0]} Please also", GOOD[0].rstrip("?") + "..."):
        short = GOOD[0].rsplit(". ", 1)[0] + "."
        finished = await score(reward, conversation(short))
        broken = await score(reward, conversation(cut))
        assert broken.score < 0.5 * finished.score, cut


async def test_what_the_token_limit_cut_or_does_not_end_like_a_sentence_is_unfinished() -> None:
    async def of(*answers: str, **context: list[bool]) -> list[float] | None:
        return (await score(FinishedReward(), conversation(*answers), **context)).turn_scores

    assert await of(*GOOD) == [1.0, 1.0]
    assert await of(*GOOD, truncated=[False, True]) == [1.0, 0.3]
    assert await of("It is free, and", "It takes,") == [0.3, 0.3]
    assert await of("", "It is free!") == [0.3, 1.0]


def trained_or_validated() -> list[Scenario]:
    intents = read_intents(FOLDER / "intents.yaml")
    scenarios = assign_splits(read_scenarios(FOLDER), intents, "intents.yaml")
    return [one for one in scenarios if one.split != "heldout"]


def scorable(scenario: Scenario, answers: list[str]) -> Scorable:
    turns = [ConversationTurn("system", scenario.context)]
    for said, answer in zip(scenario.user_responses, answers, strict=True):
        turns += [ConversationTurn("user", said), ConversationTurn("assistant", answer)]
    return turns, {"scenario": scenario.model_dump(), "rubric": scenario.rubric}


async def mean_score(reward: RewardFunction, conversations: list[Scorable]) -> float:
    results = await reward.compute_rewards(conversations)
    return sum(result.score for result in results) / len(results)


async def test_reference_answers_are_worth_twice_their_padded_and_their_broken_versions() -> None:
    reward = build_reward(RewardsConfig(weights=RewardWeights(learned=0)))
    scenarios = trained_or_validated()
    references = [list(one.metadata["reference_answers"]) for one in scenarios]

    async def of(*, before: str = "", after: str = "") -> float:
        return await mean_score(
            reward,
            [
                scorable(one, [f"{before} {answer} {after}".strip() for answer in answers])
                for one, answers in zip(scenarios, references, strict=True)
            ],
        )

    good = await of()
    assert good > 0.85
    assert await of(before="I see what you mean.") < 0.5 * good
    assert await of(after="Is there anything else that I can do for you?") < 0.4 * good
    assert await of(before=PADS) < 0.2 * good
    assert await of(after="Please also note that we") < 0.35 * good
