"""One worker's heart: the current snapshot, the pools, what is in flight, and the few answers that need no engine.

Owns: the state that exchanges share. Never: parsing, signals, sockets that listen (see `worker`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from typing import Any, Final

from registry.models import BUCKETS
from registry.usage import RequestRecord
from serving.errors import ApiError
from serving.router import feedback, openai_wire, readiness, sampling
from serving.router.account import SegmentWriter
from serving.router.affinity import ANCHORS, Prefixes, fingerprints
from serving.router.cache import AnswerCache
from serving.router.counters import Counters
from serving.router.degraded import caches_of
from serving.router.entrance import Entrance
from serving.router.exchange import Exchange
from serving.router.http1 import Client, Request
from serving.router.keys import check_model, may_use
from serving.router.protocol import Applied, Failure, Stats, Up
from serving.router.retry import Budget
from serving.router.shadow import Shadows
from serving.router.snapshot import Snapshot, Tally, Target, VersionState
from serving.router.table import Key, Table
from serving.router.tracing import Tracer
from serving.router.upstream import Backend

JSON: Final = b"application/json"


class Router:
    """Everything that the exchanges of one worker share.

    `now` is a monotonic clock, `wall` the time of day, `rng` the source of buckets for requests without a sticky key;
    `report` sends a message to the control plane where one listens; `counters` are those that workers share.
    """

    def __init__(
        self,
        worker: str,
        loop: asyncio.AbstractEventLoop,
        segments: SegmentWriter,
        *,
        now: Callable[[], float],
        wall: Callable[[], float],
        rng: random.Random,
        report: Callable[[Up], None],
        counters: Counters | None = None,
        spool: sampling.Spool | None = None,
    ) -> None:
        self.worker = worker
        self.now = now
        self.wall = wall
        self.draining = False
        self.tracer: Tracer | None = None
        """None where nothing is traced."""
        self.replaced = False
        """While draining: another worker serves on, so no client need be turned away from its connection."""
        self.idle = asyncio.Event()
        """Set while draining once nothing is in flight and every client has gone."""
        self._loop = loop
        self._segments = segments
        self._spool = spool
        self._rng = rng
        self._report = report
        self._clients: set[Client] = set()
        self._exchanges: set[Exchange] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._backends: dict[str, Backend] = {}
        self._leaving: set[Backend] = set()
        self._tallies: dict[str, Tally] = {}
        self._budgets: dict[str, Budget] = {}
        self._caches: dict[str, AnswerCache] = {}
        self._entrance = Entrance(counters or Counters.private(), now=now, wall=wall, later=self.later, soon=self.soon)
        self.entrance: Entrance | None = None
        """Where requests ask to be let in; None where nothing is limited."""
        self._prefixes = Prefixes()
        self.shadows = Shadows(self)
        self._cut_off = 0
        self._ids = count(1)
        self._id_prefix = f"req-{rng.getrandbits(64):016x}-"
        self.snapshot = Snapshot(Table(generation=0), {}, {}, {}, 0.0)

    # --- the control plane's side ---

    def publish(self, table: Table) -> Applied:
        """Serve by `table` from the next request on. Connections to replicas that stay are kept."""
        backends: dict[str, Backend] = {}
        for model in table.models.values():
            for version in model.versions.values():
                for replica in version.replicas:
                    known = self._backends.pop(replica.id, None)
                    if known is not None and not known.same_place(replica):
                        self._leave(known)
                        known = None
                    if known is None:
                        known = Backend(replica, self._loop, self.now)
                    else:
                        known.update(replica)
                    backends[replica.id] = known
        for gone in self._backends.values():
            self._leave(gone)
        self._backends = backends
        self.entrance = self._entrance if self._entrance.publish(table) else None
        self._prefixes.retain(backends)
        self.tracer = Tracer(table.tracing.sample, self._rng) if table.tracing is not None else None
        snapshot = Snapshot(table, backends, self._tallies, self._budgets, self.now())
        self.shadows.attach(snapshot)
        self._caches = caches_of(snapshot.models, self._caches)
        sampling.attach(snapshot.models.values(), self._spool)
        self.snapshot = snapshot
        return Applied(table.generation)

    def stats(self, resident_bytes: int, loop_lag_s: float) -> Stats:
        """What is true now."""
        self._segments.flush()
        wall = self.wall()
        every = [*self._backends.values(), *self._leaving]
        return Stats(
            at=wall,
            inflight={backend.config.id: backend.inflight for backend in every if backend.inflight},
            oldest_started_at=min(
                wall, self.shadows.oldest_started_at, *(exchange.record.started_at for exchange in self._exchanges)
            ),
            flushed_bytes=self._segments.flushed_bytes,
            segment=self._segments.segment,
            connections=len(self._clients),
            upstream_connections=sum(backend.open for backend in every),
            resident_bytes=resident_bytes,
            tokens={name: tally.events for name, tally in self._tallies.items()},
            records_lost=self._segments.records_lost,
            loop_lag_s=loop_lag_s,
            cut_off=self._cut_off,
            waiting=self._entrance.waiting(),
            samples_taken=self._spool.taken if self._spool is not None else 0,
            samples_lost=self._spool.lost if self._spool is not None else 0,
        )

    def drain(self, *, replaced: bool = False) -> None:
        """Take no more connections; `idle` is set once those that there are have ended.

        Idle ones are closed at once, or, where another worker has replaced this one, a moment later: a request may be
        under way on them, and a client that meets a closed connection has failed.
        """
        self.draining = True
        self.replaced = replaced
        self.shadows.cancel()
        for client in list(self._clients):
            client.close_if_idle()
        self._note_idle()

    def cut_off(self) -> None:
        """The drain's deadline has passed: end what is left, so that it is accounted for."""
        self._cut_off = len(self._exchanges)
        for exchange in list(self._exchanges):
            exchange.cut_off()

    def sweep(self, now: float) -> None:
        """End what has waited too long. Called several times a second."""
        self._entrance.sweep(now)
        for exchange in list(self._exchanges):
            exchange.check_deadlines(now)
        self.shadows.sweep(now)
        for client in list(self._clients):
            client.check_deadline(now)
        for backend in self._backends.values():
            backend.close_idle(now)
        for backend in list(self._leaving):
            backend.close_idle(now)
            if not backend.open and not backend.inflight:
                self._leaving.discard(backend)

    # --- a client's side ---

    def admit(self, client: Client) -> bool:
        """Count a new connection; False where there are as many as there may be."""
        if len(self._clients) >= self.snapshot.limits.connections_max:
            return False
        self._clients.add(client)
        return True

    def release(self, client: Client) -> None:
        self._clients.discard(client)
        if self.draining:
            self._note_idle()

    def route(self, client: Client, request: Request) -> Exchange | None:
        """An exchange for a request that an engine must answer; None where it has been answered here."""
        path = request.target.partition(b"?")[0].decode("latin-1")
        keyring = self.snapshot.keyring
        if keyring is not None and (refusal := keyring.renew(request, self.wall())) is not None:
            self.account_refusal(refusal, request, len(request.body))
            client.send_error(refusal, request)
            return None
        if path in openai_wire.ENDPOINTS and request.method == b"POST":
            request.endpoint = path
            exchange = Exchange(self, client, request)
            self._exchanges.add(exchange)
            return exchange
        if request.method in (b"GET", b"HEAD") and self._answer_get(client, request, path):
            return None
        headers = b""
        takes_post = path in openai_wire.ENDPOINTS or path == feedback.PATH
        if path == feedback.PATH and request.method == b"POST":
            error = self._take_feedback(client, request)
            if error is None:
                return None
        elif takes_post or path == "/v1/models" or path.startswith("/health/"):
            allowed = "POST" if takes_post else "GET, HEAD"
            headers = b"allow: %b\r\n" % allowed.encode()
            error = ApiError(405, f"{path} takes {allowed}.", code="method_not_allowed")
        else:
            meant = openai_wire.nearest_path(path)
            hint = f" Did you mean {meant}?" if meant else ""
            error = ApiError(404, f"There is nothing at {path[:200]!r}.{hint}", code="unknown_path")
        self.account_refusal(error, request, len(request.body))
        client.send_error(error, request, headers)
        return None

    def _take_feedback(self, client: Client, request: Request) -> ApiError | None:
        """Answer feedback, and hand it on. Returns why it is not taken, where it is not. Not accounted, as below."""
        try:
            given = feedback.read(
                request.body, key_id=request.key.id if request.key is not None else "", at=self.wall()
            )
        except ApiError as error:
            return error
        if not sampling.keep_feedback(self._spool, given):
            return feedback.unavailable()
        client.send(202, feedback.accepted(given), request, content_type=JSON)
        return None

    def _answer_get(self, client: Client, request: Request, path: str) -> bool:
        """Health and models: answered from the snapshot. Not accounted: no model's work."""
        if path == "/health/live":
            client.send(200, b'{"status":"live"}', request, content_type=JSON)
        elif path == "/health/ready":
            self._answer_readiness(client, request)
        elif path == "/v1/models":
            client.send(200, self.snapshot.models_for(request.key), request, content_type=JSON)
        elif path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/")
            card = self.snapshot.cards.get(name) if may_use(request.key, name.partition("@")[0]) else None
            if card is None:
                client.send_error(self._unknown(name, request.key), request)
            else:
                client.send(200, card, request, content_type=JSON)
        else:
            return False
        return True

    def _answer_readiness(self, client: Client, request: Request) -> None:
        """Of all models, or of `?model=NAME`. A worker that has a successor speaks for it: the port goes on serving."""
        leaving = self.draining and not self.replaced
        query = request.target.partition(b"?")[2].decode("latin-1")
        if query.startswith("model="):
            name = query.removeprefix("model=").partition("&")[0].replace("%40", "@")
            found = readiness.of_name(self.snapshot, name, leaving=leaving)
            if found is None:
                client.send_error(self._unknown(name, request.key), request)
                return
        else:
            found = readiness.of_worker(self.snapshot, leaving=leaving)
        client.send(*found, request, content_type=JSON)

    # --- an exchange's side ---

    def resolve(self, name: str, key: Key | None) -> Target:
        """What `name` stands for. Raises ApiError: 404, or 403 where the key may not use it."""
        target = self.snapshot.targets.get(name)
        if target is None:
            raise self._unknown(name, key)
        if key is not None:
            check_model(key, target.model.config.name)
        return target

    def _unknown(self, name: str, key: Key | None) -> ApiError:
        known = ", ".join(self.snapshot.names_for(key)[:20]) or "none yet"
        return ApiError(
            404,
            f"The model {name[:200]!r} does not exist here; known: {known}.",
            code="model_not_found",
            param="model",
        )

    def random_bucket(self) -> int:
        return self._rng.randrange(BUCKETS)

    def choose(self, version: VersionState, left: Sequence[Backend], request: Request) -> Backend:
        """One of several replicas: one that has the request's beginning cached, or the least busy one."""
        anchor = ANCHORS.get(request.endpoint) if version.affinity_seed else None
        prints = fingerprints(request.body, anchor, version.affinity_seed) if anchor is not None else ()
        if not prints:
            return min(left, key=self._load)
        names = [backend.config.id for backend in left]
        loads = [backend.inflight for backend in left]
        return left[self._prefixes.choose(prints, names, loads, self._rng.random)]

    def _load(self, backend: Backend) -> tuple[int, float]:
        """How busy a replica is; ties are broken at random."""
        return backend.inflight, self._rng.random()

    def jitter(self) -> float:
        return self._rng.random()

    def next_id(self) -> str:
        """A request id that no other request of any worker has."""
        return f"{self._id_prefix}{next(self._ids):x}"

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` and keep a reference until it ends."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def later(self, delay_s: float, callback: Callable[..., None], *args: object) -> asyncio.TimerHandle:
        """Call back after a time; the handle cancels it."""
        return self._loop.call_later(delay_s, callback, *args)

    def soon(self, callback: Callable[[], None]) -> None:
        self._loop.call_soon(callback)

    def observe_failure(self, replica: str, error: str) -> None:
        """Tell the control plane, at once, that an engine failed for its own reasons."""
        self._report(Failure(self.wall(), replica, error))

    def account(self, exchange: Exchange) -> None:
        """The one place where a request is counted."""
        self._exchanges.discard(exchange)
        self._segments.append(exchange.record)
        if self.draining:
            self._note_idle()

    def account_shadow(self, record: RequestRecord) -> None:
        """Count a copy of a request, which is no client's."""
        self._segments.append(record)

    def account_refusal(self, error: ApiError, request: Request, body_bytes: int) -> None:
        """Count a request that never became an exchange."""
        self._segments.append(
            RequestRecord(
                request_id=request.request_id,
                started_at=self.wall(),
                duration_s=0.0,
                endpoint="other",
                model="",
                version="",
                replica="",
                outcome="rejected",
                status=error.status,
                error=error.code,
                generation=self.snapshot.generation,
                request_bytes=body_bytes,
                key_id=request.key.id if request.key is not None else "",
                worker=self.worker,
            )
        )

    # --- inner ---

    def _leave(self, backend: Backend) -> None:
        backend.closing = True
        backend.close_idle(self.now())
        self._leaving.add(backend)

    def _note_idle(self) -> None:
        if not self._exchanges and not self._clients:
            self.idle.set()
