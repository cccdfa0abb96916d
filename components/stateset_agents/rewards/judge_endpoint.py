"""An OpenAI-compatible chat endpoint, asked with care: side by side up to a limit, again where that
may help, and not beyond what may be spent.

Owns HTTP and retries; what may be spent is in `judge_account`. It knows no rewards. `httpx` is
imported when it is needed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stateset_agents.core.trajectory import Message
from stateset_agents.exceptions import ConfigurationError, RewardError
from stateset_agents.rewards.judge_account import Account

if TYPE_CHECKING:
    import httpx

_LOG = logging.getLogger(__name__)
_MAY_PASS = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
# From a server that has answered before: it does not take this conversation, which is too long for
# it or which its filter refuses. As the first answer of all, the settings are wrong.
_OF_THIS_CONVERSATION = frozenset((400, 413, 422))
_LONGEST_WAIT = 60.0  # seconds
_CHARACTERS_PER_TOKEN = 3.0  # fewer than there are in English: an estimate that is not too low
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, and what it cost (in the unit of the prices; 0 without prices)."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    cost: float


@dataclass(frozen=True, slots=True)
class NoReply:
    """There was no answer although it was asked again; `why` is for a person."""

    why: str


class ChatEndpoint:
    """`POST {base_url}/chat/completions`, at most `max_concurrency` at a time.

    What may pass (a timeout, no connection, status 408, 409, 425, 429, 5xx) is asked again, after
    `backoff_seconds`, twice as long each time, or as long as `Retry-After` says, a minute at most.

    Raises:
        ConfigurationError: `httpx` is not installed.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        account: Account,
        *,
        timeout_seconds: float,
        max_retries: int,
        backoff_seconds: float,
        max_concurrency: int,
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ConfigurationError(
                "the judge needs httpx, which is not installed; "
                "pip install 'stateset-agents[judge]'"
            ) from error
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.account = account
        self.max_retries = max_retries
        # read once for all batches; without TLS there is nothing to verify
        secure = base_url.startswith("https://")
        self._verify = httpx.create_ssl_context() if secure else False
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._has_answered = False
        self._timeout_seconds = timeout_seconds
        self._backoff_seconds = backoff_seconds
        self._max_concurrency = max_concurrency
        # a semaphore belongs to one event loop, and training may use several
        self._semaphores: weakref.WeakKeyDictionary[Any, asyncio.Semaphore] = (
            weakref.WeakKeyDictionary()
        )

    def client(self) -> httpx.AsyncClient:
        """A client for one batch; use it in `async with`."""
        import httpx

        return httpx.AsyncClient(
            headers=self._headers, timeout=self._timeout_seconds, verify=self._verify
        )

    async def ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Reply | NoReply:
        """Send one request, again where that may help, `max_retries` times at most.

        Raises:
            RewardError: a status that another attempt would not change, or nothing left to spend.
        """
        loop = asyncio.get_running_loop()
        semaphore = self._semaphores.setdefault(loop, asyncio.Semaphore(self._max_concurrency))
        async with semaphore:
            wait, problem = self._backoff_seconds, ""
            for attempt in range(self.max_retries + 1):
                outcome = await self._send(client, body)
                if not isinstance(outcome, _MayPass):
                    return outcome
                problem = outcome.text
                if attempt < self.max_retries:
                    told = outcome.retry_after
                    pause = min(_LONGEST_WAIT, wait if told is None else told)
                    _LOG.warning("%s; asked again in %.1f s", problem, pause)
                    await asyncio.sleep(pause)
                    wait *= 2
        return NoReply(
            f"{problem}, {self.max_retries + 1} times in a row; is {self.url} up, and is "
            "max_concurrency within its limits? timeout_seconds, max_retries and backoff_seconds "
            "can be raised"
        )

    async def _send(
        self, client: httpx.AsyncClient, body: dict[str, Any]
    ) -> Reply | NoReply | _MayPass:
        import httpx

        reservation = self.account.reserve(self._most(body))
        reply = None
        try:
            response = await client.post(self.url, json=body)
            if response.status_code in _MAY_PASS:
                return _MayPass(
                    f"{self.url} answered {response.status_code} ({_shorten(response.text)})",
                    _seconds(response.headers.get("retry-after")),
                )
            if self._has_answered and response.status_code in _OF_THIS_CONVERSATION:
                return NoReply(_refusal(self.url, response.status_code, response.text, body))
            if response.status_code != 200:
                raise RewardError(_refusal(self.url, response.status_code, response.text, body))
            reply = self._read(response.text, body)
            self._has_answered = True
            return reply
        except httpx.TimeoutException:
            return _MayPass(f"{self.url} did not answer within {self._timeout_seconds:g} s")
        except httpx.TransportError as error:
            return _MayPass(f"{self.url} cannot be reached ({type(error).__name__}: {error})")
        finally:
            if reply is None:
                self.account.give_back(reservation)
            else:
                tokens = reply.prompt_tokens, reply.completion_tokens
                self.account.settle(reservation, reply.cost, *tokens)

    def _read(self, text: str, body: dict[str, Any]) -> Reply:
        try:
            given = json.loads(text)
            content = given["choices"][0]["message"]["content"]
            if content is None:  # a refusal, a filter, or thoughts that took all of max_tokens
                content = ""
            if not isinstance(content, str):
                raise TypeError(f"content is {content!r}")
            usage = given.get("usage") or {}
            prompt = int(usage.get("prompt_tokens") or _tokens(body["messages"]))
            completion = int(usage.get("completion_tokens") or len(content) / _CHARACTERS_PER_TOKEN)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise RewardError(
                f"{self.url} answered what is no chat completion ({_shorten(text)}); base_url must "
                "be that of an OpenAI-compatible server, most often ending in /v1"
            ) from error
        return Reply(content, prompt, completion, self._cost(prompt, completion))

    def _cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        limits = self.account.limits
        return (
            prompt_tokens * limits.input_price + completion_tokens * limits.output_price
        ) / 1_000_000

    def _most(self, body: dict[str, Any]) -> float:
        return self._cost(_tokens(body["messages"]), body["max_tokens"])


@dataclass(frozen=True, slots=True)
class _MayPass:
    """A failure that another attempt may mend."""

    text: str
    retry_after: float | None = None


def _tokens(messages: Sequence[Message]) -> float:
    return sum(len(message["content"]) for message in messages) / _CHARACTERS_PER_TOKEN + 8


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:  # a date: rare, and the backoff will do
        return None


def _refusal(url: str, status: int, text: str, body: dict[str, Any]) -> str:
    advice = {
        401: "the API key is missing or wrong: set the environment variable that api_key_env names",
        403: "the API key may not use this model",
        404: f"no such path, or no model {body['model']!r}; is base_url right (often .../v1)?",
        400: "the server does not take this request",
        413: "the conversation is too long for it",
        422: "the server does not take this request",
    }.get(status, "that is not passing")
    return f"{url} answered {status} ({_shorten(text)}): {advice}"


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else flat[: _SHOWN - 3] + "..."
