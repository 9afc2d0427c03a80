"""What the router must know of an OpenAI request and answer, read without rebuilding either.

Owns: the peek at a request body, the two edits it may need (the model's name, asking for usage), usage as engines
report it. Never: I/O, validation that is the engine's, touching a byte that need not change.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

import msgspec

from serving.errors import ApiError

GENERATING: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Endpoints whose streams carry usage only where `stream_options.include_usage` asks for it."""

FORMS: Final = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})
"""Endpoints that take a multipart form."""

MESSAGES: Final = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
"""Endpoints of Anthropic's API, with its answers and errors."""

ENDPOINTS: Final = frozenset(
    {
        *GENERATING,
        *FORMS,
        *MESSAGES,
        "/v1/responses",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/score",
        "/v1/audio/speech",
        "/tokenize",
        "/detokenize",
    }
)
"""Paths that are forwarded to an engine by the `model` in their body: also every value of a record's endpoint, less
`other`."""


STREAM_END: Final = {"/v1/messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n'}
"""The event that ends a stream, where it is not `[DONE]`."""


def nearest_path(path: str) -> str:
    """The path that was probably meant: without a slash at the end, with or without `/v1`; empty where none is near."""
    tail = "/" + path.strip("/").removeprefix("v1/").lower()
    return next((known for known in (f"/v1{tail}", tail) if known in ENDPOINTS or known == "/v1/models"), "")


class StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class Peek(msgspec.Struct, gc=False):
    """The fields of a request body that decide where it goes and how it is counted. Others are skipped unread."""

    model: str | msgspec.UnsetType = msgspec.UNSET
    stream: bool | None = None
    user: str | None = None
    stream_options: StreamOptions | msgspec.UnsetType | None = msgspec.UNSET
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    service_tier: Any = None

    @property
    def wants_usage(self) -> bool:
        return isinstance(self.stream_options, StreamOptions) and self.stream_options.include_usage is True


_peek: Final = msgspec.json.Decoder(Peek)
LEAP_BYTES_MIN: Final = 128 * 1024
"""From here on it is worth trying to leap over long strings."""
LONG_STRING_BYTES: Final = 4096
LEAPS_MIN: Final = 16
BYTES_PER_LEAP: Final = 8192
BACKSLASH: Final = ord("\\")
_PLACE: Final = re.compile(r" - at `\$\.([^`]+)`")


def peek(body: bytes) -> Peek:
    """What `body` says of its model and form. Raises ApiError (400) where it is no JSON object with a model."""
    if len(body) >= LEAP_BYTES_MIN and (short := without_long_strings(body)) is not None:
        try:
            seen = _peek.decode(short)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # the whole body is looked at for the reason
        else:
            if seen.model and seen.user != "":
                return seen
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


def without_long_strings(body: bytes) -> bytes | None:
    """The body with every long string emptied; None where that would cost more than reading them.

    It leaps from quote to quote, some thirty times as fast as a parser reads, and so pays where few strings hold most
    of the bytes: images, long documents. Whether the inside of such a string is valid is left to the engine.
    """
    find = body.find
    leaps = LEAPS_MIN + len(body) // BYTES_PER_LEAP
    kept = []
    start = 0
    opened = find(b'"')
    while opened >= 0:
        closed = find(b'"', opened + 1)
        while closed > 0 and body[closed - 1] == BACKSLASH and _escaped(body, closed):
            leaps -= 1
            if leaps < 0:
                return None
            closed = find(b'"', closed + 1)
        leaps -= 1
        if closed < 0 or leaps < 0:
            return None
        if closed - opened > LONG_STRING_BYTES:
            kept.append(body[start : opened + 1])
            start = closed
        opened = find(b'"', closed + 1)
    kept.append(body[start:])
    return b"".join(kept)


def _escaped(body: bytes, quote: int) -> bool:
    """Whether an odd number of backslashes stands before a quote."""
    before = quote - 1
    while body[before] == BACKSLASH:
        before -= 1
    return (quote - before) % 2 == 0


class Form(Peek, gc=False):
    """What a multipart form says of its model, and between which bytes of the body the model's name stands."""

    model_from: int = 0
    model_to: int = 0


Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
"""A count that an engine can mean; an answer that says another one is not believed in anything."""


class TokenDetails(msgspec.Struct, gc=False):
    cached_tokens: Tokens | None = 0


class Usage(msgspec.Struct, gc=False):
    """Token counts in the words of the chat and completions API, and in those of responses and messages."""

    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    total_tokens: Tokens | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    prompt_tokens_details: TokenDetails | None = None
    input_tokens_details: TokenDetails | None = None
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None

    @property
    def prompt(self) -> int:
        """All of the prompt. The messages API leaves what came from its cache out of `input_tokens`; rerankers may give
        nothing but a total."""
        if self.prompt_tokens is not None:
            return self.prompt_tokens
        if self.input_tokens is not None:
            return self.input_tokens + (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)
        return max(0, self.total_tokens - self.completion) if self.total_tokens else 0

    @property
    def completion(self) -> int:
        return self.completion_tokens or self.output_tokens or 0

    @property
    def cached(self) -> int:
        details = self.prompt_tokens_details or self.input_tokens_details
        return (details.cached_tokens if details else self.cache_read_input_tokens) or 0


FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "completed": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_context_window_exceeded": "length",
    "incomplete": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""How the messages and responses APIs say that an answer ended -> how the chat API says it."""


class IncompleteDetails(msgspec.Struct, gc=False):
    reason: str | None = None


class OutputItem(msgspec.Struct, gc=False):
    type: str = ""


class Responded(msgspec.Struct, gc=False):
    """An answer of the responses API, whole or as its last event carries it."""

    usage: Usage | None = None
    status: str | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputItem] = []

    @property
    def finish_reason(self) -> str:
        if any(item.type.endswith("_call") for item in self.output):
            return "tool_calls"
        said = (self.incomplete_details.reason if self.incomplete_details else None) or self.status or ""
        return FINISH.get(said, said)


class AnswerChoice(msgspec.Struct, gc=False):
    finish_reason: str | None = None


class Answer(msgspec.Struct, gc=False):
    """A whole (not streamed) answer of any other endpoint: how it ended and what it used."""

    usage: Usage | None = None
    choices: list[AnswerChoice] = []
    stop_reason: str | None = None

    @property
    def finish_reason(self) -> str:
        said = (self.choices[0].finish_reason if self.choices else self.stop_reason) or ""
        return FINISH.get(said, said)


_answer: Final = msgspec.json.Decoder(Answer)
_responded: Final = msgspec.json.Decoder(Responded)


def read_answer(body: bytes, endpoint: str = "") -> Answer | Responded | None:
    """Usage and finish reason of a whole answer; None where it is not of a known form (which is not an error here)."""
    try:
        return _responded.decode(body) if endpoint == "/v1/responses" else _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


USAGE_BYTES_MAX: Final = 2048
_usage: Final = msgspec.json.Decoder(Usage)


def find_usage(text: bytes) -> Usage | None:
    """Usage in an end of an answer that is too large to be read whole (embeddings)."""
    at = text.rfind(b'"usage"')
    start = text.find(b"{", at, at + 16) if at >= 0 else -1
    stop = start
    while start >= 0 and (stop := text.find(b"}", stop + 1, start + USAGE_BYTES_MAX)) >= 0:
        try:
            return _usage.decode(text[start : stop + 1])
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # the end of an object within
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
