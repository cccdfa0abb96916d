"""Who is computed next, and where its keys and values lie.

Owns the waiting line, the slots and what is in them: conversations, and the prompts that groups
share. It is plain bookkeeping over integers, knows no model and no thread, and decides by the order
of arrival alone, so the same requests in the same order give the same batches.

A request is admitted when there is room in the batch and a slot for it. Requests whose conversation
still holds a slot go before those that would need a new one: else a full engine would drop the very
keys that the next request in line is about to use.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from stateset_agents.inference.engine import (
    FinishReason,
    GenerationRequest,
    GenerationResult,
    OnToken,
)
from stateset_agents.inference.token_prefix import common_prefix_length

# A shared prompt takes a slot and some bookkeeping; under this length it is not worth it.
_SHORTEST_SHARED = 16
_GROWTH_TOKENS = 256


@dataclass(eq=False, slots=True)
class CachedSequence:
    """Tokens whose keys and values lie in a slot, those of a shared prefix excepted.

    Attributes:
        slot: where they lie; a prefix's is one of the shared cache.
        tokens: all of them, the prefix's included.
        computed: how many of `tokens`, from the first, have keys and values.
        prefix: the sequence whose tokens come first, or None.
        is_prefix: True for a prompt that a group shares.
        users: for a prefix, how many sequences build on it.
        active: True while a request is being answered on it.
        last_used: step number, for eviction.
    """

    slot: int
    tokens: list[int]
    computed: int = 0
    prefix: CachedSequence | None = None
    is_prefix: bool = False
    users: int = 0
    active: bool = False
    last_used: int = 0

    @property
    def prefix_tokens(self) -> int:
        """How many tokens the prefix has."""
        return len(self.prefix.tokens) if self.prefix is not None else 0

    @property
    def own_computed(self) -> int:
        """How many computed tokens lie in its own slot."""
        return max(0, self.computed - self.prefix_tokens)


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way. `future` and `on_token` are the caller's, opaque here."""

    request: GenerationRequest
    future: Any
    random: Random
    sequence: CachedSequence | None = None
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    on_token: OnToken | None = None
    num_told: int = 0

    @property
    def tokens_asked(self) -> int:
        """Prompt and answer at their longest."""
        return len(self.request.prompt_token_ids) + self.request.sampling.max_new_tokens

    @property
    def sharing_key(self) -> tuple[str | None, tuple[int, ...]]:
        """Requests with the same key share their prompt."""
        return self.request.group_id, self.request.prompt_token_ids


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` tokens of a sequence to compute now.

    `job` samples after the last of them; None for a shared prefix, or for a prompt that goes on in
    the next step.
    """

    sequence: CachedSequence
    count: int
    job: Job | None


class Scheduler:
    """The waiting line and the slots.

    Args:
        slots: how many there are.
        capacity: own tokens that a slot may have; longer requests wait until that grows.
        shared_tokens: what shared prompts may take together: slots times the longest.
        max_batch_size: requests answered at once.
        max_step_tokens: prompt tokens computed in one step; longer prompts take several.
    """

    def __init__(
        self,
        *,
        slots: int,
        capacity: int,
        shared_tokens: int,
        max_batch_size: int,
        max_step_tokens: int,
    ) -> None:
        self._shared_tokens = shared_tokens
        self._max_batch_size = max_batch_size
        self._max_step_tokens = max_step_tokens
        self._waiting: list[Job] = []
        self._active: list[Job] = []
        self._conversations: dict[str, CachedSequence] = {}
        self._prefixes: dict[str | tuple[int, ...], CachedSequence] = {}
        self._step = 0
        self._free = list(range(slots))
        self._slots = slots
        self._capacity = capacity

    @property
    def has_work(self) -> bool:
        """True while a request waits or is being answered."""
        return bool(self._waiting or self._active)

    @property
    def jobs(self) -> list[Job]:
        """Every request that is not answered yet."""
        return [*self._active, *self._waiting]

    def submit(self, job: Job) -> None:
        """Put a request at the end of the line."""
        self._waiting.append(job)

    def release(self, conversation_id: str) -> None:
        """Forget a conversation; one that is being answered is forgotten when that ends."""
        sequence = self._conversations.pop(conversation_id, None)
        if sequence is not None and not sequence.active:
            self._drop(sequence)

    def next_pieces(self) -> list[Piece]:
        """Admit who can be, and say what to compute in this step: answers first, then prompts."""
        self._step += 1
        self._discard_cancelled()
        self._admit()
        budget = self._max_step_tokens
        pieces: list[Piece] = []
        prefixes: dict[int, Piece] = {}
        for job in self._active:
            sequence = job.sequence
            assert sequence is not None
            sequence.last_used = self._step
            prefix = sequence.prefix
            if prefix is not None and prefix.computed < len(prefix.tokens):
                if prefix.slot not in prefixes and budget > 0:
                    count = min(budget, len(prefix.tokens) - prefix.computed)
                    prefixes[prefix.slot] = Piece(prefix, count, None)
                    pieces.append(prefixes[prefix.slot])
                    budget -= count
                piece = prefixes.get(prefix.slot)
                if piece is None or prefix.computed + piece.count < len(prefix.tokens):
                    continue
            missing = len(sequence.tokens) - max(sequence.computed, sequence.prefix_tokens)
            count = 1 if missing == 1 else min(missing, budget)
            if count > 0:
                pieces.append(Piece(sequence, count, job if count == missing else None))
                budget -= 0 if missing == 1 else count
        return pieces

    def computed(self, pieces: Sequence[Piece]) -> None:
        """Note that the pieces' keys and values are in the cache."""
        for piece in pieces:
            sequence = piece.sequence
            sequence.computed = max(sequence.computed, sequence.prefix_tokens) + piece.count

    def sampled(
        self, job: Job, token: int, logprob: float, stops: frozenset[int]
    ) -> GenerationResult | None:
        """Append a token to an answer; returns the result if that was the last one."""
        assert job.sequence is not None
        job.sampled.append(token)
        job.logprobs.append(logprob)
        job.sequence.tokens.append(token)
        if token in stops:
            reason = FinishReason.STOP
        elif len(job.sampled) >= job.request.sampling.max_new_tokens:
            reason = FinishReason.LENGTH
        else:
            return None
        self._finish(job)
        return GenerationResult(tuple(job.sampled), tuple(job.logprobs), reason)

    def forget_computed(self) -> None:
        """The weights changed: what is idle goes, what is being answered is computed again."""
        for sequence in list(self._conversations.values()):
            if not sequence.active:
                self._drop(sequence)
        for job in self._active:
            if job.sequence is not None:
                job.sequence.computed = 0
        for prefix in list(self._prefixes.values()):
            prefix.computed = 0
            if prefix.users == 0:
                self._drop(prefix)

    def clear(self) -> list[Job]:
        """Forget everything; returns the requests that were not answered."""
        jobs = self.jobs
        self._waiting, self._active = [], []
        self._conversations, self._prefixes = {}, {}
        self._free = list(range(self._slots))
        return jobs

    # Room: the engine grows the cache when a request needs longer slots.

    def capacity_wanted(self) -> int:
        """Tokens of the longest request in hand, rounded up to a step of growth; 0 without one."""
        longest = max((job.tokens_asked for job in self.jobs), default=0)
        return -(-longest // _GROWTH_TOKENS) * _GROWTH_TOKENS

    def compact(self, slots: int, capacity: int) -> list[tuple[int, int, int]] | None:
        """Move everything into the first slots of a cache that is made anew.

        Idle conversations that do not fit are forgotten.

        Args:
            slots: how many there will be.
            capacity: own tokens that each will hold.

        Returns:
            `(old slot, new slot, own tokens)` of each sequence kept, or None if what is being
            answered alone needs more slots: nothing was changed then.
        """
        if len(self._active) > slots:
            return None
        while len(self._sequences()) > slots:
            self._evict(spare_awaited=False)
        kept = []
        for new, sequence in enumerate(self._sequences()):
            kept.append((sequence.slot, new, sequence.own_computed))
            sequence.slot = new
        self._slots, self._capacity = slots, capacity
        self._free = list(range(len(kept), slots))
        return kept

    def own_layout(self) -> list[tuple[int, int, int]]:
        """`(slot, slot, own tokens)` of every sequence: what a resize in place carries over."""
        return [(item.slot, item.slot, item.own_computed) for item in self._sequences()]

    def shared_layout(self) -> list[tuple[int, int, int]]:
        """`(slot, slot, tokens)` of every shared prefix."""
        computed = [item for item in self._prefixes.values() if item.computed]
        return [(item.slot, item.slot, item.computed) for item in computed]

    def shared_size(self) -> tuple[int, int]:
        """Slots and tokens a slot that the shared prefixes take."""
        prefixes = self._prefixes.values()
        slots = max((prefix.slot + 1 for prefix in prefixes), default=0)
        return slots, max((len(prefix.tokens) for prefix in prefixes), default=0)

    # Admission

    def _admit(self) -> None:
        if not self._waiting:
            return
        ready = [job for job in self._waiting if self._held(job) is not None]
        fresh = [job for job in self._waiting if self._held(job) is None]
        sharers = Counter(job.sharing_key for job in fresh)
        admitted: set[int] = set()
        for job in (*ready, *fresh):
            full = len(self._active) >= self._max_batch_size
            if full or job.tokens_asked > self._capacity:
                break
            # Asked again: of two requests for one conversation the first has just taken it.
            job.sequence = self._resume(job) or self._place(job, sharers[job.sharing_key] > 1)
            if job.sequence is None:
                break
            job.sequence.active = True
            job.sequence.last_used = self._step
            self._active.append(job)
            admitted.add(id(job))
        self._waiting = [job for job in self._waiting if id(job) not in admitted]

    def _held(self, job: Job) -> CachedSequence | None:
        """The idle sequence of the request's conversation, if it is of use."""
        name = job.request.conversation_id
        sequence = self._conversations.get(name) if name is not None else None
        if sequence is None or sequence.active:
            return None
        return sequence

    def _resume(self, job: Job) -> CachedSequence | None:
        """Take up a conversation where its tokens and the prompt part."""
        sequence = self._held(job)
        if sequence is None:
            return None
        prompt = job.request.prompt_token_ids
        common = common_prefix_length(sequence.tokens[: sequence.computed], prompt[:-1])
        if common < sequence.prefix_tokens or common == 0:
            self._drop(sequence)
            return None
        sequence.tokens = list(prompt)
        sequence.computed = common
        return sequence

    def _place(self, job: Job, shared: bool) -> CachedSequence | None:
        """A new sequence in a free slot, on a shared prefix where there is one."""
        prompt = job.request.prompt_token_ids
        key = job.request.group_id or prompt
        prefix = self._prefixes.get(key)
        if prefix is not None and tuple(prefix.tokens) != prompt[:-1][: len(prefix.tokens)]:
            prefix = None
            shared = shared and self._prefixes[key].users == 0
        if not self._room():
            return None
        if prefix is None and shared and len(prompt) > _SHORTEST_SHARED:
            prefix = self._share(key, prompt[:-1])
        if prefix is not None:
            prefix.users += 1
            prefix.last_used = self._step
        sequence = CachedSequence(heapq.heappop(self._free), list(prompt), prefix=prefix)
        name = job.request.conversation_id
        if name is not None and name not in self._conversations:
            self._conversations[name] = sequence
        return sequence

    def _share(self, key: str | tuple[int, ...], tokens: tuple[int, ...]) -> CachedSequence | None:
        """A new shared prefix, if there is memory for it."""
        if key in self._prefixes:
            self._drop(self._prefixes[key])
        while True:
            taken = {prefix.slot for prefix in self._prefixes.values()}
            slot = next(free for free in range(len(taken) + 1) if free not in taken)
            slots, longest = self.shared_size()
            if max(slots, slot + 1) * max(longest, len(tokens)) <= self._shared_tokens:
                break
            unused = [prefix for prefix in self._prefixes.values() if prefix.users == 0]
            if not unused:
                return None
            self._drop(min(unused, key=lambda prefix: (prefix.last_used, prefix.slot)))
        self._prefixes[key] = CachedSequence(slot, list(tokens), is_prefix=True)
        return self._prefixes[key]

    def _room(self) -> bool:
        """Make sure that a slot is free, by eviction if need be."""
        return bool(self._free) or self._evict()

    # Leaving

    def _finish(self, job: Job) -> None:
        sequence = job.sequence
        assert sequence is not None
        self._active.remove(job)
        sequence.active = False
        name = job.request.conversation_id
        if name is None or self._conversations.get(name) is not sequence:
            self._drop(sequence)

    def _discard_cancelled(self) -> None:
        self._waiting = [job for job in self._waiting if not job.future.done()]
        for job in [job for job in self._active if job.future.done()]:
            self._finish(job)

    def _evict(self, spare_awaited: bool = True) -> bool:
        """Drop the idle conversation that was used the longest ago; False if there is none."""
        awaited = {job.request.conversation_id for job in self._waiting if spare_awaited}
        idle = [
            sequence
            for name, sequence in self._conversations.items()
            if not sequence.active and name not in awaited
        ]
        if not idle:
            return False
        self._drop(min(idle, key=lambda sequence: (sequence.last_used, sequence.slot)))
        return True

    def _drop(self, sequence: CachedSequence) -> None:
        for name in [name for name, held in self._conversations.items() if held is sequence]:
            del self._conversations[name]
        for key in [key for key, held in self._prefixes.items() if held is sequence]:
            del self._prefixes[key]
        if sequence.prefix is not None:
            sequence.prefix.users -= 1
        if not sequence.is_prefix:
            heapq.heappush(self._free, sequence.slot)

    def _sequences(self) -> list[CachedSequence]:
        active = [job.sequence for job in self._active if job.sequence is not None]
        found = {id(item): item for item in (*active, *self._conversations.values())}
        return sorted(found.values(), key=lambda item: item.slot)
