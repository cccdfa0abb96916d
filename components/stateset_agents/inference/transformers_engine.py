"""The in-process engine: continuous batching over any decoder model of transformers.

Owns the model's weights, where a step is computed, and its order: admit, lay out, forward, sample,
hand over. What lies where is `scheduler.py`'s, how attention reads it is
`attention.py`'s.

A step computes one token of every answer that is under way, together with the prompts that came in,
as one packed row without padding. It is computed in the event loop's thread, between turns of the
loop, or in a thread of the engine's own.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stateset_agents.exceptions import EngineError
from stateset_agents.inference.attention import (
    ATTENTION_NAME,
    AttentionPlan,
    Row,
    ShapeProbe,
    plan_attention,
)
from stateset_agents.inference.chat_template import ChatTokenizer
from stateset_agents.inference.engine import GenerationRequest, GenerationResult, OnToken
from stateset_agents.inference.forward import forward_of
from stateset_agents.inference.request_checks import check_request, check_weights
from stateset_agents.inference.sampling import Draw, sample
from stateset_agents.inference.scheduler import Job, Piece, Scheduler
from stateset_agents.inference.slot_cache import SlotCache

# Tokens that a slot may have before a longer request asks for more, and the steps in which the
# memory behind it grows as its tokens come.
_FIRST_CAPACITY = 512
_GROWTH_TOKENS = 64
# Turns of the event loop between two steps, so that whoever got an answer can ask its next
# question in time for the next step. Counted in turns and not in seconds: the same run batches the
# same way again.
_LOOP_TURNS = 8


class TransformersEngine:
    """The Engine protocol over a transformers model.

    The model becomes the engine's own: its attention is replaced and its weights change with
    `update_weights`, so give it one that nothing else trains or runs.

    Args:
        model: a causal language model whose layers use transformers' attention interface.
        tokenizer: the model's.
        max_batch_size: answers under way at once; further requests wait in line.
        max_cached_sequences: conversations whose keys and values are kept, those under way
            included; None means twice `max_batch_size`.
        cache_bytes: the most memory for keys and values. If it holds fewer sequences than the two
            numbers above ask for, fewer are kept and computed at once.
        max_step_tokens: prompt tokens computed in one step; a longer prompt takes several, so
            that it does not hold up the answers under way for long.
        pack_weights: keep a second copy of the linear layers' weights in the processor's own order
            (see `packed_linear.py`); faster, and takes the model's size once more. Without effect
            where that is not possible.
        own_thread: compute in a thread of the engine's own, so that the event loop answers others
            meanwhile, as a server must. False is faster where training shares the process: each
            thread that computes has OpenMP workers of its own, and once there are more of them than
            processors, those that wait for work go to sleep at once and cost every operation their
            waking.

    Raises:
        EngineError: the model does not use the attention interface, or asks of it what is not
            supported here (soft caps, attention sinks); or `cache_bytes` holds nothing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: ChatTokenizer,
        *,
        max_batch_size: int = 32,
        max_cached_sequences: int | None = None,
        cache_bytes: int = 2 * 1024**3,
        max_step_tokens: int = 512,
        pack_weights: bool = True,
        own_thread: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._model: Any = model.eval()
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._vocabulary = int(self._model.get_input_embeddings().num_embeddings)
        self._device = model.device
        self._cache_bytes = cache_bytes
        self._wanted_slots = max(2, max_cached_sequences or 2 * max_batch_size)
        probe = self._adopt()
        self._logits_of = forward_of(model, pack_weights=pack_weights)
        self._bytes_per_token = sum(
            shape.bytes_per_token(model.dtype) for shape in probe.shapes.values()
        )
        self._max_context_tokens = self._find_max_context()
        self._reserved_tokens = min(_FIRST_CAPACITY, self._max_context_tokens)
        slots = self._slots_at(self._reserved_tokens)
        self._own, self._shared = (
            SlotCache(
                probe.shapes,
                slots=number,
                capacity=_GROWTH_TOKENS,
                dtype=model.dtype,
                device=self._device,
            )
            for number in (slots, 1)
        )
        self._scheduler = Scheduler(
            slots=slots,
            capacity=self._reserved_tokens,
            shared_tokens=cache_bytes // 4 // self._bytes_per_token,
            max_batch_size=max_batch_size,
            max_step_tokens=max_step_tokens,
        )
        # What the event loop asks for; a step takes it up when it starts.
        self._inbox: deque[Callable[[], None]] = deque()
        self._listened_to: list[Job] = []
        self._step_lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="engine") if own_thread else None
        self._driver: asyncio.Task[None] | None = None
        self._closed = False
        self._computed_tokens = 0

    @property
    def computed_tokens(self) -> int:
        """Tokens that went through the model so far: what caches save shows here."""
        return self._computed_tokens

    @property
    def tokenizer(self) -> ChatTokenizer:
        """Text to tokens and back, chat template included."""
        return self._tokenizer

    @property
    def max_context_tokens(self) -> int:
        """The most tokens that a prompt and its answer may have together.

        The smallest of the model's positions, its sliding window (within it, attention is full
        attention) and what three eighths of `cache_bytes` hold: two conversations' worth, beside a
        quarter for shared prompts.
        """
        return self._max_context_tokens

    async def generate(
        self, request: GenerationRequest, on_token: OnToken | None = None
    ) -> GenerationResult:
        """Sample one continuation; many calls may wait at once and are batched.

        `on_token` hears each sampled id as it comes, on the caller's event loop.

        Raises:
            ContextLengthError: prompt and `max_new_tokens` exceed `max_context_tokens`.
            EngineError: the request makes no sense, the engine is closed, or the model failed.
        """
        self._check(request)
        loop = asyncio.get_running_loop()
        self._ensure_driver(loop)
        job = Job(request, loop.create_future(), Random(request.sampling.seed), on_token=on_token)
        if on_token is not None:
            self._listened_to.append(job)
        self._inbox.append(lambda: self._scheduler.submit(job))
        result: GenerationResult = await job.future
        return result

    def release(self, conversation_id: str) -> None:
        """Forget a conversation's keys and values; unknown names are fine."""
        if not self._closed:  # nothing is kept then, and nobody empties the inbox any more
            self._inbox.append(lambda: self._scheduler.release(conversation_id))

    def update_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace parameters by name and drop every cached key and value.

        It waits for the step that is being computed. Answers under way go on with the new weights,
        after their tokens so far are computed again.

        Raises:
            EngineError: a name or shape that the model does not have; nothing was replaced.
        """
        given = list(weights)
        check_weights(given, {name: value.shape for name, value in self._parameters.items()})
        with self._step_lock, torch.no_grad():
            for name, tensor in given:
                self._parameters[name].copy_(tensor)
            if given:
                self._logits_of.pack()
            self._take_in()
            self._scheduler.forget_computed()
            self._empty_caches()

    async def aclose(self) -> None:
        """Fail what waits and free the memory; closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        if self._driver is not None and not self._driver.done():
            await asyncio.wait([self._driver])
        if self._worker is not None:
            self._worker.shutdown()
        for cache in (self._own, self._shared):
            cache.keys.clear()
            cache.values.clear()

    # Set-up

    def _adopt(self) -> ShapeProbe:
        """Put our attention into the model, and run one token to see what each layer stores."""
        name = type(self._model).__name__
        if not self._model._supports_attention_backend:
            raise EngineError(
                f"{name} does not use transformers' attention interface, so this engine cannot "
                "serve it. Use the vllm engine for this model."
            )
        self._model.set_attn_implementation(ATTENTION_NAME)
        probe = ShapeProbe()
        with torch.inference_mode():
            token = torch.zeros((1, 1), dtype=torch.long, device=self._device)
            self._model(input_ids=token, position_ids=token, use_cache=False, slot_plan=probe)
        if not probe.shapes:
            raise EngineError(
                f"{name} has no attention layer that this engine reaches. Use the vllm engine."
            )
        return probe

    def _find_max_context(self) -> int:
        config = self._model.config.get_text_config()
        limits = [self._cache_bytes * 3 // 8 // self._bytes_per_token]
        for name in ("max_position_embeddings", "sliding_window"):
            limit = getattr(config, name, None)
            if limit:
                limits.append(int(limit))
        if min(limits) < 1:
            raise EngineError(
                f"cache_bytes {self._cache_bytes} is too small: a token takes "
                f"{self._bytes_per_token} bytes, and two conversations and a shared prompt "
                "must fit. Raise cache_bytes."
            )
        return min(limits)

    def _slots_at(self, capacity: int) -> int:
        allowed = self._cache_bytes * 3 // 4
        return min(self._wanted_slots, allowed // (capacity * self._bytes_per_token))

    # The event loop's side

    def _check(self, request: GenerationRequest) -> None:
        if self._closed:
            raise EngineError("The engine is closed; make a new one to generate.")
        check_request(
            request, vocabulary=self._vocabulary, max_context_tokens=self._max_context_tokens
        )

    def _ensure_driver(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._driver is not None and not self._driver.done():
            if self._driver.get_loop() is loop:
                return
            if not self._driver.get_loop().is_closed():
                raise EngineError(
                    "The engine is being used from another event loop. Give each its own engine."
                )
        self._driver = loop.create_task(self._drive())

    async def _drive(self) -> None:
        """Step while there is work; hand results to who waits for them."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                for _ in range(_LOOP_TURNS):
                    await asyncio.sleep(0)
                if self._closed:
                    self._fail_all(EngineError("The engine was closed while a request waited."))
                    return
                if not self._inbox and not self._scheduler.has_work:
                    return
                try:
                    if self._worker is None:
                        finished = self._step()
                    else:
                        finished = await loop.run_in_executor(self._worker, self._step)
                except Exception as error:  # attributed to every request that it concerns
                    self._fail_all(error)
                    continue
                self._tell_listeners()
                for job, result in finished:
                    if not job.future.done():
                        job.future.set_result(result)
        except asyncio.CancelledError:
            self._abandon()
            raise

    def _tell_listeners(self) -> None:
        """Between two steps, when no answer grows."""
        for job in self._listened_to:
            assert job.on_token is not None
            try:
                while job.num_told < len(job.sampled) and not job.future.done():
                    job.num_told += 1
                    job.on_token(job.sampled[job.num_told - 1])
            except Exception as error:  # of whoever listens: it is theirs, and costs their answer
                job.future.set_exception(error)
        self._listened_to = [job for job in self._listened_to if not job.future.done()]

    def _fail_all(self, error: Exception) -> None:
        with self._step_lock:
            self._take_in()
            jobs = self._scheduler.clear()
            # A NaN that the failed step left in a slot would reach whoever gets it next.
            self._empty_caches()
        for job in jobs:
            if not job.future.done():
                failure = EngineError(f"Generation failed: {type(error).__name__}: {error}")
                failure.__cause__ = error
                job.future.set_exception(failure)

    def _abandon(self) -> None:
        """The event loop is going down: nobody waits any more. What is cached stays."""
        with self._step_lock:
            self._take_in()
            for job in self._scheduler.jobs:
                job.future.cancel()

    # What computes

    def _empty_caches(self) -> None:
        self._own.resize(self._own.slots, _GROWTH_TOKENS, [])
        self._shared.resize(1, _GROWTH_TOKENS, [])

    def _take_in(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _step(self) -> list[tuple[Job, GenerationResult]]:
        """One forward pass and one token for each answer under way."""
        with self._step_lock, torch.inference_mode():
            # 1. admit
            self._take_in()
            self._reserve()
            pieces = self._scheduler.next_pieces()
            if not pieces:
                return []
            # 2. lay out
            rows = [_row_of(piece) for piece in pieces]
            self._grow(rows)
            plan = plan_attention(rows, self._own, self._shared, self._device)
            ordered = [pieces[index] for index in plan.order]
            # 3. forward
            logits = self._forward(ordered, plan)
            self._scheduler.computed(ordered)
            self._computed_tokens += sum(piece.count for piece in ordered)
            # 4. sample
            jobs = [piece.job for piece in ordered if piece.job is not None]
            if not jobs:
                return []
            tokens, logprobs = sample(logits, [_draw_of(job) for job in jobs])
            # 5. hand over
            finished = []
            for job, token, logprob in zip(jobs, tokens, logprobs, strict=True):
                result = self._scheduler.sampled(
                    job, token, logprob, self._tokenizer.stop_token_ids
                )
                if result is not None:
                    finished.append((job, result))
            return finished

    def _reserve(self) -> None:
        """Allow longer slots, and fewer if memory asks for that, once a request needs them."""
        wanted = min(self._scheduler.capacity_wanted(), self._max_context_tokens)
        if wanted <= self._reserved_tokens:
            return
        slots = self._slots_at(wanted)
        kept = self._scheduler.compact(slots, wanted)
        if kept is not None:
            self._reserved_tokens = wanted
            self._own.resize(slots, self._own.capacity, kept)

    def _grow(self, rows: list[Row]) -> None:
        """Make both caches as long as this step needs; see `SlotCache` for why no longer."""
        needed = _rounded(max((r.start + r.count for r in rows if not r.is_prefix), default=0))
        if needed > self._own.capacity:
            self._own.resize(self._own.slots, needed, self._scheduler.own_layout())
        slots, longest = self._scheduler.shared_size()
        if slots > self._shared.slots or longest > self._shared.capacity:
            # Not the larger of now and before in each direction: that could exceed `cache_bytes`.
            self._shared.resize(slots, longest, self._scheduler.shared_layout())

    def _forward(self, pieces: list[Piece], plan: AttentionPlan) -> Tensor:
        """Logits `(B, V)` after the last token of each piece that samples."""
        token_ids: list[int] = []
        last: list[int] = []
        for piece in pieces:
            sequence = piece.sequence
            first = max(sequence.computed, sequence.prefix_tokens)
            token_ids.extend(sequence.tokens[first : first + piece.count])
            if piece.job is not None:
                last.append(len(token_ids) - 1)
        return self._logits_of(
            torch.tensor(token_ids, device=self._device),
            plan,
            torch.tensor(last or [0], device=self._device),
        )


def _rounded(tokens: int) -> int:
    return -(-tokens // _GROWTH_TOKENS) * _GROWTH_TOKENS


def _row_of(piece: Piece) -> Row:
    sequence = piece.sequence
    return Row(
        slot=sequence.slot,
        start=sequence.own_computed,
        count=piece.count,
        is_prefix=sequence.is_prefix,
        prefix_slot=sequence.prefix.slot if sequence.prefix is not None else None,
        prefix_tokens=sequence.prefix_tokens,
    )


def _draw_of(job: Job) -> Draw:
    params = job.request.sampling
    history: tuple[int, ...] = ()
    if params.repetition_penalty != 1.0:
        history = (*job.request.prompt_token_ids, *job.sampled)
    return Draw(params, job.random.random(), history)
