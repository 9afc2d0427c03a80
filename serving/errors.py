"""Errors as OpenAI clients know them: one envelope, one table of statuses.

    UserError (registry.terminal)       a person's mistake at the command line or in the configuration
    ApiError                            an answer of the router or of the admin API
        BadRequestError        400      malformed JSON, wrong types, missing fields
        NotFoundError          404      unknown model, version or path
        TooLargeError          413      body above the limit
        UnavailableError       503      no engine can take the request now
        …                               (see STATUS_TYPES)

Owns: the envelope and the types. Never: engine errors, which pass through as the engine wrote them.
"""

from __future__ import annotations

from typing import Final

import msgspec

STATUS_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    411: "invalid_request_error",
    413: "invalid_request_error",
    417: "invalid_request_error",
    421: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    501: "invalid_request_error",
    502: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
    505: "invalid_request_error",
}
"""HTTP status -> OpenAI error type."""


MESSAGES_PATH: Final = b"/v1/messages"
MESSAGES_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""HTTP status -> Anthropic's error type; others are `invalid_request_error` below 500 and `api_error` from there on."""


class ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    error: ErrorBody


class ApiError(Exception):
    """An error answer: status, message, the parameter it is about, a stable code."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self, target: bytes = b"") -> bytes:
        """The envelope `{"error": {"message", "type", "param", "code"}}` as JSON; on the paths of the messages API that
        of Anthropic, from which its clients make their exceptions."""
        if target.startswith(MESSAGES_PATH):
            return messages_envelope(self.status, self.message, code=self.code)
        return envelope(self.status, self.message, code=self.code, param=self.param)


_encoder = msgspec.json.Encoder()


def envelope(status: int, message: str, *, code: str | None, param: str | None = None) -> bytes:
    """The OpenAI error envelope as JSON."""
    kind = STATUS_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return _encoder.encode(ErrorEnvelope(ErrorBody(message, kind, param, code)))


class MessagesErrorBody(msgspec.Struct, frozen=True):
    type: str
    message: str
    code: str | None
    """Ours, beyond what Anthropic has."""


class MessagesErrorEnvelope(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    error: MessagesErrorBody


def messages_envelope(status: int, message: str, *, code: str | None) -> bytes:
    """Anthropic's error envelope as JSON: `{"type": "error", "error": {"type", "message"}}`."""
    kind = MESSAGES_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return _encoder.encode(MessagesErrorEnvelope(MessagesErrorBody(kind, message, code)))


class ResponsesError(ErrorEnvelope, frozen=True, tag_field="type", tag="error"):
    """An error in a stream of the responses API, which its clients find at either place."""

    message: str
    code: str | None
    param: str | None = None


def stream_error(endpoint: str, status: int, message: str, *, code: str) -> bytes:
    """The event that ends a stream with an error, as the endpoint's clients know it."""
    if endpoint == "/v1/messages":
        return b"event: error\ndata: %b\n\n" % messages_envelope(status, message, code=code)
    if endpoint == "/v1/responses":
        kind = STATUS_TYPES.get(status, "server_error")
        error = ResponsesError(ErrorBody(message, kind, None, code), message=message, code=code)
        return b"event: error\ndata: %b\n\n" % _encoder.encode(error)
    return b"data: %b\n\n" % envelope(status, message, code=code)
