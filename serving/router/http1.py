"""HTTP/1.1 as clients speak it to the router: llhttp parses, limits apply as the bytes arrive.

Owns: one client connection, its requests in order, its answers' framing, its share of backpressure. Never: what a
request means beyond its path.
"""

from __future__ import annotations

import asyncio
import fcntl
import re
import termios
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import httptools

from serving.errors import ApiError

if TYPE_CHECKING:
    from serving.router.exchange import Exchange
    from serving.router.router import Router
    from serving.router.table import Key

PENDING_BYTES_MAX: Final = 64 * 1024
"""What a client may send ahead of an answer before we stop reading."""
WRITE_BUFFER_BYTES: Final = 256 * 1024
"""What a slow client may leave unread before we stop reading from the engine."""
LINGER_S: Final = 2.0
PARTING_S: Final = 5.0
"""How long a worker that is being replaced keeps an idle connection: its next answer tells the client to leave."""
BODY_BYTES_PER_S: Final = 1024
"""A body that comes more slowly than this on average, after `body_timeout_s`, is not waited for."""
ONCE: Final = frozenset(
    {b"host", b"authorization", b"content-type", b"transfer-encoding", b"x-api-key", b"x-session-id"}
)
"""Headers that decide something: where they come twice, it is not ours to guess which one was meant."""
PLAIN_CONNECTION: Final = frozenset({b"keep-alive", b"close"})
NEVER_NAMED: Final = frozenset({b"host", b"content-length", b"transfer-encoding"})
"""What `connection:` cannot take out of a request by naming it."""
ABSOLUTE: Final = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REASONS: Final = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


