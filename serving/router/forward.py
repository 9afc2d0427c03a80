"""What an engine gets of a client's request: the head that we write, and the client's own body wherever it can be.

Owns: the peek at a request, the bytes of a request to a replica. Never: sending them, choosing the replica.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from serving.router import bodies, forms, openai_wire
from serving.router.bodies import Piece
from serving.router.table import ANY_NAME

if TYPE_CHECKING:
    from serving.router.http1 import Request
    from serving.router.snapshot import VersionState
    from serving.router.upstream import Backend

FORWARDED: Final = (b"content-type", b"accept", b"traceparent", b"tracestate", b"openai-beta", b"anthropic-version")
"""Request headers that an engine gets to see. Credentials are not among them."""


def peek(request: Request) -> openai_wire.Peek:
    """What a request says of its model and form. Raises ApiError (400)."""
    if request.endpoint in openai_wire.FORMS:
        return forms.peek(request.body, request.headers.get(b"content-type", b""))
    return openai_wire.peek(request.body)


def asks_for_usage(request: Request, seen: openai_wire.Peek, version: VersionState) -> bool:
    """Whether we ask the version's engine for usage on the client's behalf (and keep the answer to ourselves)."""
    return (
        seen.stream is True
        and request.endpoint in openai_wire.GENERATING
        and version.config.stream_usage
        and not seen.wants_usage
    )


def request_bytes(
    request: Request, seen: openai_wire.Peek, version: VersionState, backend: Backend, request_id: str = ""
) -> list[Piece]:
    """Head and body for one replica: the client's own body, unless its model name or usage must be set."""
    names = version.config.served_names
    name = None if names[0] == ANY_NAME or seen.model in names else names[0]
    parts = bodies.outgoing(request.body, seen, name=name, usage=asks_for_usage(request, seen, version))
    return request_to(request, backend, request.target, *parts, request_id=request_id)


def request_to(request: Request, backend: Backend, target: bytes, *body: Piece, request_id: str = "") -> list[Piece]:
    """The bytes of a request to a replica, with what of the client's head an engine gets to see."""
    length = sum(map(len, body))
    head = b"POST %b%b HTTP/1.1\r\n%bx-request-id: %b\r\ncontent-length: %d\r\n" % (
        backend.path_prefix,
        target,
        backend.head,
        (request_id or request.request_id).encode("latin-1"),
        length,
    )
    headers = request.headers
    for header in FORWARDED:
        value = headers.get(header)
        if value is not None:
            head += b"%b: %b\r\n" % (header, value)
    head += b"\r\n"
    return [head, *body] if length >= bodies.LARGE_BYTES else [b"".join((head, *body))]
