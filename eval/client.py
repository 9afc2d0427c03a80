"""A case put to one model of one server: the wire between the runner and any OpenAI server.

Owns: the request's body, the turns of a conversation, the time limit, and telling failures apart. Never: deciding what
to run, or storing.

Failures are of three kinds: a passing one (connection, cut stream, 429, 503) is retried with bounded backoff; a
refusal of this one request (other 4xx), or no answer within its time, is a result, and final; a refusal of every
request (unknown model, key) ends the run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final

import httpx
import msgspec

from eval.endpoint import KEY_VARIABLE
from eval.errors import RequestRefusedError
from eval.stream import Completion, PassingError, message_of, read
from eval.suite import Case, Sampling

ATTEMPTS_MAX: Final = 5
BACKOFF_FIRST_S: Final = 0.25
BACKOFF_MAX_S: Final = 8.0
RETRY_AFTER_MAX_S: Final = 30.0
_RETRIED: Final = frozenset({429, 503})
READ_TIMEOUT_S: Final = 120.0
TIMEOUT: Final = httpx.Timeout(connect=5.0, read=READ_TIMEOUT_S, write=30.0, pool=None)
"""Where a case sets no limit of its own."""
_HEADERS: Final = {"content-type": "application/json", "accept-encoding": "identity"}

_json = msgspec.json.Encoder()


class FinalError(Exception):
    """The server will not answer this request, however often it is asked."""


def body_of(case: Case, sampling: Sampling, seed: int) -> dict[str, Any]:
    """The first request of a case, all but the model's name: what decides the answer, and what the cache is keyed by.

    `case.request` goes last: a case may overrule every field but the messages.
    """
    body: dict[str, Any] = {
        "temperature": sampling.temperature,
        "max_tokens": case.max_tokens or sampling.max_tokens,
        "seed": seed,
    }
    if sampling.top_p is not None:
        body["top_p"] = sampling.top_p
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    body |= case.request
    if case.chat:
        body["messages"] = [{"role": turn.role, "content": turn.content} for turn in case.messages]
    else:
        body["prompt"] = case.text
    return body


class Client:
    """Sends a case to one model of one server."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        url: str,
        model: str,
        *,
        sampling: Sampling,
        jitter: random.Random,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._http = http
        self._url = f"{url}/v1"
        self._model = model
        self._sampling = sampling
        self._jitter = jitter
        self._sleep = sleep

    async def complete(self, case: Case, seed: int) -> Completion:
        """The answer to the last turn. Raises PassingError after ATTEMPTS_MAX tries, FinalError,
        RequestRefusedError."""
        limit_s = case.timeout_s or self._sampling.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._turns(case, seed, _timeout(limit_s))
        except TimeoutError:
            raise FinalError(f"no whole answer within the case's {limit_s:g} s") from None

    async def _turns(self, case: Case, seed: int, wait: httpx.Timeout) -> Completion:
        body = body_of(case, self._sampling, seed)
        found = await self._asked(body, case.chat, wait)
        for turn in case.then:
            said = {"role": "assistant", "content": found.text}
            body["messages"] = [*body["messages"], said, {"role": "user", "content": turn}]
            last = await self._asked(body, case.chat, wait)
            last.turns = (*found.turns, found.text)
            last.ttft_s, last.started_at = found.ttft_s, found.started_at
            last.latency_s += found.latency_s
            last.prompt_tokens += found.prompt_tokens
            last.completion_tokens += found.completion_tokens
            last.attempts += found.attempts - 1
            found = last
        return found

    async def _asked(self, body: dict[str, Any], chat: bool, wait: httpx.Timeout) -> Completion:
        url = f"{self._url}/{'chat/completions' if chat else 'completions'}"
        whole = _json.encode(
            {"model": self._model} | body | {"stream": True, "stream_options": {"include_usage": True}}
        )
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                completion = await self._once(url, whole, wait)
            except PassingError as error:
                if attempt == ATTEMPTS_MAX:
                    raise
                await self._sleep(self._backoff_s(attempt, error.retry_after_s))
            else:
                completion.attempts = attempt
                return completion
        raise AssertionError("the last attempt returns or raises")

    def _backoff_s(self, attempt: int, retry_after_s: float | None) -> float:
        """Exponential with jitter; the server's own wish where it has one. Both bounded."""
        if retry_after_s is not None:
            return min(retry_after_s, RETRY_AFTER_MAX_S)
        ceiling: float = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (attempt - 1))
        return ceiling * self._jitter.uniform(0.5, 1.0)

    async def _once(self, url: str, body: bytes, wait: httpx.Timeout) -> Completion:
        completion = Completion(started_at=time.time())
        began = time.perf_counter()
        try:
            stream = self._http.stream("POST", url, content=body, headers=_HEADERS, timeout=wait)
            async with stream as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refusal(response)
                completion.answered_by = response.headers.get("x-modelyard-version", "")
                await read(response.aiter_bytes(), completion, began)
        except httpx.RequestError as error:
            raise PassingError(f"{type(error).__name__}: {error}") from error
        completion.latency_s = time.perf_counter() - began
        return completion


def _timeout(limit_s: float | None) -> httpx.Timeout:
    """The connection's own timeouts, which must not cut in before a longer limit of the case does."""
    read_s = max(READ_TIMEOUT_S, limit_s or 0.0)
    return TIMEOUT if limit_s is None else httpx.Timeout(connect=5.0, read=read_s, write=30.0, pool=None)


def _refusal(response: httpx.Response) -> Exception:
    """The exception for a status other than 200."""
    try:
        answer = response.json()
    except ValueError:
        answer = {}
    message = f"{response.status_code}: {message_of(answer) or response.reason_phrase}"
    if response.status_code in _RETRIED:
        return PassingError(message, _seconds(response.headers.get("retry-after")))
    if response.status_code in {401, 403}:
        return RequestRefusedError(f"the server refuses the key ({message}): set {KEY_VARIABLE}")
    if response.status_code == 404:
        return RequestRefusedError(f"the server does not serve this model ({message})")
    if response.status_code >= 500:
        return PassingError(message)
    return FinalError(message)


def _seconds(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