class Request:
    """One request as it arrives; whole once `body` is set."""

    __slots__ = (
        "body",
        "endpoint",
        "expects",
        "headers",
        "http11",
        "keep_alive",
        "key",
        "method",
        "request_id",
        "target",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.http11 = True
        self.keep_alive = True
        self.expects = False
        """It waits for 100 Continue before it sends its body."""
        self.body = b""
        self.endpoint = "other"
        self.request_id = ""
        self.key: Key | None = None
        """Whose it is; None where no key is needed."""


SPENT: Final = httptools.HttpRequestParser(object())
"""In the place of a parser that is not needed any more."""


class Client(asyncio.Protocol):
    """One client connection. Requests on it are answered one after another, in order."""

    __slots__ = (
        "_body",
        "_body_began",
        "_body_bytes",
        "_closing",
        "_error",
        "_exchange",
        "_head_bytes",
        "_head_complete",
        "_left",
        "_left_until",
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
        self._body_began = 0.0
        self._left = 0
        self._left_until = 0.0
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
            self._transport.close()  # nobody counts it, so nobody would end it: it must not linger
            return
        self.deadline = self._router.now() + self._router.snapshot.limits.head_timeout_s

    def data_received(self, data: bytes) -> None:
        if self._closing or self._refusal is not None:
            return  # nothing after what must be refused is read
        if self._exchange is not None or self._queue or self._pending or self._unread:
            self._hold(data)
            return
        self._feed(data)
        if self._exchange is None and not self._closing:
            self._start_next()

    def eof_received(self) -> bool:
        # A client that closes only its sending side cannot be told from one that is gone, and a generation that nobody
        # waits for is paid for: connection_lost follows and cancels.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._parser = SPENT  # ours knows us: no cycle may be left to the garbage collector
        self._router.release(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        self._unread = True
        self._expect_reading()
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._unread = False
        if not self._closing:
            self._left_until = 0.0
        if self._exchange is not None:
            self._exchange.resume()
        else:
            self._router.soon(self._resume)

    # --- httptools callbacks: they only note, since nothing may be raised through the parser ---

    def on_message_begin(self) -> None:
        if self._error is not None:
            return  # the request that is refused stays the last one
        self._request = Request()
        self._head_complete = False
        self._body = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        if self._request is not None and self._error is None:
            self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._request is None or self._head_complete:
            return  # a trailer is no header: what decides something has been decided
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
            self._check_head(request, limits.head_bytes_max)
        self._head_complete = True
        self._head_bytes = 0
        request.method = self._parser.get_method()
        headers = request.headers
        self._body_began = self._router.now() + limits.body_timeout_s
        self.deadline = self._body_began
        version = self._parser.get_http_version()
        if version != "1.1":
            request.http11 = False
            if version != "1.0":
                self._error = ApiError(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.", code="unknown_http_version")
        elif b"host" not in headers:
            self._error = ApiError(400, "An HTTP/1.1 request must carry a host header.", code="missing_host")
        length = headers.get(b"content-length")
        if length is None:
            if b"transfer-encoding" in headers:
                self._check_coding(request)
        elif int(length) > limits.body_bytes_max:
            self._error = _too_large(limits.body_bytes_max)
        connection = headers.get(b"connection")
        if connection is not None and connection not in PLAIN_CONNECTION:
            _drop_named(headers, connection)
        keyring = self._router.snapshot.keyring
        if keyring is not None and self._error is None:
            self._error = keyring.admit(request, self._router.wall())
        if b"expect" in headers:
            request.expects = request.http11 and headers[b"expect"].lower() == b"100-continue"

    def _check_head(self, request: Request, limit: int) -> None:
        head_bytes = sum(len(name) + len(value) + 4 for name, value in request.headers.items())
        if len(request.target) + head_bytes > limit:
            self._error = _head_too_large(limit)

    def _check_coding(self, request: Request) -> None:
        coding = request.headers[b"transfer-encoding"].lower()
        if not request.http11:
            self._error = ApiError(400, "HTTP/1.0 has no transfer-encoding.", code="malformed_http")
        elif coding != b"chunked":
            message = "The transfer-encoding must be `chunked` and nothing else."
            self._error = ApiError(501, message, code="unknown_transfer_coding")

    def on_body(self, data: bytes) -> None:
        if self._error is not None:
            return
        limits = self._router.snapshot.limits
        self._body_bytes += len(data)
        if self._body_bytes > limits.body_bytes_max:
            self._error = _too_large(limits.body_bytes_max)
            return
        self._body.append(data)
        self.deadline = self._body_began + self._body_bytes / BODY_BYTES_PER_S

    def on_message_complete(self) -> None:
        request = self._request
        if request is None or self._error is not None:
            return
        self._request = None
        self._head_complete = False
        if not request.target.startswith(b"/"):
            _make_relative(request)
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        request.keep_alive = self._parser.should_keep_alive() and request.http11
        request.request_id = self._id_of(request)
        self._queue.append(request)

    def _id_of(self, request: Request) -> str:
        given = request.headers.get(b"x-request-id", b"")
        return given.decode("ascii") if REQUEST_ID.fullmatch(given) else self._router.next_id()

    # --- used by an exchange ---

    def write(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def abort(self) -> None:
        """Break the connection: what was sent must not pass for a whole answer."""
        self._closing = True
        self._transport.abort()

    def keeps_alive(self, request: Request) -> bool:
        """Whether the connection goes on after this request's answer: asked once, when its head is made."""
        if self._router.draining:
            request.keep_alive = False
        return request.keep_alive

    def send(self, status: int, body: bytes, request: Request, *, content_type: bytes, headers: bytes = b"") -> None:
        """A whole answer of our own."""
        headers += b"x-request-id: %b\r\n" % request.request_id.encode("ascii")
        if not self.keeps_alive(request):
            headers += b"connection: close\r\n"
        self.write(_plain_answer(status, body, headers, content_type, head_only=request.method == b"HEAD"))

    def send_error(self, error: ApiError, request: Request, headers: bytes = b"") -> None:
        """An error of our own, in the OpenAI envelope."""
        if error.retry_after_s:
            headers += b"retry-after: %d\r\n" % error.retry_after_s
        if error.status == 401:
            headers += b"www-authenticate: Bearer\r\n"
        self.send(error.status, error.body(request.target), request, content_type=b"application/json", headers=headers)

    def exchange_ended(self, exchange: Exchange) -> None:
        """The answer has been written (or its client has gone): the next request may start."""
        if self._exchange is not exchange:
            return
        self._exchange = None
        self._after_answer(exchange.request)

    # --- the router's sweep ---

    def check_deadline(self, now: float) -> None:
        """Close a connection that has been silent for too long, or whose client takes nothing of what it is owed."""
        if self._left_until and now >= self._left_until:
            left = self._transport.get_write_buffer_size()
            if left and left < self._left:
                self._expect_reading()
            else:
                self._transport.abort()
                return
        if self._exchange is not None or not self.deadline or now < self.deadline or self._closing:
            return
        if self._request is None and not self._head_bytes:
            if not self._has_arrived():
                self._close()  # idle between requests
        else:
            self._refuse(ApiError(408, "The request did not arrive in time.", code="request_timeout"))

    def close_if_idle(self) -> None:
        """For draining: close where nothing is being answered or read, in a moment where another worker serves on."""
        if self._exchange is not None or self._request is not None or self._head_bytes:
            return
        if not self._router.replaced:
            self._close()
        elif not self._closing:
            self.deadline = self._router.now() + PARTING_S

    def _has_arrived(self) -> bool:
        """Whether bytes of a request wait to be read: closing now would take it away from its client."""
        number = self._transport.get_extra_info("socket").fileno()
        return number >= 0 and any(fcntl.ioctl(number, termios.FIONREAD, b"\0\0\0\0"))

    # --- inner ---

    def _feed(self, data: bytes) -> None:
        head_max = self._router.snapshot.limits.head_bytes_max
        if not self._head_complete and self._request is None and not self._head_bytes:
            self.deadline = self._router.now() + self._router.snapshot.limits.head_timeout_s
        reading, body_bytes = self._request if self._head_complete else None, self._body_bytes
        if reading is None:
            self._head_bytes += len(data)
        rest: bytes | memoryview = data
        while True:
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                if self._ignore_upgrade():
                    rest = memoryview(rest)[upgrade.args[0] :]
                    continue
            except httptools.HttpParserError:
                self._error = self._error or ApiError(400, "The request is not valid HTTP/1.1.", code="malformed_http")
            break
        if self._error is not None:
            self._refuse(self._error)  # after what came before it has been answered
        elif not self._head_complete:
            if self._head_bytes > head_max:
                self._refuse(_head_too_large(head_max))
        elif reading is not None and self._request is reading and self._body_bytes == body_bytes:
            self._head_bytes += len(data)  # neither head nor body: extensions of chunks, trailers
            if self._head_bytes > head_max:
                self._refuse(_head_too_large(head_max))

    def _ignore_upgrade(self) -> bool:
        """Read a request that offers another protocol as if it had not (RFC 9110, 7.8): the parser, which takes what
        follows the head for that protocol, starts again with the same head less the offer. False where it cannot be."""
        request = self._queue.pop() if self._queue and self._error is None else None
        if request is None or request.method == b"CONNECT":
            message = "Only HTTP/1.1 is spoken here, and no tunnels."
            self._error = self._error or ApiError(400, message, code="upgrade_refused")
            return False
        self._parser = httptools.HttpRequestParser(self)
        lines = [b"%b %b HTTP/1.1" % (request.method, request.target)]
        lines += [b"%b: %b" % (name, value) for name, value in request.headers.items() if name != b"upgrade"]
        self._parser.feed_data(b"\r\n".join([*lines, b"", b""]))
        return True

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
            exchange = self._router.route(self, request)
            if exchange is None:
                self._after_answer(request, resume=False)
            else:
                self._exchange = exchange
                exchange.start()
        if self._queue or self._exchange is not None or self._closing:
            return
        if self._refusal is not None:
            self._refuse(self._refusal)
        elif self._pending:
            self._router.soon(self._resume)
        elif self._request is not None and self._request.expects:
            self._request.expects = False
            if not self._body_bytes:  # only now is it this request's turn to be answered
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _after_answer(self, request: Request, *, resume: bool = True) -> None:
        if self._closing:
            return
        router = self._router
        if not request.keep_alive or (router.draining and not router.replaced):
            self._close()
            return
        self.deadline = router.now() + (PARTING_S if router.draining else router.snapshot.limits.keepalive_s)
        if resume and (self._queue or self._pending or self._request is not None or self._refusal is not None):
            self._router.soon(self._resume)

    def _resume(self) -> None:
        """Go on with what came ahead, from the loop: answering must not recurse."""
        if self._closing or self._exchange is not None or self._unread:
            return
        if self._pending and not self._queue and self._refusal is None:
            pending, self._pending = self._pending, []
            self._pending_bytes = 0
            if self._reading_paused:
                self._reading_paused = False
                self._transport.resume_reading()
            self._feed(b"".join(pending))
        if not self._closing:
            self._start_next()

    def _refuse(self, error: ApiError) -> None:
        """Answer a request that cannot be read to its end, account for it, and close."""
        if self._queue or self._exchange is not None:
            self._refusal = error
            return
        request = self._request or Request()
        request.keep_alive = False
        request.request_id = request.request_id or self._id_of(request)
        self._router.account_refusal(error, request, self._body_bytes)
        self.send_error(error, request)
        self._linger()

    def _linger(self) -> None:
        """Close our side and discard what still comes for a while: closing at once would reset the connection, and the
        client would lose the answer that tells it why."""
        self._closing = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._expect_reading()
            self._left_until = self._router.now() + LINGER_S
        else:
            self._close()

    def _close(self) -> None:
        self._closing = True
        self._expect_reading()
        self._transport.close()

    def _expect_reading(self) -> None:
        """From now on, the client must take some of what has been written for it within `unread_timeout_s`."""
        self._left = self._transport.get_write_buffer_size()
        self._left_until = self._router.now() + self._router.snapshot.limits.unread_timeout_s


def _make_relative(request: Request) -> None:
    """`http://host/path` is `/path`: whom the client believes to talk to does not matter here."""
    target = ABSOLUTE.sub(b"", request.target, count=1)
    request.target = target if target.startswith(b"/") or target == request.target else b"/" + target


def _drop_named(headers: dict[bytes, bytes], connection: bytes) -> None:
    """Take out the headers that `connection:` declares to be for this hop only."""
    for name in connection.lower().split(b","):
        if (named := name.strip()) not in NEVER_NAMED:
            headers.pop(named, None)


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
