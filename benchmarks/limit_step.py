"""The machine's limits and, between them, our update and our decoding.

A child of `processes.Side`. Settings: `folder`, `workload`, `quick`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.batches import random_batch
from benchmarks.counting import ModelSizes, decode_bytes, sizes_of, update_flops
from benchmarks.our_rollout import converse
from benchmarks.processes import Requests
from benchmarks.profiles import seconds_by_kind
from benchmarks.workloads import EndlessTokenizer, Workload, opening, scenarios
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.inference.transformers_engine import TransformersEngine
from stateset_agents.training.config import TrainingConfig
from stateset_agents.training.policy import Policy
from stateset_agents.training.step import make_learner, train_step

# The decoding step is the difference of two lengths of answer, so that the prompt's cost is out.
_FEW, _MANY = 8, 40


def best_product(dtype: torch.dtype, device: torch.device, *, sizes: tuple[int, ...]) -> float:
    """FLOP/s of the fastest of some square products."""
    best = 0.0
    for size in sizes:
        factor = torch.randn(size, size, device=device).to(dtype)
        product = partial(torch.mm, factor, factor)
        product()
        seconds = min(_seconds(product, device) for _ in range(5))
        best = max(best, 2 * size**3 / seconds)
    return best


def memory_bandwidth(device: torch.device, *, megabytes: int) -> float:
    """Bytes a second of the faster of a copy (read and written) and a sum (read)."""
    source = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    size = source.numel() * source.itemsize
    copied = min(_seconds(lambda: target.copy_(source), device) for _ in range(5))
    summed = min(_seconds(source.sum, device) for _ in range(5))
    return max(2 * size / copied, size / summed)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


class Decoder:
    """Our engine on a workload's prompts."""

    def __init__(self, folder: str, workload: Workload) -> None:
        tokenizer = EndlessTokenizer(load_tokenizer(folder).hf)
        chosen = scenarios(workload, tokenizer)[: workload.groups]
        self.workload = workload
        self.prompts = [
            tokenizer.render(opening(one)) for one in chosen for _ in range(workload.group)
        ]
        self.engine = TransformersEngine(load_model(folder), tokenizer)

    def play(self, answer_tokens: int) -> float:
        """Seconds of one answer to every prompt."""
        self.engine.update_weights([])
        started = time.perf_counter()
        asyncio.run(self._answers(answer_tokens))
        return time.perf_counter() - started

    def step_seconds(self) -> float:
        """Of one decoding step of all rows."""
        return (self.play(_MANY) - self.play(_FEW)) / (_MANY - _FEW)

    def seconds_by_kind(self) -> dict[str, float]:
        """Of such a step, in matrix products and in attention."""
        many = seconds_by_kind(lambda: self.play(_MANY))
        few = seconds_by_kind(lambda: self.play(_FEW))
        return {kind: (many[kind] - few[kind]) / (_MANY - _FEW) for kind in many}

    def bytes_per_step(self, sizes: ModelSizes) -> float:
        """Bytes that such a step has to read, at its mean length."""
        return decode_bytes(sizes, self.workload, own_tokens=(_FEW + _MANY) / 2)

    async def _answers(self, answer_tokens: int) -> None:
        await asyncio.gather(
            *(
                converse(
                    self.engine,
                    prompt,
                    [],
                    row=row,
                    group=self.workload.group,
                    answer_tokens=answer_tokens,
                )
                for row, prompt in enumerate(self.prompts)
            )
        )


def main() -> None:
    """Measure everything once each time it is asked for."""
    requests = Requests()
    settings = requests.settings()
    workload, quick = Workload(**settings["workload"]), settings["quick"]
    model = load_model(settings["folder"])
    sizes = sizes_of(model)
    dtype, device, vocabulary = model.dtype, model.device, model.config.vocab_size
    config = TrainingConfig(
        use_lora=True, learning_rate=1e-6, kl_sample_rows=0, bf16=dtype is torch.bfloat16
    )
    learner = make_learner(Policy(model, config), config)
    train = partial(train_step, learner, random_batch(workload, vocabulary), rate=1e-6)
    decoder = Decoder(settings["folder"], workload)
    flops, moved = update_flops(sizes, workload), decoder.bytes_per_step(sizes)
    requests.answer({"update_flops": flops, "decode_bytes": moved, "dtype": str(dtype)})
    while requests.wait() is not None:
        product = best_product(dtype, device, sizes=(256,) if quick else (1024, 2048, 3072))
        update = _seconds(train, device)
        bandwidth = memory_bandwidth(device, megabytes=16 if quick else 512)
        step = decoder.step_seconds()
        in_update, in_decoding = seconds_by_kind(train), decoder.seconds_by_kind()
        requests.answer(
            {
                "update": update,
                "update_flops_per_second": flops / update,
                "product_flops_per_second": product,
                "memory_bytes_per_second": bandwidth,
                "decode_step_seconds": step,
                "decode_bytes_per_second": moved / step,
                "decode_product_seconds": in_decoding["product"],
                "decode_attention_seconds": in_decoding["attention"],
                "update_product_seconds": in_update["product"],
                "update_attention_seconds": in_update["attention"],
            }
        )


if __name__ == "__main__":
    main()
