"""A language model as judge, behind any OpenAI-compatible endpoint.

Owns the reward and the answers kept on disk. What the judge is asked and how its answer is read is
in `judge_prompt`; HTTP and retries are in `judge_endpoint`, spending is in `judge_account`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stateset_agents.core.reward import RewardFunction, RewardResult, Scorable
from stateset_agents.core.trajectory import ConversationTurn, Message
from stateset_agents.exceptions import ConfigurationError, RewardError
from stateset_agents.rewards.judge_account import Account, Limits
from stateset_agents.rewards.judge_endpoint import ChatEndpoint, NoReply
from stateset_agents.rewards.judge_prompt import (
    ASK_AGAIN,
    DEFAULT_RUBRIC,
    answer_form,
    instructions,
    read_marks,
)

if TYPE_CHECKING:
    import httpx

_LOG = logging.getLogger(__name__)


class LLMJudgeReward(RewardFunction):
    """The weighted mean of a judge's marks, each scaled from 1..5 to [0, 1].

    The judge sees the whole conversation, with temperature 0, and marks every criterion.
    `breakdown` has the criteria's scores, `metadata["reason"]` what the judge wrote. What it
    answered is kept in `cache_dir` under a hash of the whole request, so the same conversation is
    paid for once; equal conversations in one batch are asked once as well.
    Fooled by: whatever persuades the judge (length, confidence, flattery, its own style), and an
    injection that its instructions do not hold against. Compare it with ratings of your own before
    training with it, and keep its weight below that of what can be checked.

    Args:
        model: the judge's name at the endpoint.
        base_url: of the API, most often ending in /v1.
        rubric: criteria by name, each with what to look for.
        criterion_weights: of the criteria by name; 1 for those left out.
        api_key: None: from the environment variable `api_key_env`, should it be set.
        api_key_env: see there.
        cache_dir: where answers and the account of spending are kept; None: nowhere.
        max_cost: what may be spent, in the unit of the prices, over the life of `cache_dir` and by
            all processes that share it (or by this object, without one); None: no limit. A request
            is sent only where its highest price still fits.
        max_requests: how often the judge may answer; None: no limit.
        input_price: of a million prompt tokens.
        output_price: of a million completion tokens.
        max_concurrency: requests at a time.
        max_retries: further attempts where that may help, also for an answer that is no JSON.
        backoff_seconds: before the first of them, doubling.
        timeout_seconds: of one request.
        max_answer_tokens: of the judge's answer.
        on_failure: "raise" ends the run where the attempts are used up; "skip" gives NaN, and the
            conversation is left out of the step and counted. A wrong key or an empty purse always
            raise.
        weight: its share in a composite.
        name: its key in a composite's breakdown.

    Raises:
        ConfigurationError: every setting that cannot work, or `httpx` is not installed.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        weight: float = 1.0,
        name: str | None = None,
        *,
        rubric: Mapping[str, str] = DEFAULT_RUBRIC,
        criterion_weights: Mapping[str, float] | None = None,
        api_key: str | None = None,
        api_key_env: str = "STATESET_JUDGE_API_KEY",
        cache_dir: Path | str | None = None,
        max_cost: float | None = None,
        max_requests: int | None = None,
        input_price: float = 0.0,
        output_price: float = 0.0,
        max_concurrency: int = 8,
        max_retries: int = 4,
        backoff_seconds: float = 1.0,
        timeout_seconds: float = 60.0,
        max_answer_tokens: int = 300,
        on_failure: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__(weight=weight, name=name)
        limits = Limits(max_cost, max_requests, input_price, output_price)
        weights = dict(criterion_weights or {})
        least = {
            "max_concurrency": (max_concurrency, 1),
            "max_retries": (max_retries, 0),
            "backoff_seconds": (backoff_seconds, 0),
            "max_answer_tokens": (max_answer_tokens, 1),
        }
        problems = _problems(model, base_url, rubric, weights) + limits.problems()
        problems += _too_low(least, timeout_seconds)
        if on_failure not in ("raise", "skip"):
            problems.append(f"on_failure is {on_failure!r}; allowed: raise, skip")
        if problems:
            raise ConfigurationError([f"reward {self.name!r}: {problem}" for problem in problems])
        folder = Path(cache_dir) if cache_dir is not None else None
        self.model = model
        self.max_answer_tokens = max_answer_tokens
        self.on_failure = on_failure
        self.criterion_weights = {name: weights.get(name, 1.0) for name in rubric}
        self.account = Account(limits, folder)
        self.endpoint = ChatEndpoint(
            base_url,
            api_key or os.environ.get(api_key_env),
            self.account,
            timeout_seconds=timeout_seconds,
            max_retries=max_retries,
            backoff_seconds=backoff_seconds,
            max_concurrency=max_concurrency,
        )
        self._cache = _Cache(folder)
        self._form = answer_form(rubric)
        self._instructions = instructions(rubric)

    async def compute_reward(
        self, turns: Sequence[ConversationTurn], context: dict[str, Any] | None = None
    ) -> RewardResult:
        """Score one conversation; one without an assistant turn gets 0 and is not sent."""
        return (await self.compute_rewards([(turns, context or {})]))[0]

    async def compute_rewards(self, conversations: Sequence[Scorable]) -> list[RewardResult]:
        """Score many, side by side.

        Raises:
            RewardError: the endpoint refuses, or nothing is left to spend; with `on_failure`
                "raise" also where it did not answer, or not with marks.
        """
        bodies = [self._body(turns) for turns, _ in conversations]
        keys = [None if body is None else _key(self.endpoint.url, body) for body in bodies]
        wanted = {
            key: body for key, body in zip(keys, bodies, strict=True) if key and body is not None
        }
        async with self.endpoint.client() as client:
            try:
                async with asyncio.TaskGroup() as tasks:
                    asked = {
                        key: tasks.create_task(self._judge(client, key, body))
                        for key, body in wanted.items()
                    }
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from errors
        return [
            RewardResult(score=0.0, breakdown={}) if key is None else asked[key].result()
            for key in keys
        ]

    def _body(self, turns: Sequence[ConversationTurn]) -> dict[str, Any] | None:
        if not any(turn.role == "assistant" for turn in turns):
            return None
        said = [{"role": turn.role, "content": turn.content} for turn in turns]
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": self._instructions},
                {"role": "user", "content": json.dumps(said, ensure_ascii=False, indent=1)},
            ],
            "temperature": 0,
            "max_tokens": self.max_answer_tokens,
        }

    async def _judge(
        self, client: httpx.AsyncClient, key: str, body: dict[str, Any]
    ) -> RewardResult:
        kept = self._cache.get(key)
        if kept is not None and (result := read_marks(kept, self.criterion_weights)) is not None:
            return result
        messages: list[Message] = list(body["messages"])
        text = ""
        for _ in range(self.endpoint.max_retries + 1):
            reply = await self.endpoint.ask(client, {**body, "messages": messages})
            if isinstance(reply, NoReply):
                return self._failed(reply.why)
            text = reply.text
            result = read_marks(text, self.criterion_weights)
            if result is not None:
                self._cache.put(key, body, text)
                return result
            messages = [
                *body["messages"],
                {"role": "assistant", "content": text},
                {"role": "user", "content": ASK_AGAIN.format(form=self._form)},
            ]
        return self._failed(
            f"judge {self.model!r} gave no marks in {self.endpoint.max_retries + 1} attempts; the "
            f"last answer was {text[:200]!r}. A larger model, or a higher max_answer_tokens "
            f"({self.max_answer_tokens}), may do"
        )

    def _failed(self, why: str) -> RewardResult:
        if self.on_failure == "raise":
            raise RewardError(f"reward {self.name!r}: {why}")
        _LOG.warning("reward %r leaves a conversation out: %s", self.name, why)
        return RewardResult(score=math.nan, metadata={"reason": why})


