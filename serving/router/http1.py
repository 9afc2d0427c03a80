"""HTTP/1.1 as clients speak it to the router: llhttp parses, limits apply as the bytes arrive.

Owns: one client connection, its requests in order, its answers' framing, its share of backpressure. Never: what a
request means beyond its path.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import httptools

from serving.errors import ApiError

if TYPE_CHECKING:
    from serving.router.exchange import Exchange
    from serving.router.router import Router

PENDING_BYTES_MAX: Final = 64 * 1024
"""What a client may send ahead of an answer before we stop reading."""
WRITE_BUFFER_BYTES: Final = 256 * 1024
"""What a slow client may leave unread before we stop reading from the engine."""
LINGER_S: Final = 2.0
ONCE: Final = frozenset({b"host", b"authorization", b"content-type", b"x-session-id"})
"""Headers that decide something: where they come twice, it is not ours to guess which one was meant."""
ABSOLUTE: Final = re.compile(rb"https?://[^/?]*")
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REASONS: Final = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


class Request:
    """One request as it arrives; whole once `body` is set."""

    __slots__ = ("body", "endpoint", "headers", "http11", "keep_alive", "method", "request_id", "target")

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.http11 = True
        self.keep_alive = True
        self.body = b""
        self.endpoint = "other"
        self.request_id = ""


class Client(asyncio.Protocol):
    """One client connection. Requests on it are answered one after another, in order."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_closing",
        "_error",
        "_exchange",
        "_head_bytes",
        "_head_complete",
        "_parser",
        "_pending",
        "_pending_bytes",
        "_queue",
        "_reading_paused",
        "_refusal",
        "_request",
        "_router",
        "_transport",
        "_unread",
        "deadline",
    )

    def __init__(self, router: Router) -> None:
        self._router = router
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request | None = None
        self._queue: deque[Request] = deque()
        self._exchange: Exchange | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._head_bytes = 0
        self._head_complete = False
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._error: ApiError | None = None
        self._refusal: ApiError | None = None
        self._closing = False
        self._reading_paused = False
        self._unread = False
        """The client has left so much unread that nothing more is begun for it."""
        self.deadline = 0.0
        """When the connection is closed for want of bytes; 0 while a request is being answered."""

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        if not self._router.admit(self):
            error = ApiError(503, "The router has as many connections as it may.", code="too_many_connections")
            self._closing = True
            self._transport.write(_plain_answer(error.status, error.body(), b"connection: close\r\n"))
            self._transport.close()
            return
        self.deadline = self._router.now() + self._router.snapshot.limits.head_timeout_s

    def data_received(self, data: bytes) -> None:
        if self._closing or self._refusal is not None:
            return  # nothing after what must be refused is read
        if self._exchange is not None:
            self._hold(data)
            return
        self._feed(data)
        if self._exchange is None and not self._closing:
            self._start_next()

    def eof_received(self) -> bool:
        return False  # a client that closes its side has left: connection_lost follows and cancels

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._router.release(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        self._unread = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._unread = False
        if self._exchange is not None:
            self._exchange.resume()
        else:
            self._router.soon(self._resume)

    # --- httptools callbacks: they only note, since nothing may be raised through the parser ---

    def on_message_begin(self) -> None:
        self._request = Request()
        self._head_complete = False
        self._body = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        if self._request is not None:
            self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._request is None:
            return
        headers, key = self._request.headers, name.lower()
        if key in headers and key in ONCE:
            self._error = ApiError(400, f"The header {key.decode('latin-1')} came twice.", code="duplicate_header")
        headers[key] = value

    def on_headers_complete(self) -> None:
        request = self._request
        if request is None or self._error is not None:
            return
        limits = self._router.snapshot.limits
        if self._head_bytes > limits.head_bytes_max:  # what has come may be body too: now it can be told apart
            head_bytes = sum(len(name) + len(value) + 4 for name, value in request.headers.items())
            if len(request.target) + head_bytes > limits.head_bytes_max:
                self._error = _head_too_large(limits.head_bytes_max)
        self._head_complete = True
        self._head_bytes = 0
        request.method = self._parser.get_method()
        request.http11 = self._parser.get_http_version() == "1.1"
        self.deadline = self._router.now() + limits.body_timeout_s
        if request.http11 and b"host" not in request.headers:
            self._error = ApiError(400, "An HTTP/1.1 request must carry a host header.", code="missing_host")
        if self._error is not None:
            return
        length = request.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limits.body_bytes_max:
            self._error = _too_large(limits.body_bytes_max)
        elif request.headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        if self._error is not None:
            return
        limits = self._router.snapshot.limits
        self._body_bytes += len(data)
        if self._body_bytes > limits.body_bytes_max:
            self._error = _too_large(limits.body_bytes_max)
            return
        self._body.append(data)
        self.deadline = self._router.now() + limits.body_timeout_s

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        if request is None or self._error is not None:
            return
        if not request.target.startswith(b"/"):
            request.target = ABSOLUTE.sub(b"", request.target, count=1)
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        request.keep_alive = self._parser.should_keep_alive() and request.http11
        given = request.headers.get(b"x-request-id", b"")
        request.request_id = given.decode("ascii") if REQUEST_ID.fullmatch(given) else self._router.next_id()
        self._queue.append(request)

    # --- used by an exchange ---

    def write(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def abort(self) -> None:
        """Break the connection: what was sent must not pass for a whole answer."""
        self._closing = True
        self._transport.abort()

    def keeps_alive(self, request: Request) -> bool:
        """Whether the connection goes on after this request's answer."""
        return request.keep_alive and not self._router.draining

    def send(self, status: int, body: bytes, request: Request, *, content_type: bytes, headers: bytes = b"") -> None:
        """A whole answer of our own."""
        headers += b"x-request-id: %b\r\n" % request.request_id.encode("ascii")
        if not self.keeps_alive(request):
            request.keep_alive = False
            headers += b"connection: close\r\n"
        self.write(_plain_answer(status, body, headers, content_type, head_only=request.method == b"HEAD"))

    def send_error(self, error: ApiError, request: Request, headers: bytes = b"") -> None:
        """An error of our own, in the OpenAI envelope."""
        if error.retry_after_s:
            headers += b"retry-after: %d\r\n" % error.retry_after_s
        self.send(error.status, error.body(), request, content_type=b"application/json", headers=headers)

    def exchange_ended(self, exchange: Exchange) -> None:
        """The answer has been written (or its client has gone): the next request may start."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        self._after_answer(exchange.request)

    # --- the router's sweep ---

    def check_deadline(self, now: float) -> None:
        """Close a connection that has been silent for too long."""
        if self._exchange is not None or not self.deadline or now < self.deadline:
            return
        if self._closing:
            self._transport.abort()  # it was refused and still has not gone
        elif self._request is None and not self._head_bytes:
            self._close()  # idle between requests
        else:
            self._refuse(ApiError(408, "The request did not arrive in time.", code="request_timeout"))

    def close_if_idle(self) -> None:
        """For draining: close now where nothing is being answered or read."""
        if self._exchange is None and self._request is None:
            self._close()

    # --- inner ---

    def _feed(self, data: bytes) -> None:
        head_max = self._router.snapshot.limits.head_bytes_max
        if not self._head_complete and self._request is None and not self._head_bytes:
            self.deadline = self._router.now() + self._router.snapshot.limits.head_timeout_s
        if not self._head_complete:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._decline_upgrade()
            return
        except httptools.HttpParserError:
            self._refuse(ApiError(400, "The request is not valid HTTP/1.1.", code="malformed_http"))
            return
        if self._error is not None:
            self._refuse(self._error)  # after what came before it has been answered
        elif self._head_bytes > head_max and not self._head_complete:
            self._refuse(_head_too_large(head_max))

    def _decline_upgrade(self) -> None:
        """Answer the request as if it had not offered another protocol; the parser reads no further, so then close."""
        request = self._queue[-1] if self._queue else None
        if request is None or request.method == b"CONNECT" or _has_body(request):
            if request is not None:
                self._queue.pop()  # llhttp takes a body for the other protocol: it has not been read
            self._refuse(ApiError(400, "Only HTTP/1.1 is spoken here: send no upgrade.", code="upgrade_refused"))
        else:
            request.keep_alive = False

    def _hold(self, data: bytes) -> None:
        """Bytes that came ahead of the answer: kept, up to a bound."""
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes > PENDING_BYTES_MAX and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _start_next(self) -> None:
        """Answer what has arrived in full, one request after another; then refuse what came after it, if it must be."""
        while self._queue and self._exchange is None and not self._closing and not self._unread:
            request = self._queue.popleft()
            self.deadline = 0.0
            self._head_complete = False
            exchange = self._router.route(self, request)
            if exchange is None:
                self._after_answer(request, resume=False)
            else:
                self._exchange = exchange
                exchange.start()
        if self._refusal is not None and not self._queue and self._exchange is None and not self._closing:
            self._refuse(self._refusal)

    def _after_answer(self, request: Request, *, resume: bool = True) -> None:
        if self._closing:
            return
        if not self.keeps_alive(request):
            self._close()
            return
        self.deadline = self._router.now() + self._router.snapshot.limits.keepalive_s
        if resume and (self._queue or self._pending or self._refusal is not None):
            self._router.soon(self._resume)

    def _resume(self) -> None:
        """Go on with what came ahead, from the loop: answering must not recurse."""
        if self._closing or self._exchange is not None:
            return
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        pending, self._pending = self._pending, []
        self._pending_bytes = 0
        if pending and not self._queue and self._refusal is None:
            self._feed(b"".join(pending))
        else:
            self._pending = pending
            self._pending_bytes = sum(map(len, pending))
        if not self._closing:
            self._start_next()

    def _refuse(self, error: ApiError) -> None:
        """Answer a request that cannot be read to its end, account for it, and close."""
        if self._queue or self._exchange is not None:
            self._refusal = error
            return
        request = self._request or Request()
        request.keep_alive = False
        request.request_id = request.request_id or self._router.next_id()
        self._router.account_refusal(error, request, self._body_bytes)
        self.send_error(error, request)
        self._linger()

    def _linger(self) -> None:
        """Close our side and discard what still comes for a while: closing at once would reset the connection, and the
        client would lose the answer that tells it why."""
        self._closing = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self.deadline = self._router.now() + LINGER_S
        else:
            self._transport.close()

    def _close(self) -> None:
        self._closing = True
        self._transport.close()


def _has_body(request: Request) -> bool:
    return request.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in request.headers


def _head_too_large(limit: int) -> ApiError:
    return ApiError(431, f"The request's head is larger than {limit} bytes.", code="request_head_too_large")


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request's body is larger than {limit} bytes.", code="request_too_large")


def _plain_answer(
    status: int,
    body: bytes,
    headers: bytes,
    content_type: bytes = b"application/json",
    *,
    head_only: bool = False,
) -> bytes:
    head = b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n" % (
        status,
        _REASONS.get(status, b"Status"),
        content_type,
        len(body),
        headers,
    )
    return head if head_only else head + body


def status_line(status: int) -> bytes:
    """`HTTP/1.1 200 OK` and its line end."""
    return b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b"Status"))
