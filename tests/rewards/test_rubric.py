import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stateset_agents.core.rubric import Rubric, RubricItem, RubricKind, check_rubric
from tests.rewards.made import GOOD, RUBRIC


def one_item(kind: RubricKind, *any_of: tuple[str, ...], turn: int | None = None) -> Rubric:
    item = RubricItem(kind=kind, description="the item", any_of=any_of, turn=turn)
    if kind != "must_not":
        return Rubric(items=(item,))
    filler = RubricItem(kind="acknowledge", description="says fine", any_of=(("fine",),))
    return Rubric(items=(filler, item))


def met(rubric: Rubric, *answers: str) -> bool:
    return check_rubric(rubric, answers).items[-1].met


ORDER_NUMBER = one_item("ask_for", ("order number",))


@pytest.mark.parametrize(
    "answer",
    [
        "What is your order number?",
        "Could you please share your order number?",
        "May I have the order number, please?",
        "Please send us your order number.",
        "Please kindly provide the order number so that we can check.",
        "I need your order number to look this up.",
        "I'd like to know the order number first.",
        "Let me know the order number and I will check.",
        "I don't have your order number yet, could you share it?",
        "Do you have the order number at hand?",
        "To start a return we need the order number.",
        "Once you tell me the order number, I can look.",
    ],
)
def test_a_question_or_request_asks(answer: str) -> None:
    assert met(ORDER_NUMBER, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Could you please please please help with the order number please?",
        "Could you help me with the order number?",
        "How can I help you with your order number?",
        "Would you like me to look up your order number?",
        "Is there anything else about the order number?",
        "You do not need to send the order number.",
        "There is no need to share your order number.",
        "Never share your order number.",
        "I will send you the order number.",
        "Thank you for the order number.",
        "Your order number is 12345.",
        "order number, email, refund, please?",
        "The order number and the email for the refund?",
        "What is your order number",
        "What is your order? Number it.",
        "What is your reorder number?",
        "",
    ],
)
def test_offers_denials_fragments_and_statements_do_not_ask(answer: str) -> None:
    assert not met(ORDER_NUMBER, answer)


RETURN_WINDOW = one_item("state_fact", ("30 days", "return|send it back|take it back"))


@pytest.mark.parametrize(
    "answer",
    [
        "You can return it within 30 days.",
        "You can return it within thirty days of delivery.",
        "We have a 30-day return window.",
        "Returns are free for 30 days after delivery.",
        "We can't take it back after 30 days.",
        "We do not accept a return once 30 days have passed.",
        "Unfortunately no discount applies, but you can return it within 30 days.",
        "No problem, you can return it within 30 days.",
        "Don't worry, the return is open for 30 days.",
        "Please send it back no later than 30 days after delivery.",
        "1. You can return it within 30 days.",
        "e.g. you can return a lamp within 30 days.",
    ],
)
def test_a_statement_states_the_fact(answer: str) -> None:
    assert met(RETURN_WINDOW, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Can I return it within 30 days?",
        "You cannot return it within 30 days.",
        "A return within 30 days is not possible.",
        "We never offer a return of 30 days.",
        "You can return it within 130 days.",
        "You can return it within 30.5 days.",
        "You can return it. It takes 30 days.",
        "You can return it within 30 days",
        "You can return it within 30 days of delivery and then we will...",
        "30 days return.",
        "Return return 30 days 30 days.",
        "You can return it within 5, 7, 10, 14, 21 or 30 days.",
        "returns, 30 days, refund, label, box, card, order.",
        "You can return it within 30 days " + "and wait " * 20 + ".",
    ],
)
def test_questions_denials_other_numbers_and_broken_sentences_state_nothing(answer: str) -> None:
    assert not met(RETURN_WINDOW, answer)


def test_a_negative_fact_needs_its_negation() -> None:
    rubric = one_item("state_fact", ("cannot|not|no|unable", "final sale"))
    assert met(rubric, "We can't take back items from the final sale.")
    assert not met(rubric, "We take back items from the final sale.")


REFUND_TODAY = one_item("must_not", ("refund", "today|right away"))


@pytest.mark.parametrize(
    ("answer", "allowed"),
    [
        ("We cannot refund you today.", True),
        ("We can't give a refund right away, I'm afraid.", True),
        ("A refund today is not something we can do.", True),
        ("We are unable to refund it today.", True),
        ("The refund takes five days.", True),
        ("You get the refund today.", False),
        ("You get the refund today", False),
        ("refund today", False),
        ("No problem, we will refund you today.", False),
        ("I cannot check it, but we will refund you today.", False),
        ("It is not only free, we refund you today.", False),
        ("Would you like a refund today?", False),
    ],
)
def test_what_must_not_be_said_may_be_denied(answer: str, allowed: bool) -> None:
    assert met(REFUND_TODAY, answer) is allowed


