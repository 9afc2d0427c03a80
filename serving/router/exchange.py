"""One request from the moment it has arrived in full until it is accounted for.

Owns: the order of things (peek, route, attempt, commit, account) and the three rules: until the first content has been
forwarded another replica may be tried; a client that goes away cancels its generation at once; exactly one record,
however it ends. Never: parsing HTTP, opening sockets itself, waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from registry.usage import Outcome, RequestRecord
from serving.errors import ApiError
from serving.router import openai_wire, split
from serving.router.answer import Answer
from serving.router.snapshot import HEADER, Target, VersionState
from serving.router.table import ANY_NAME
from serving.router.upstream import Backend, Connection

if TYPE_CHECKING:
    from serving.router.http1 import Client, Request
    from serving.router.router import Router

FAILOVER_STATUSES: Final = frozenset({500, 502, 503, 504})
NOT_IMPLEMENTED: Final = 501
"""An engine that lacks an endpoint is well: the request was not for it."""
FORWARDED: Final = (b"content-type", b"accept", b"traceparent", b"tracestate", b"openai-beta", b"anthropic-version")
"""Request headers that an engine gets to see. Credentials are not among them."""


class Exchange:
    """One request, its attempts, and its answer. Implements `upstream.Receiver`."""

    __slots__ = (
        "_answer",
        "_backend",
        "_candidates",
        "_connecting",
        "_connection",
        "_last_data",
        "_last_error",
        "_next",
        "_paused",
        "_peek",
        "_router",
        "_started",
        "_target",
        "_version",
        "client",
        "finished",
        "record",
        "request",
    )

    def __init__(self, router: Router, client: Client, request: Request) -> None:
        self._router = router
        self.client = client
        self.request = request
        self.finished = False
        self._started = router.now()
        self._last_data = self._started
        self._backend: Backend | None = None
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._answer: Answer | None = None
        self._paused = False
        self._last_error: ApiError | None = None
        self.record = RequestRecord(
            request_id=request.request_id,
            started_at=router.wall(),
            duration_s=0.0,
            endpoint=request.endpoint,
            model="",
            version="",
            replica="",
            outcome="failed",
            status=0,
            generation=router.snapshot.generation,
            request_bytes=len(request.body),
            worker=router.worker,
        )

    # --- forward: peek, route, attempt ---

    def start(self) -> None:
        """Send the request on its way, or refuse it."""
        try:
            self._peek = openai_wire.peek(self.request.body)
            self._target = self._router.resolve(str(self._peek.model))
        except ApiError as error:
            self.reject(error)
            return
        record = self.record
        record.streamed = self._peek.stream is True
        record.model = self._target.model.config.name
        record.assigned = self._assign(self._target)
        self._candidates = self._backends()
        self._next = next(self._candidates, None)
        self._attempt()

    def _assign(self, target: Target) -> str:
        """The version that this request belongs to: the pinned one, or its bucket's."""
        record = self.record
        if target.pinned is not None:
            record.pinned = True
            return target.pinned.label
        model = target.model
        for kind, name in model.sticky:
            key = self.request.headers.get(name) if kind == HEADER else (self._peek.user or "").encode()
            if key:
                record.sticky = split.sticky_hash(key, model.salt)
                record.bucket = split.bucket_of(record.sticky)
                break
        else:
            record.bucket = self._router.random_bucket()
        return split.arm_of(model.config.arms, record.bucket)

    def _backends(self) -> Iterator[tuple[VersionState, Backend]]:
        """Replicas to try, in order: those of the assigned version, then along the fallback chain.

        1. Within a version the least busy one first.
        2. A pinned version has no fallback: the client asked for that one.
        3. Replicas whose breaker is open come last, after every fallback: better a doubtful one than none.
        """
        target = self._target
        tried: set[str] = set()
        model = target.model
        versions = [model.versions[self.record.assigned]] if self.record.assigned in model.versions else []
        if target.pinned is None:
            versions += [version for version in model.fallback if version not in versions]
        now = self._router.now()
        for last_resort in (False, True):
            for version in versions:
                while len(tried) < self._target.model.config.retry.attempts_max:
                    left = [
                        backend
                        for backend in version.backends
                        if backend.config.id not in tried and (last_resort or backend.breaker.allows(now))
                    ]
                    if not left:
                        break
                    backend = left[0] if len(left) == 1 else min(left, key=self._router.load)
                    tried.add(backend.config.id)
                    yield version, backend

    def _attempt(self) -> None:
        if self._next is None:
            self._give_up()
            return
        self._version, backend = self._next
        self._next = next(self._candidates, None)
        record = self.record
        record.attempts += 1
        record.version = self._version.label
        record.replica = backend.config.id
        self._answer = None
        self._take(backend)
        now = self._router.now()
        if record.attempts == 1:
            record.overhead_s = now - self._started
        self._dispatch(backend, now)

    def _dispatch(self, backend: Backend, now: float, *, fresh: bool = False) -> None:
        """Hand the request to a replica, over an idle connection where there is one."""
        data = self._request_bytes(backend)
        self.record.dispatched_s = now - self._started
        self._last_data = now
        self._connection = None if fresh else backend.send(self, data)
        if self._connection is None:
            self._connecting = self._router.spawn(self._connect(backend, data))

    async def _connect(self, backend: Backend, data: list[bytes]) -> None:
        try:
            connection = await backend.connect(self._target.model.config.timeouts.connect_s)
        except TimeoutError:
            self._connecting = None
            self._fail_attempt("connect_timeout")
        except OSError as error:
            self._connecting = None
            self._fail_attempt("connect_refused" if isinstance(error, ConnectionRefusedError) else "connect_failed")
        else:
            self._connecting = None
            self._last_data = self._router.now()
            self._connection = connection
            connection.send(self, data, fresh=True)

    def _request_bytes(self, backend: Backend) -> list[bytes]:
        """Head and body for one replica: the client's own body, unless its model name or usage must be set."""
        request, seen, version = self.request, self._peek, self._version.config
        body = request.body
        name = str(seen.model)
        if version.served_names[0] != ANY_NAME and name not in version.served_names:
            body = openai_wire.rename(body, name, version.served_names[0])
        if self._asks_for_usage:
            body = openai_wire.ask_for_usage(body, seen)
        head = b"POST %b%b HTTP/1.1\r\n%bx-request-id: %b\r\ncontent-length: %d\r\n" % (
            backend.path_prefix,
            request.target,
            backend.head,
            request.request_id.encode("latin-1"),
            len(body),
        )
        headers = request.headers
        for header in FORWARDED:
            value = headers.get(header)
            if value is not None:
                head += b"%b: %b\r\n" % (header, value)
        return [head + b"\r\n", body] if len(body) > 65_536 else [head + b"\r\n" + body]

    @property
    def _asks_for_usage(self) -> bool:
        """Whether we ask for usage on the client's behalf (and keep the answer to ourselves)."""
        return (
            self.record.streamed
            and self.request.endpoint in openai_wire.GENERATING
            and self._version.config.stream_usage
            and not self._peek.wants_usage
        )

    # --- back: head, body, end ---

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if status in FAILOVER_STATUSES:
            self._blame(f"status_{status}")
            if self._next is not None:
                self._leave_connection()
                self._attempt()
                return
        self.record.status = status
        self._answer = Answer(
            self.client,
            self.request,
            self.record,
            self._version,
            started=self._started,
            hide_usage=self._asks_for_usage,
            headers=headers,
        )

    def on_body(self, data: bytes) -> None:
        now = self._last_data = self._router.now()
        if self._answer is not None:
            self._answer.feed(data, now)

    def on_end(self) -> None:
        self._connection = None
        answer = self._answer
        if answer is None:
            return
        scanner = answer.scanner
        if not answer.end():
            self._blame("stream_truncated")
            self._truncate(answer, "stream_truncated", "The engine ended its answer before it was complete.")
        elif scanner is not None and scanner.error:
            self._finish("truncated" if scanner.started else "failed", error="engine_error")
        elif self.record.status < 500 or self.record.status == NOT_IMPLEMENTED:
            self._complete()
        else:
            self._finish("failed", error="engine_error")

    def on_broken(self, error: str, *, stale: bool) -> None:
        self._connection = None
        if stale and self._backend is not None:
            self._dispatch(self._backend, self._router.now(), fresh=True)
        elif (answer := self._committed_answer) is not None:
            self._blame(error)
            self._truncate(answer, error, "The engine stopped in the middle of its answer.")
        else:
            self._fail_attempt(error)

    # --- the client's side ---

    def client_gone(self) -> None:
        """The client has left: cancel the generation and account for what it got.

        One that leaves after the stream's last event has had its whole answer (SDKs hang up at `[DONE]`).
        """
        if self.finished:
            return
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._leave_connection()
        answer = self._answer
        if answer is not None:
            answer.note_stream()
        if answer is not None and answer.scanner is not None and answer.scanner.done and not answer.scanner.error:
            self._complete()
        else:
            self._finish("cancelled", error="client_closed")

    def pause(self) -> None:
        """The client reads more slowly than the engine writes: stop reading from the engine."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        self._paused = False
        self._last_data = self._router.now()
        if self._connection is not None:
            self._connection.resume()

    def check_deadlines(self, now: float) -> None:
        """End a wait that has lasted too long. Called several times a second."""
        if self._connecting is not None or self.finished:
            return
        timeouts = self._target.model.config.timeouts
        waited = now - self._last_data
        limit = timeouts.first_byte_s if self._answer is None else timeouts.between_tokens_s
        if timeouts.total_s and now - self._started > timeouts.total_s:
            self._time_out("total_timeout")
        elif limit and waited > limit and not self._paused:
            self._time_out("first_byte_timeout" if self._answer is None else "between_tokens_timeout")

    def cut_off(self) -> None:
        """The router stops before the answer is complete."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._leave_connection()
        if (answer := self._committed_answer) is not None:
            self._truncate(answer, "router_stopping", "The router stopped before the answer was complete.")
        else:
            self._last_error = ApiError(503, "The router is stopping.", code="router_stopping", retry_after_s=1)
            self._give_up()

    def _time_out(self, error: str) -> None:
        self._leave_connection()
        if (answer := self._committed_answer) is not None:
            self._blame(error)
            self._truncate(answer, error, "The engine took too long over its answer.")
        elif error == "total_timeout":
            self._blame(error)
            self._last_error = ApiError(504, "The request took longer than its total timeout.", code=error)
            self._give_up()
        else:
            self._fail_attempt(error)

    # --- endings ---

    def reject(self, error: ApiError) -> None:
        """Refuse the request ourselves; no engine saw it."""
        self.record.status = error.status
        self.client.send_error(error, self.request, self._own_headers())
        self._finish("rejected", error=error.code)

    def _fail_attempt(self, error: str) -> None:
        """This replica did not answer: try the next one, or say so."""
        self._blame(error)
        status = 504 if error.endswith("timeout") else 502
        message = f"The engine of {self.record.model}@{self.record.version} gave no answer ({error.replace('_', ' ')})."
        self._last_error = ApiError(status, message, code=error)
        self._release()
        self._attempt()

    def _give_up(self) -> None:
        error = self._last_error or ApiError(
            503,
            f"No engine of {self.request_name} is ready; `modelyard status` shows why.",
            code="no_ready_engine",
            retry_after_s=1,
        )
        self.record.status = error.status
        self.client.send_error(error, self.request, self._own_headers())
        self._finish("failed", error=error.code)

    @property
    def request_name(self) -> str:
        return str(self._peek.model)

    def _truncate(self, answer: Answer, code: str, message: str) -> None:
        """End a committed answer that cannot be completed."""
        answer.truncate(code, message)
        self._finish("truncated", error=code)

    def _complete(self) -> None:
        """The client has had the engine's whole answer: the replica is well."""
        if self._backend is not None:
            self._backend.breaker.succeeded()
        self._finish("completed")

    def _own_headers(self) -> bytes:
        return b"x-modelyard-attempts: %d\r\nx-modelyard-generation: %d\r\n" % (
            self.record.attempts,
            self.record.generation,
        )

    def _finish(self, outcome: Outcome, *, error: str = "") -> None:
        """Account for the request, once, and let the client's connection go on."""
        if self.finished:
            return
        self.finished = True
        self._release()
        record = self.record
        record.outcome = outcome
        record.error = error
        record.duration_s = self._router.now() - self._started
        self._router.account(self)
        self.client.exchange_ended(self)

    # --- small steps ---

    @property
    def _committed_answer(self) -> Answer | None:
        """The answer, if the client has seen some of it: then no other replica may begin anew."""
        return self._answer if self._answer is not None and self._answer.committed else None

    def _blame(self, error: str) -> None:
        """The replica failed for its own reasons."""
        if self._backend is not None:
            self._backend.breaker.failed(self._router.now(), self._router.jitter())
        self._router.observe_failure(self.record.replica, error)

    def _take(self, backend: Backend) -> None:
        self._release()
        self._backend = backend
        backend.inflight += 1
        backend.breaker.begin()

    def _release(self) -> None:
        if self._backend is not None:
            self._backend.inflight -= 1
            self._backend.breaker.abandoned()
            self._backend = None

    def _leave_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()
