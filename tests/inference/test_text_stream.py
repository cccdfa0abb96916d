"""Text that is shown while it is sampled: never half a character, and in the end all of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.engine import (
    Engine,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from stateset_agents.inference.loading import load_model
from stateset_agents.inference.stub_engine import ByteTokenizer, StubEngine
from stateset_agents.inference.text_stream import TextStream
from stateset_agents.inference.transformers_engine import TransformersEngine
from tests.tiny_model import make_tiny_tokenizer

BYTES = ChatTokenizer(ByteTokenizer())
TINY = ChatTokenizer(make_tiny_tokenizer())


def sentencepiece_like() -> ChatTokenizer:
    """Pieces that carry their space in front, and bytes for all else, as in Llama 2."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "▁b"]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return ChatTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    )


PIECES = sentencepiece_like()


def in_pieces(tokenizer: ChatTokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [piece for piece in map(stream.add, ids) if piece]


@pytest.mark.parametrize("tokenizer", [BYTES, TINY], ids=["bytes", "bpe"])
@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_all_pieces_together_are_what_decoding_at_once_gives(
    tokenizer: ChatTokenizer, data: st.DataObject
) -> None:
    highest = (len(tokenizer.hf) if tokenizer is not BYTES else ByteTokenizer.vocab_size) - 1
    ids = [
        token
        for token in data.draw(st.lists(st.integers(0, highest), max_size=24))
        if token not in tokenizer.stop_token_ids
    ]
    assert "".join(in_pieces(tokenizer, ids)) == tokenizer.decode(ids).rstrip("\ufffd")


@given(words=st.lists(st.sampled_from(["▁", "a", "▁a", "▁b", "é", "🙂", "!"]), max_size=12))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_pieces_with_their_space_in_front_give_the_same_text_one_by_one(words: list[str]) -> None:
    known = PIECES.hf.get_vocab()
    ids = [
        token
        for word in words
        for token in ([known[word]] if word in known else [2 + byte for byte in word.encode()])
    ]
    assert "".join(in_pieces(PIECES, ids)) == PIECES.decode(ids)


def test_a_character_of_several_tokens_comes_whole_or_not_at_all() -> None:
    ids = BYTES.encode("é🙂!")
    assert in_pieces(BYTES, ids) == ["é", "🙂", "!"]
    assert in_pieces(BYTES, ids[:-2]) == ["é"]  # cut off within the last but one
    assert BYTES.decode(ids[:-2]) == "é\ufffd"


def test_the_space_in_front_of_a_word_is_kept_but_for_the_very_first() -> None:
    pieces = PIECES.hf.convert_tokens_to_ids(["▁a", "▁b", "a"])
    assert in_pieces(PIECES, pieces) == ["a", " b", "a"]


def listened(engine: Engine, requests: list[GenerationRequest]) -> list[tuple[list[int], Any]]:
    """For each request what a listener heard, and the result."""

    async def ask() -> list[tuple[list[int], GenerationResult]]:
        heard: list[list[int]] = [[] for _ in requests]
        results = await asyncio.gather(
            *(
                engine.generate(request, ids.append)
                for request, ids in zip(requests, heard, strict=True)
            )
        )
        await engine.aclose()
        return list(zip(heard, results, strict=True))

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", ["stub", "transformers"])
def test_a_listener_hears_every_token_in_order(kind: str, tiny_model_dir: Path) -> None:
    engine: Engine = StubEngine(["Größer."])
    if kind == "transformers":
        engine = TransformersEngine(load_model(tiny_model_dir, dtype="float32"), TINY)
    prompt = tuple(engine.tokenizer.render([{"role": "user", "content": "Hello."}]))
    requests = [GenerationRequest(prompt, SamplingParams(9, seed=seed)) for seed in (1, 2, 3)]
    for heard, result in listened(engine, requests):
        assert heard == list(result.token_ids)


def test_what_a_listener_raises_costs_its_answer_and_no_other(tiny_model_dir: Path) -> None:
    engine = TransformersEngine(load_model(tiny_model_dir, dtype="float32"), TINY)
    request = GenerationRequest(tuple(TINY.encode("Hello.")), SamplingParams(6))

    def refuse(_token: int) -> None:
        raise RuntimeError("not today")

    async def ask() -> list[Any]:
        both = [engine.generate(request, refuse), engine.generate(request)]
        answers = await asyncio.gather(*both, return_exceptions=True)
        answers.append(await engine.generate(request))
        await engine.aclose()
        return answers

    refused, beside, after = asyncio.run(ask())
    assert isinstance(refused, RuntimeError)
    assert beside.token_ids == after.token_ids
