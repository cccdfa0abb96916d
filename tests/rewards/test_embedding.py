"""Helpfulness by meaning, with the model of the extra `embeddings`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from stateset_agents.core.embedding import embeddings_installed, sentence_embedder
from stateset_agents.core.reward import HelpfulnessReward
from stateset_agents.exceptions import ConfigurationError
from tests.rewards.made import conversation
from tests.rewards.test_cases import GAP, blocks, context_of, turns_of

needs_model = pytest.mark.skipif(
    not embeddings_installed(), reason="the extra `embeddings` is not installed"
)
USER = "My mobile won't charge any more."
OTHER_WORDS = "Clean the socket of your phone, since dust keeps the cable from making contact."
BESIDE = "Clean the oven of your kitchen, since grease keeps the door from making a seal."


@needs_model
def test_meaning_is_closer_than_words() -> None:
    embedder = sentence_embedder()
    same = embedder.similarity("The parcel has not come.", "My package did not arrive.")
    other = embedder.similarity("The parcel has not come.", "The weather has not changed.")
    assert same > 0.5 > other
    assert embedder.similarity("Hello there.", "Hello there.") == pytest.approx(1.0, abs=1e-3)


@needs_model
def test_a_vector_does_not_depend_on_what_is_computed_with_it() -> None:
    alone = type(sentence_embedder())(sentence_embedder().folder)
    among = type(sentence_embedder())(sentence_embedder().folder)
    among.encode([USER, OTHER_WORDS, "Yes.", "a very long sentence " * 20])
    assert alone.similarity(USER, OTHER_WORDS) == among.similarity(USER, OTHER_WORDS)


@needs_model
async def test_an_answer_in_other_words_addresses_the_user_by_meaning_and_not_by_words() -> None:
    async def scores(addressing: Any) -> list[float]:
        reward = HelpfulnessReward(addressing=addressing)
        pairs = [(conversation(text, user=(USER,))[1:], {}) for text in (OTHER_WORDS, BESIDE)]
        return [result.score for result in await reward.compute_rewards(pairs)]

    by_words, by_meaning = await scores("lexical"), await scores("embeddings")
    assert abs(by_words[0] - by_words[1]) < 0.05
    assert by_meaning[0] > by_meaning[1] + 0.2
    assert await scores("auto") == by_meaning


@needs_model
@pytest.mark.parametrize("block", blocks("helpfulness"), ids=lambda block: block["about"])
async def test_the_table_comes_out_in_its_order_by_meaning_too(block: dict[str, Any]) -> None:
    reward = HelpfulnessReward(addressing="embeddings")
    scored = []
    for tier in block["tiers"]:
        pairs = [(turns_of(block, answers), context_of(block)) for answers in tier]
        scored.append([result.score for result in await reward.compute_rewards(pairs)])
    for upper, lower in pairwise(scored):
        assert min(upper) >= max(lower) + GAP, scored


@pytest.mark.skipif(embeddings_installed(), reason="the extra `embeddings` is installed")
def test_without_the_extra_it_is_asked_for_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"stateset-agents\[embeddings\]"):
        HelpfulnessReward(addressing="embeddings")
    assert HelpfulnessReward().embedder is None


def test_an_unknown_way_of_addressing_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="'meaning'; allowed: auto, lexical, embeddings"):
        HelpfulnessReward(addressing="meaning")  # type: ignore[arg-type]
