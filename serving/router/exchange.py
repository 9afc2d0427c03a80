"""One request from the moment it has arrived in full until it is accounted for.

Owns: the order of things (peek, route, attempt, commit, account) and the three rules: until the first content has been
forwarded another attempt may be made, after it the stream may only go on or end with an error in band; a client that
goes away cancels its generation at once; exactly one record, however it ends. Never: parsing HTTP, opening sockets
itself, waiting.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from registry.usage import Outcome, RequestRecord
from serving.errors import ApiError
from serving.router import cache, degraded, forward, openai_wire
from serving.router.answer import Answer
from serving.router.assign import assign, chain
from serving.router.bodies import Piece
from serving.router.continuation import resume
from serving.router.deadlines import SILENT_END, overdue
from serving.router.entrance import Permit
from serving.router.hold import Hold
from serving.router.plan import Plan
from serving.router.resuming import Resuming, able_to_continue
from serving.router.retry import OVERLOADED, REFUSING, RETRIED_STATUSES, Failure, Kind, decide, retry_after_s
from serving.router.snapshot import VersionState
from serving.router.upstream import Backend

if TYPE_CHECKING:
    from serving.router.http1 import Client, Request
    from serving.router.router import Router
    from serving.router.sampling import Sampling
    from serving.router.upstream import Receiver

NOT_IMPLEMENTED: Final = 501
"""An engine that lacks an endpoint is well: the request was not for it."""
BAD_REQUEST: Final = 400
_KINDS: Final[dict[str, Kind]] = {
    "connect_timeout": "silent",
    "connect_refused": "unreached",
    "connect_failed": "unreached",
}
"""What a broken connection was, where it is no reset."""


class Exchange:
    """One request, its attempts, and its answer. Implements `upstream.Receiver`."""

    __slots__ = (
        "_answer",
        "_cache_key",
        "_copies",
        "_failed",
        "_hold",
        "_last_error",
        "_peek",
        "_plan",
        "_refused",
        "_router",
        "_sampling",
        "_started",
        "_target",
        "_uncopied",
        "_version",
        "_waiting",
        "client",
        "finished",
        "permit",
        "record",
        "request",
    )

    def __init__(self, router: Router, client: Client, request: Request) -> None:
        self._router = router
        self.client = client
        self.request = request
        self.finished = False
        self._started = router.now()
        self._hold = Hold(router)
        self._waiting: asyncio.TimerHandle | None = None
        self._answer: Answer | None = None
        self._failed: dict[str, int] = {}
        """Replicas that cut the stream or did not go on with it -> how many events the client had then."""
        self._refused: tuple[Answer, str, str] | None = None
        self._uncopied = False
        self._cache_key: bytes | None = None
        """Names the request among kept answers; None where its answer is not one to keep."""
        self._sampling: Sampling | None = None
        """Who keeps this request as a sample; None for most."""
        self._copies = False
        """Whether the answer is copied while it passes: to be kept, or as part of a sample."""
        self._last_error: ApiError | None = None
        self.permit: Permit | None = None
        """What it holds of its key's limits and its model's queue; None where nothing limits it."""
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
            key_id=request.key.id if request.key is not None else "",
            worker=router.worker,
        )

    # --- forward: peek, route, attempt ---

    def start(self) -> None:
        """Send the request on its way, or refuse it."""
        if self._router.tracer is not None:
            self._router.tracer.begin(self.record, self.request.headers)
        try:
            self._peek = forward.peek(self.request)
            self._target = self._router.resolve(str(self._peek.model), self.request.key)
        except ApiError as error:
            self.reject(error)
            return
        record = self.record
        record.streamed = self._peek.stream is True
        record.model = self._target.model.config.name
        entrance = self._router.entrance
        if entrance is None or entrance.enter(self, self.request, self._peek):
            self.proceed()

    def proceed(self) -> None:
        """The request is admitted: find its version and try it."""
        target, router = self._target, self._router
        label = assign(target, self.request, self._peek, self.record, router.random_bucket)
        self.record.assigned = label
        target.model.budget.deposit()
        if target.model.cache is not None:
            self._cache_key = cache.key_of(self.request.endpoint, self.request.body, self.record.key_id)
            self._copies = self._cache_key is not None
        samples = target.model.samples
        if samples is not None and target.pinned is None and samples.wants(self.record.request_id):
            self._sampling = samples
            self._copies = True
        self._uncopied = bool(target.model.shadows) and target.pinned is None
        attempts_max = target.model.config.retry.attempts_max
        self._plan = Plan(chain(target, label), attempts_max, router.choose, self.request)
        if self._plan.next(router.now()):
            self._attempt()
        else:
            self._give_up()

    def _attempt(self) -> None:
        """Try the replica that the plan has come to."""
        plan, record = self._plan, self.record
        backend = plan.backend
        self._version = plan.version
        record.attempts += 1
        record.version = plan.version.label
        record.replica = backend.config.id
        self._answer = None
        self._hold.take(backend)
        now = self._router.now()
        if record.attempts == 1:
            record.overhead_s = now - self._started - record.queued_s
        record.dispatched_s = now - self._started
        self.dispatch(self, self.request_bytes(plan.version, backend))

    def dispatch(self, receiver: Receiver, data: list[Piece], *, fresh: bool = False) -> None:
        """Hand a request to the replica taken."""
        self._hold.dispatch(self, receiver, data, connect_s=self._target.model.config.timeouts.connect_s, fresh=fresh)

    def sent(self) -> None:
        """The request has been handed to an engine: the first time, it may be copied."""
        if self._uncopied:
            self._uncopied = False
            self._router.shadows.offer(self, self._target.model)

    def request_bytes(self, version: VersionState, backend: Backend, request_id: str = "") -> list[Piece]:
        """The request as a replica gets it."""
        return forward.request_bytes(self.request, self._peek, version, backend, request_id)

    # --- back: head, body, end ---

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if status in RETRIED_STATUSES and self._refuses(status, headers):
            return
        record = self.record
        record.status = status
        self._answer = (degraded.CopiedAnswer if self._copies else Answer)(
            self.client,
            self.request,
            record,
            self._version,
            started=self._started,
            hide_usage=forward.asks_for_usage(self.request, self._peek, self._version),
            headers=headers,
            limits=self.permit.headers if self.permit is not None else b"",
            continuable=bool(self._version.continuers) and self._may_be_continued,
            holds=status == BAD_REQUEST and bool(self._target.model.larger_context) and self._refused is None,
        )
        if isinstance(self._answer, degraded.CopiedAnswer):
            self._answer.remember(headers)
            if self._sampling is not None and self._cache_key is None:
                self._answer.copy_bytes_max = self._sampling.bytes_max

    def _refuses(self, status: int, headers: list[tuple[bytes, bytes]]) -> bool:
        """An engine's own error, before any content. Returns whether that was the end of its answer."""
        wait_s = next((retry_after_s(value) for name, value in headers if name == b"retry-after"), None)
        if self._fail(Failure("status", f"status_{status}", status, wait_s)):
            return True
        if status not in REFUSING and self._refused is None:
            return self._degrade()
        self._hold.leave()
        message = f"The engine of {self._where} refuses the router's credentials (status {status})."
        self._note_error(ApiError(502, message, code="engine_unauthorized"))
        self._give_up()
        return True

    @property
    def _may_be_continued(self) -> bool:
        return self.record.streamed and self.request.endpoint in openai_wire.GENERATING

    def on_body(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            return
        answer.feed(data, self._router.now())
        if answer.scanner is not None and answer.scanner.error_event:
            self._engine_error(answer, answer.scanner.error_status)

    def _engine_error(self, answer: Answer, status: int) -> None:
        """The engine reported an error in the middle of its stream."""
        if BAD_REQUEST <= status < 500:
            answer.pass_error()  # the client's own doing: nobody else would answer otherwise
        elif answer.committed:
            self._hold.leave()
            self._cut("engine_error", "The engine failed in the middle of its answer.")
        elif self._fail(Failure("status", "engine_error", status)) or self._degrade():
            return
        else:
            answer.pass_error()

    def on_end(self) -> None:
        self._hold.ended()
        answer = self._answer
        if answer is None:
            return
        if answer.holds and openai_wire.is_context_error(answer.body) and self._try_larger_context(answer):
            return
        answer.release()
        scanner = answer.scanner
        if not answer.end():
            if answer.committed:
                self._cut("stream_truncated", "The engine ended its answer before it was complete.")
            else:
                self._fail_or_give_up(Failure("reset", "stream_truncated"))
        elif scanner is not None and scanner.error:
            self._finish("truncated" if scanner.started else "failed", error="engine_error")
        elif self.record.status < 500 or self.record.status == NOT_IMPLEMENTED:
            self._complete()
        else:
            self._finish("failed", error="engine_error")

    def on_broken(self, error: str, *, stale: bool) -> None:
        self._hold.ended()
        backend = self._hold.backend
        if stale and backend is not None:
            self.dispatch(self, self.request_bytes(self._version, backend), fresh=True)
        elif self._answer is not None and self._answer.committed:
            self._cut(error, "The engine stopped in the middle of its answer.")
        else:
            self._fail_or_give_up(Failure(_KINDS.get(error, "reset"), error))

    # --- when an attempt fails ---

    def _fail(self, failure: Failure) -> bool:
        """The attempt failed before any content: arrange for the next one. Returns False where there is to be none."""
        now, router, plan, backend = self._router.now(), self._router, self._plan, self._hold.backend
        if failure.is_engine_fault:
            self._blame(failure.code)
        elif backend is not None:
            backend.breaker.overloaded(now, failure.retry_after_s)
        model = self._target.model
        again = decide(
            failure,
            tries=plan.tries,
            elsewhere=plan.elsewhere(now),
            retry=model.config.retry,
            jitter=router.jitter(),
        )
        if again is None or (failure.costs and not model.budget.withdraw(now)):
            return False
        self._note_failure(failure)
        self._hold.leave()
        self._hold.release()
        self._answer = None
        if again.wait_s:
            self._waiting = router.later(again.wait_s, self._try_again, again.same)
        else:
            self._try_again(again.same)
        return True

    def _try_again(self, same: bool) -> None:
        self._waiting = None
        now = self._router.now()
        if same and not self._plan.backend.closing:
            self._plan.again()
        elif not self._plan.next(now):
            self._give_up()
            return
        self._attempt()

    def _fail_or_give_up(self, failure: Failure) -> None:
        if not self._fail(failure):
            self._note_failure(failure)
            self._hold.leave()
            self._give_up()

    def _note_failure(self, failure: Failure) -> None:
        status = 504 if failure.kind == "silent" else 502
        message = f"The engine of {self._where} gave no answer ({failure.code.replace('_', ' ')})."
        self._note_error(ApiError(status, message, code=failure.code))

    def _note_error(self, error: ApiError) -> None:
        """Keep the first error: what a fallback says does not hide why it was needed."""
        self._last_error = self._last_error or error

    def _try_larger_context(self, answer: Answer) -> bool:
        """The request is too long for the assigned version: ask those that take longer ones. Their failure does not
        hide this answer."""
        model, label = self._target.model, self.record.version
        larger = [version for version in model.larger_context if version.label != label]
        plan = Plan(larger, model.config.retry.attempts_max, self._router.choose, self.request)
        if self._target.pinned is not None or not plan.next(self._router.now()):
            return False
        self._refused = (answer, label, self.record.replica)
        self._plan = plan
        self._attempt()
        return True

    # --- when a stream is cut ---

    def _cut(self, code: str, message: str, *, blame: bool = True) -> None:
        """A committed answer broke off: have another replica go on with it, or end it as a broken one."""
        if blame:
            self._blame(code)
        if not self._continue():
            answer = self._answer
            assert answer is not None
            answer.truncate(code, message)
            self._finish("truncated", error=code)

    def _continue(self) -> bool:
        """Have another replica go on. Returns whether one was asked."""
        answer, record = self._answer, self.record
        if answer is None or answer.partial is None or answer.scanner is None or answer.scanner.ended:
            return False
        retry = self._target.model.config.retry
        if record.continuations >= retry.attempts_max:
            return False
        events = answer.scanner.content_events
        self._failed[record.replica] = events
        resumption = resume(self.request.body, self.request.endpoint, answer.partial)
        failed = {replica for replica, had in self._failed.items() if had == events}
        left = able_to_continue(self._version, failed, self._router.now())
        if resumption is None or not left:
            return False
        version = left[0][0]
        candidates = [one for owner, one in left if owner is version]
        backend = candidates[0] if len(candidates) == 1 else self._router.choose(version, candidates, self.request)
        record.continuations += 1
        record.attempts += 1
        record.version = version.label
        record.replica = backend.config.id
        self._version = version
        self._hold.take(backend)
        answer.goes_on(resumption)
        Resuming(self, backend, version, resumption).start()
        return True

    def not_continued(self, status: int) -> None:
        """A replica that was to go on with the stream answered otherwise: try the next one. That it rejects the prefill
        is no fault of its engine."""
        self._hold.leave()
        message = "The engine stopped in the middle of its answer, and no other could go on with it."
        self._cut(f"continuation_status_{status}", message, blame=status >= 500)

    # --- the client's side ---

    def client_gone(self) -> None:
        """The client has left: cancel the generation and account for what it got.

        One that leaves after the stream's last event has had its whole answer (SDKs hang up at `[DONE]`).
        """
        if self.finished:
            return
        self._stop_trying()
        answer = self._answer
        if answer is not None:
            answer.note_stream()
        if answer is not None and answer.scanner is not None and answer.scanner.done and not answer.scanner.error:
            self._complete()
        else:
            self._finish("cancelled", error="client_closed")

    def pause(self) -> None:
        """The client reads more slowly than the engine writes: stop reading from the engine."""
        self._hold.pause()

    def resume(self) -> None:
        self._hold.resume()

    # --- deadlines ---

    def check_deadlines(self, now: float) -> None:
        """End a wait that has lasted too long. Called several times a second."""
        if self.finished or (self._hold.backend is None and self._waiting is None):
            return  # not admitted yet
        timeouts = self._target.model.config.timeouts
        if timeouts.total_s and now - self._started > timeouts.total_s:
            self._time_out("total_timeout")
        elif self._waiting is None and self._hold.waits_for_engine:
            code = overdue(timeouts, self._answer, self._hold.since, now)
            if code:
                self._time_out(code)

    def _time_out(self, code: str) -> None:
        if code == "total_timeout":
            self._stop_trying()
        self._hold.leave()
        answer = self._answer
        if code == SILENT_END and answer is not None:
            answer.finish()
            self._complete()
        elif answer is not None and answer.committed:
            if code == "total_timeout":
                self._blame(code)
                answer.truncate(code, "The request took longer than its total timeout.")
                self._finish("truncated", error=code)
            else:
                self._cut(code, "The engine took too long over its answer.")
        elif code == "total_timeout":
            self._blame(code)
            self._last_error = ApiError(504, "The request took longer than its total timeout.", code=code)
            self._give_up()
        else:
            self._fail_or_give_up(Failure("silent", code))

    def cut_off(self) -> None:
        """The router stops before the answer is complete."""
        self._stop_trying()
        answer = self._answer
        if answer is not None and answer.committed:
            answer.truncate("router_stopping", "The router stopped before the answer was complete.")
            self._finish("truncated", error="router_stopping")
        else:
            self._last_error = ApiError(503, "The router is stopping.", code="router_stopping", retry_after_s=1)
            self._give_up()

    # --- endings ---

    def reject(self, error: ApiError) -> None:
        """Refuse the request ourselves; no engine saw it."""
        self.record.status = error.status
        self.client.send_error(error, self.request, self._own_headers())
        self._finish("rejected", error=error.code)

    def _give_up(self) -> None:
        """No attempt came to anything: say so."""
        if self._refused is not None:
            self._give_back_refusal(*self._refused)
            return
        if self._degrade():
            return
        error = self._last_error or self._nobody()
        self.record.status = error.status
        self.client.send_error(error, self.request, self._own_headers())
        self._finish("failed", error=error.code)

    def _degrade(self) -> bool:
        """No engine can answer: give what was answered to the very same request before, if that was kept."""
        target, key = self._target, self._cache_key
        if key is None or target.model.cache is None or self._router.draining:
            return False
        now = self._router.now()
        kept = target.model.cache.get(key, now)
        version = target.model.versions.get(kept.version) if kept is not None else None
        candidates = chain(target, self.record.assigned)
        if kept is None or version is None or not degraded.may_answer(kept, target.model, candidates):
            return False
        self._stop_trying()
        self._answer = None
        degraded.give(kept, self.client, self.request, self.record, version, now, self._attempts_header())
        self._finish("completed")
        return True

    def _give_back_refusal(self, answer: Answer, label: str, replica: str) -> None:
        """The answer of the version that the request was too long for stands."""
        self.record.version, self.record.replica, self.record.status = label, replica, BAD_REQUEST
        answer.release()
        answer.end()
        self._finish("completed")

    def _nobody(self) -> ApiError:
        rests_s = self._plan.rests_s(self._router.now())
        if rests_s:
            message = f"The engines of {self._peek.model} have too much to do; try again in {rests_s:.0f} s."
            return ApiError(OVERLOADED, message, code="engine_overloaded", retry_after_s=max(1, round(rests_s)))
        message = f"No engine of {self._peek.model} is ready; `modelyard status` shows why."
        return ApiError(503, message, code="no_ready_engine", retry_after_s=1)

    def _complete(self) -> None:
        """The client has had the engine's whole answer: the replica is well."""
        if self._hold.backend is not None:
            self._hold.backend.breaker.succeeded()
        kept = self._target.model.cache if self._cache_key is not None else None
        if kept is not None and self._cache_key is not None and isinstance(self._answer, degraded.CopiedAnswer):
            self._answer.keep(kept, self._cache_key, self._router.now())
        self._finish("completed")

    def _attempts_header(self) -> bytes:
        limits = self.permit.headers if self.permit is not None else b""
        return b"x-modelyard-attempts: %d\r\n%b" % (self.record.attempts, limits)

    def _own_headers(self) -> bytes:
        return b"x-modelyard-generation: %d\r\n%b" % (self.record.generation, self._attempts_header())

    def _finish(self, outcome: Outcome, *, error: str = "") -> None:
        """Account for the request, once, and let the client's connection go on."""
        if self.finished:
            return
        self.finished = True
        self._hold.release()
        record = self.record
        record.outcome = outcome
        record.error = error
        record.duration_s = self._router.now() - self._started
        permit, self.permit = self.permit, None  # it knows us: no cycle may be left to the garbage collector
        if permit is not None:
            permit.release()
        self._router.account(self)
        if self._sampling is not None:
            self._sampling.take(record, self.request, self._answer)
        self.client.exchange_ended(self)

    # --- small steps ---

    @property
    def _where(self) -> str:
        return f"{self.record.model}@{self.record.version}"

    def _blame(self, error: str) -> None:
        """The replica failed for its own reasons."""
        if self._hold.backend is not None:
            self._hold.backend.breaker.failed(self._router.now(), self._router.jitter())
        self._router.observe_failure(self.record.replica, error)

    def _stop_trying(self) -> None:
        """Leave whatever is being tried or waited for."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._hold.leave()