def test_a_violation_halves_the_score_and_its_turn() -> None:
    outcome = check_rubric(RUBRIC, (GOOD[0], GOOD[1] + " You get the refund today."))
    clean = check_rubric(RUBRIC, GOOD)
    assert clean.score == 1.0
    assert clean.turn_scores == pytest.approx((0.75, 0.25))
    assert outcome.score == pytest.approx(0.5)
    assert outcome.turn_scores == pytest.approx((0.75, 0.125))


def test_weights_count_and_a_violation_is_a_power_of_its_weight() -> None:
    rubric = Rubric(
        items=(
            RubricItem(kind="state_fact", description="free", any_of=(("free",),), weight=3),
            RubricItem(kind="state_fact", description="blue", any_of=(("blue",),), weight=1),
            RubricItem(kind="must_not", description="red", any_of=(("red",),), weight=2),
        )
    )
    assert check_rubric(rubric, ["It is free."]).score == 0.75
    assert check_rubric(rubric, ["It is free. It is red."]).score == pytest.approx(0.75 * 0.25)


def test_an_item_of_a_turn_counts_there_only() -> None:
    rubric = one_item("ask_for", ("order number",), turn=1)
    assert not met(rubric, "What is your order number?", "Thank you for that.")
    assert met(rubric, "Thank you for that.", "What is your order number?")


def test_a_sentence_meets_two_items_at_most_and_the_heaviest() -> None:
    words = ("label", "box", "card")
    rubric = Rubric(
        items=tuple(
            RubricItem(kind="state_fact", description=word, any_of=((word,),), weight=weight)
            for word, weight in zip(words, (1, 5, 5), strict=True)
        )
    )
    outcome = check_rubric(rubric, ["You need the label and the box and your card."])
    assert [one.met for one in outcome.items] == [False, True, True]
    spread = check_rubric(rubric, ["You need the label and the box.", "You need the card, too."])
    assert spread.score == 1.0


def test_sentences_are_shared_out_so_that_most_is_met() -> None:
    # "a" fits both sentences, the others fit the first alone: "a" must go to the second
    items = [("apple",), ("bread",), ("cheese",)]
    rubric = Rubric(
        items=tuple(
            RubricItem(kind="state_fact", description="food", any_of=(words,)) for words in items
        )
    )
    answer = "We have apple and bread and cheese here. There is an apple for you."
    assert check_rubric(rubric, [answer]).score == 1.0


def test_a_repeated_sentence_meets_nothing_more() -> None:
    rubric = Rubric(
        items=tuple(
            RubricItem(
                kind="ask_for", description="order number", any_of=(("order number",),), turn=t
            )
            for t in (0, 1)
        )
    )
    assert check_rubric(rubric, ["What is your order number?"] * 2).score == 0.5
    other = ["What is your order number?", "I still need the order number from the email, please."]
    assert check_rubric(rubric, other).score == 1.0


@pytest.mark.parametrize(
    ("any_of", "found"),
    [((), "at least 1 item"), (((),), "is empty"), ((("| ",),), "without a word")],
)
def test_an_item_without_words_is_refused(any_of: object, found: str) -> None:
    with pytest.raises(ValidationError, match=found):
        RubricItem(kind="ask_for", description="nothing", any_of=any_of)  # type: ignore[arg-type]


def test_a_rubric_of_prohibitions_alone_is_refused() -> None:
    item = RubricItem(kind="must_not", description="refund", any_of=(("refund",),))
    with pytest.raises(ValidationError, match="saying nothing would score 1"):
        Rubric(items=(item,))


@given(st.lists(st.text(max_size=200), max_size=4))
def test_any_text_gives_a_score_between_0_and_1_that_its_turns_do_not_exceed(
    answers: list[str],
) -> None:
    outcome = check_rubric(RUBRIC, answers)
    assert 0 <= outcome.score <= sum(outcome.turn_scores) + 1e-9 <= 1 + 2e-9
    assert len(outcome.turn_scores) == len(answers)


_KEYWORDS = "return order number 30 days sorry refund 5 business delivery".split()  # noqa: SIM905


@given(st.permutations(_KEYWORDS))
def test_shuffled_keywords_meet_no_item(words: list[str]) -> None:
    text = " ".join(words) + "?"
    assert check_rubric(RUBRIC, [text, text]).score == 0
