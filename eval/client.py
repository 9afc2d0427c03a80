"""One streamed chat completion, timed: the wire between the runner and any OpenAI server.

Owns: the request's body, reading the stream, and telling failures apart. Never: deciding what to run, or storing.

Failures are of three kinds: a passing one (connection, cut stream, 429, 503) is retried with bounded backoff; a
refusal of this one request (other 4xx) is a result, and final; a refusal of every request (unknown model, key) ends
the run.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx
import msgspec

from eval.endpoint import KEY_VARIABLE
from eval.errors import RequestRefusedError
from eval.suite import Case, Sampling

ATTEMPTS_MAX: Final = 5
BACKOFF_FIRST_S: Final = 0.25
BACKOFF_MAX_S: Final = 8.0
RETRY_AFTER_MAX_S: Final = 30.0
_RETRIED: Final = frozenset({429, 503})
TIMEOUT: Final = httpx.Timeout(connect=5.0, read=120.0, write=30.0, pool=None)


class PassingError(Exception):
    """A failure that may be gone next time."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class FinalError(Exception):
    """The server will not answer this request, however often it is asked."""


@dataclass(slots=True)
class Completion:
    """An answer and what it took. Times are seconds since the attempt that succeeded was sent."""

    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float | None = None
    latency_s: float = 0.0
    started_at: float = 0.0
    attempts: int = 1
    answered_by: str = ""


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Event(msgspec.Struct):
    """What is read of a chunk; every field may be absent or null."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


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
        self._url = f"{url}/v1/chat/completions"
        self._model = model
        self._sampling = sampling
        self._jitter = jitter
        self._sleep = sleep

    async def complete(self, case: Case, seed: int) -> Completion:
        """The answer. Raises PassingError after ATTEMPTS_MAX tries, FinalError, RequestRefusedError."""
        body = self._body(case, seed)
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                completion = await self._once(body)
            except PassingError as error:
                if attempt == ATTEMPTS_MAX:
                    raise
                await self._sleep(self._backoff_s(attempt, error.retry_after_s))
            else:
                completion.attempts = attempt
                return completion
        raise AssertionError("the last attempt returns or raises")

    def _body(self, case: Case, seed: int) -> dict[str, Any]:
        sampling = self._sampling
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in case.messages],
            "temperature": sampling.temperature,
            "max_tokens": case.max_tokens or sampling.max_tokens,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.top_p is not None:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        return body

    def _backoff_s(self, attempt: int, retry_after_s: float | None) -> float:
        """Exponential with jitter; the server's own wish where it has one. Both bounded."""
        if retry_after_s is not None:
            return min(retry_after_s, RETRY_AFTER_MAX_S)
        ceiling: float = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (attempt - 1))
        return ceiling * self._jitter.uniform(0.5, 1.0)

    async def _once(self, body: dict[str, Any]) -> Completion:
        completion = Completion(started_at=time.time())
        began = time.perf_counter()
        try:
            async with self._http.stream("POST", self._url, json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refusal(response)
                completion.answered_by = response.headers.get("x-modelyard-version", "")
                await _read(response, completion, began)
        except httpx.RequestError as error:
            raise PassingError(f"{type(error).__name__}: {error}") from error
        completion.latency_s = time.perf_counter() - began
        return completion


async def _read(response: httpx.Response, completion: Completion, began: float) -> None:
    """Take the stream in. PassingError where it is cut or carries an error."""
    parts: list[str] = []
    async for line in _lines(response):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        try:
            event = msgspec.convert(json.loads(data), _Event)
        except ValueError as error:  # neither JSON nor, by msgspec.ValidationError, an event
            raise PassingError(f"the stream carries what is no event of a chat completion ({error})") from None
        if event.error:
            raise PassingError(_message({"error": event.error}))
        for choice in event.choices or []:
            if choice.delta and choice.delta.content:
                if completion.ttft_s is None:
                    completion.ttft_s = time.perf_counter() - began
                parts.append(choice.delta.content)
            completion.finish_reason = choice.finish_reason or completion.finish_reason
        if event.usage:
            completion.prompt_tokens = event.usage.prompt_tokens or completion.prompt_tokens
            completion.completion_tokens = event.usage.completion_tokens or completion.completion_tokens
    if not completion.finish_reason:
        raise PassingError("the stream was cut before its end")
    # An engine may cut a character into two escapes, in two events: half of one alone has no place in UTF-8.
    completion.text = "".join(parts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The stream's lines. httpx's own end at U+2028 and other characters too, which an answer may hold."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    yield rest


def _refusal(response: httpx.Response) -> Exception:
    """The exception for a status other than 200."""
    try:
        answer = response.json()
    except ValueError:
        answer = {}
    message = f"{response.status_code}: {_message(answer) or response.reason_phrase}"
    if response.status_code in _RETRIED:
        return PassingError(message, _seconds(response.headers.get("retry-after")))
    if response.status_code in {401, 403}:
        return RequestRefusedError(f"the server refuses the key ({message}): set {KEY_VARIABLE}")
    if response.status_code == 404:
        return RequestRefusedError(f"the server does not serve this model ({message})")
    if response.status_code >= 500:
        return PassingError(message)
    return FinalError(message)


def _message(answer: Any) -> str:
    error = answer.get("error", "") if isinstance(answer, dict) else ""
    return str(error.get("message", "") if isinstance(error, dict) else error)


def _seconds(value: str | None) -> float | None:
    try:
        return max(0.0, float(value)) if value else None
    except ValueError:
        return None
