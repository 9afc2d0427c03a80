"""What the router must know of an OpenAI request and answer, read without rebuilding either.

Owns: the peek at a request body, the two edits it may need (the model's name, asking for usage), usage as engines
report it. Never: I/O, validation that is the engine's, touching a byte that need not change.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from serving.errors import ApiError

GENERATING: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Endpoints whose streams carry usage only where `stream_options.include_usage` asks for it."""

ENDPOINTS: Final = frozenset(
    {
        *GENERATING,
        "/v1/responses",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/score",
        "/v1/messages",
        "/tokenize",
        "/detokenize",
    }
)
"""Paths that are forwarded to an engine by the `model` in their JSON body."""


class StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class Peek(msgspec.Struct, gc=False):
    """The fields of a request body that decide where it goes and how it is counted. Others are skipped unread."""

    model: str | msgspec.UnsetType = msgspec.UNSET
    stream: bool | None = None
    user: str | None = None
    stream_options: StreamOptions | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def wants_usage(self) -> bool:
        return isinstance(self.stream_options, StreamOptions) and self.stream_options.include_usage is True


_peek: Final = msgspec.json.Decoder(Peek)
_PLACE: Final = re.compile(r" - at `\$\.([^`]+)`")


def peek(body: bytes) -> Peek:
    """What `body` says of its model and form. Raises ApiError (400) where it is no JSON object with a model."""
    try:
        seen = _peek.decode(body)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        param = place[1] if place else None
        message = _PLACE.sub("", str(error))
        where = f"`{param}`" if param else "the body"
        raise ApiError(400, f"{where} has the wrong type: {message}", code="invalid_type", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code="invalid_json") from None
    if not seen.model:
        raise ApiError(400, "You must provide a `model` parameter.", code="missing_model", param="model")
    return seen


_ASK: Final = b'"stream_options":{"include_usage":true},'


def ask_for_usage(body: bytes, seen: Peek) -> bytes:
    """The body with `stream_options.include_usage` set to true."""
    if seen.stream_options is msgspec.UNSET:
        start = body.index(b"{") + 1
        return body[:start] + _ASK + body[start:]
    value: dict[str, Any] = msgspec.json.decode(body)
    value["stream_options"] = {**(value.get("stream_options") or {}), "include_usage": True}
    return msgspec.json.encode(value)


def rename(body: bytes, old: str, new: str) -> bytes:
    """The body with its top-level `model` changed from `old` to `new`, every other byte as it was where that is safe.

    A quote inside a JSON string is escaped, so `"model": "old"` can only be a key with its value; where a nested object
    has the same pair as well, the body is decoded and encoded again.
    """
    pattern = re.compile(rb'("model"\s*:\s*)' + re.escape(msgspec.json.encode(old)))
    matches = list(pattern.finditer(body))
    if len(matches) == 1:
        start, stop = matches[0].end(1), matches[0].end()
        return body[:start] + msgspec.json.encode(new) + body[stop:]
    value: dict[str, Any] = msgspec.json.decode(body)
    value["model"] = new
    return msgspec.json.encode(value)


class TokenDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = 0


class Usage(msgspec.Struct, gc=False):
    """Token counts in the words of the chat and completions API, and in those of responses and messages."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: TokenDetails | None = None
    input_tokens_details: TokenDetails | None = None
    cache_read_input_tokens: int | None = None

    @property
    def prompt(self) -> int:
        return self.prompt_tokens or self.input_tokens or 0

    @property
    def completion(self) -> int:
        return self.completion_tokens or self.output_tokens or 0

    @property
    def cached(self) -> int:
        details = self.prompt_tokens_details or self.input_tokens_details
        return (details.cached_tokens if details else self.cache_read_input_tokens) or 0


class AnswerChoice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class Answer(msgspec.Struct, gc=False):
    """A whole (not streamed) answer: how it ended and what it used."""

    usage: Usage | None = None
    choices: list[AnswerChoice] = []
    stop_reason: str | None = None

    @property
    def finish_reason(self) -> str:
        return (self.choices[0].finish_reason if self.choices else self.stop_reason) or ""


_answer: Final = msgspec.json.Decoder(Answer)


def read_answer(body: bytes) -> Answer | None:
    """Usage and finish reason of a whole answer; None where it is not of a known form (which is not an error here)."""
    try:
        return _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class _ErrorBody(msgspec.Struct, gc=False):
    error: dict[str, Any] | None = None


_error: Final = msgspec.json.Decoder(_ErrorBody)
_CONTEXT_CODES: Final = ("context_length_exceeded", "exceed_context_size_error")
_CONTEXT_WORDS: Final = ("maximum context length", "available context size", "context window")


def is_context_error(body: bytes) -> bool:
    """Whether an answer with status 400 says that the request is too long for the model's context.

    OpenAI's code, llama.cpp's type, and the sentences of engines that give neither (vLLM).
    """
    try:
        error = _error.decode(body).error or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    if error.get("code") in _CONTEXT_CODES or error.get("type") in _CONTEXT_CODES:
        return True
    message = str(error.get("message", "")).lower()
    return any(words in message for words in _CONTEXT_WORDS)
