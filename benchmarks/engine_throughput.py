"""Tokens per second of the in-process engine on conversations like those of a rollout.

    python benchmarks/engine_throughput.py data/base_model

Groups of 8 conversations share a system prompt of about 200 tokens and a first question; each has 4
turns of 40 sampled tokens and a question of about 25. Stop tokens do not end an answer early, so
that every run does the same work. `--plain` measures the 16 samples of 48 tokens after a 286-token
prompt by which the design compares engines.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.engine import FinishReason, GenerationRequest, SamplingParams
from stateset_agents.inference.loading import DtypeName, load_model, load_tokenizer
from stateset_agents.inference.transformers_engine import TransformersEngine

POLICY = (
    "You are a customer support agent of an online shop. Orders leave the warehouse within two "
    "working days and take three to five days to arrive. Goods can be returned within 30 days in "
    "their original packing; the money is paid back within five working days after they arrived. "
    "Never promise a date that the tracking page does not show, never ask for a password, and stay "
    "with questions about the shop. "
)
QUESTION = (
    "My parcel should have been here last Tuesday and the page still says that it is on its way, "
    "what can you do number {number}?"
)


@dataclass(frozen=True)
class Load:
    """One measurement's shape: lengths in tokens."""

    conversations: int
    group: int = 8
    turns: int = 4
    prompt_tokens: int = 200
    answer_tokens: int = 40


class EndlessTokenizer(ChatTokenizer):
    """A tokenizer whose answers end by length alone."""

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """None."""
        return frozenset()


def first_prompt(tokenizer: ChatTokenizer, number: int, tokens: int) -> list[int]:
    """A prompt of exactly `tokens` tokens that ends as the chat template has it."""
    question = [{"role": "user", "content": QUESTION.format(number=number)}]
    long = tokenizer.render([{"role": "system", "content": POLICY * 20}, *question])
    return [*long[: tokens - 50], *long[-50:]]


async def converse(engine: TransformersEngine, load: Load, number: int) -> int:
    """Play one conversation; returns the tokens sampled."""
    tokenizer = engine.tokenizer
    prompt = first_prompt(tokenizer, number // load.group, load.prompt_tokens)
    sampled = 0
    for turn in range(load.turns):
        params = SamplingParams(load.answer_tokens, seed=1000 * number + turn)
        result = await engine.generate(
            GenerationRequest(
                tuple(prompt),
                params,
                conversation_id=f"conversation {number}",
                group_id=f"group {number // load.group}",
            )
        )
        sampled += len(result.token_ids)
        question = [{"role": "user", "content": QUESTION.format(number=turn)}]
        suffix = tokenizer.continuation(result.token_ids, FinishReason.LENGTH, question)
        prompt = [*prompt, *result.token_ids, *suffix]
    engine.release(f"conversation {number}")
    return sampled


async def measure(engine: TransformersEngine, load: Load) -> tuple[int, float]:
    """Play all conversations at once; returns tokens sampled and seconds."""
    engine.update_weights([])
    started = time.perf_counter()
    played = (converse(engine, load, number) for number in range(load.conversations))
    sampled = sum(await asyncio.gather(*played))
    return sampled, time.perf_counter() - started


async def run(options: argparse.Namespace) -> None:
    """Measure each size, several times, and print one line for each."""
    model = load_model(options.folder, dtype=options.dtype)
    tokenizer = EndlessTokenizer(load_tokenizer(options.folder).hf)
    engine = TransformersEngine(model, tokenizer, max_batch_size=max(options.conversations))
    out = sys.stdout.write
    for count in options.conversations:
        load = Load(count)
        if options.plain:
            load = Load(count, group=count, turns=1, prompt_tokens=286, answer_tokens=48)
        await measure(engine, load)
        rates = []
        for _ in range(options.repeats):
            sampled, seconds = await measure(engine, load)
            rates.append(sampled / seconds)
        rates.sort()
        shape = "plain" if options.plain else "multi-turn"
        out(
            f"{shape}, {count} at once, {model.dtype}, {torch.get_num_threads()} threads: "
            f"median {rates[len(rates) // 2]:.0f} tokens/s "
            f"(from {rates[0]:.0f} to {rates[-1]:.0f}, {len(rates)} runs of {sampled} tokens)\n"
        )
    await engine.aclose()


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--conversations", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="auto", choices=DtypeName.__args__)
    parser.add_argument("--plain", action="store_true")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