@dataclass(frozen=True, slots=True)
class _Cache:
    """Answers on disk, a file each, written whole or not at all."""

    folder: Path | None

    def get(self, key: str) -> str | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            text = json.loads(path.read_text(encoding="utf-8"))["answer"]
        except (ValueError, KeyError, TypeError):
            _LOG.warning("%s is no kept answer of a judge; it is asked for again", path)
            return None
        return str(text)

    def put(self, key: str, body: dict[str, Any], text: str) -> None:
        path = self._path(key)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"model": body["model"], "messages": body["messages"], "answer": text}
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8"
        ) as part:
            json.dump(entry, part, ensure_ascii=False, indent=1)
        os.replace(part.name, path)

    def _path(self, key: str) -> Path | None:
        return self.folder / key[:2] / f"{key}.json" if self.folder is not None else None


def _too_low(numbers: Mapping[str, tuple[float, float]], timeout_seconds: float) -> list[str]:
    found = [
        f"{field} is {value}; give {least} or more"
        for field, (value, least) in numbers.items()
        if not value >= least
    ]
    if not timeout_seconds > 0:
        found.append(f"timeout_seconds is {timeout_seconds}; give a number above 0")
    return found


def _problems(
    model: str, base_url: str, rubric: Mapping[str, str], weights: Mapping[str, float]
) -> list[str]:
    found = []
    if not model:
        found.append("model is empty; give the judge's name at the endpoint")
    if not base_url.startswith(("http://", "https://")):
        found.append(f"base_url is {base_url!r}; give the API's address, as http://HOST:PORT/v1")
    if not rubric:
        found.append("rubric is empty; give at least one criterion with what to look for")
    found += [
        f"rubric[{name!r}] is {text!r}; give a name other than 'reason' and what to look for"
        for name, text in rubric.items()
        if not isinstance(text, str) or not text.strip() or not name or name == "reason"
    ]
    found += [
        f"criterion_weights[{name!r}]: the rubric has no such criterion; it has {list(rubric)}"
        for name in weights
        if name not in rubric
    ]
    found += [
        f"criterion_weights[{name!r}] is {weight}; give a finite number of 0 or more"
        for name, weight in weights.items()
        if not (math.isfinite(weight) and weight >= 0)
    ]
    if rubric and not any(weights.get(name, 1.0) > 0 for name in rubric):
        found.append("no criterion has a weight above 0")
    return found


def _key(url: str, body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()
