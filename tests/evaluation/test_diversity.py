import pytest

from stateset_agents.evaluation.diversity import (
    distinct,
    diversity,
    identical_answers,
    ngrams,
    repeated_phrases,
    self_overlap,
    words,
)
from stateset_agents.evaluation.results import PolicyResult
from tests.evaluation.made import conversation


def test_words_are_lower_cased_and_keep_apostrophes_and_numbers():
    assert words("I\u2019m sorry -- it's order #123!") == [
        "i\u2019m",
        "sorry",
        "it's",
        "order",
        "123",
    ]


def test_distinct_counts_different_ngrams_within_answers():
    answers = [["a", "b", "a"], ["a", "b"]]
    assert distinct(answers, 1, block=100) == 2 / 5
    assert distinct(answers, 2, block=100) == 2 / 3  # ab ba ab; none across the two answers
    assert distinct([], 1, block=100) == 0.0
    assert ngrams(["a"], 2) == []


def test_saying_more_of_the_same_variety_does_not_look_less_distinct():
    text = [[f"w{i % 50}" for i in range(start, start + 50)] for start in range(40)]
    assert distinct(text, 1, block=100) == distinct(text[:4], 1, block=100) == 0.5


def test_an_answer_repeated_in_another_scenario_is_identical_and_a_repeated_seed_is_not():
    same, other = ["please", "wait"], ["thank", "you"]
    assert identical_answers([("a", [same]), ("a", [same])]) == 0.0
    assert identical_answers([("a", [same, other]), ("b", [same])]) == 2 / 3
    assert identical_answers([]) == 0.0


def test_self_overlap_counts_4_grams_said_in_another_scenario():
    ours, theirs = list("abcde"), list("abcdx")  # abcd shared; bcde and bcdx not
    assert self_overlap([("a", [ours]), ("b", [theirs])]) == 0.5
    assert self_overlap([("a", [ours]), ("a", [theirs])]) == 0.0


def test_repeated_phrases_count_4_grams_that_an_earlier_answer_had():
    assert repeated_phrases([[list("abcde"), list("abcde")]]) == 0.5
    assert repeated_phrases([[list("abcde")], [list("abcde")]]) == 0.0  # two conversations


def test_a_policy_that_says_one_sentence_everywhere_is_caught():
    parrot = PolicyResult("challenger", "parrot", tuple(
        conversation(f"s{i}", answers=["Could you please help with the order number please?"] * 3)
        for i in range(20)
    ))  # fmt: skip
    varied = PolicyResult("base", "varied", tuple(
        conversation(f"s{i}", answers=[" ".join(f"w{i}x{j}x{k}" for k in "abcde") for j in "xyz"])
        for i in range(20)
    ))  # fmt: skip
    caught, fine = diversity(parrot), diversity(varied)
    assert caught.identical_answers == 1.0
    assert caught.self_overlap == 1.0
    assert caught.repeated_phrases == pytest.approx(2 / 3)
    assert caught.distinct_2 < 0.1 < fine.distinct_2
    assert fine.identical_answers == 0.0
    assert fine.repeated_phrases == 0.0


def test_failed_conversations_say_nothing():
    result = PolicyResult("base", "b", (conversation("a", failed=True),))
    assert set(diversity(result).as_dict().values()) == {0.0}
