"""The yard's books: the ingest's rhythm, the sampler, the recent window, the metrics and the cost statement.

Owns: when segments are read, and the figures that status, metrics and bills are made of. Never: what a record counts
as, what a figure costs (monitoring).
"""

from __future__ import annotations

import asyncio
import logging
import math
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prometheus_client import CollectorRegistry

from monitoring.cost import Prices, TokenPrice
from monitoring.drift_watch_metrics import DriftState
from monitoring.engine_scrape import EngineMetrics
from monitoring.exemplars import Exemplars
from monitoring.host_metrics import DiskSpace
from monitoring.metrics import EngineState, LedgerState, Metrics, SampleCounts, Snapshot, WorkerState
from monitoring.outlook import Outlook
from monitoring.recent import RecentWindow, VersionRates
from monitoring.request_log import PAGE_MAX, RequestLog, RequestPage, RequestQuery, Traffic
from monitoring.running_statement import RunningStatement
from monitoring.sample_ratio import Split
from monitoring.sampler import Sampler
from monitoring.settle import record_prices, view
from monitoring.statement import DEFAULT_BY, Device, Dimension, Statement, Usage, statement, usage_of
from monitoring.traffic_series import Series, TrafficSeries
from monitoring.usage import Slo
from registry.entries import CounterKey, HistogramDelta, HistogramKey
from registry.errors import RegistryError
from registry.ledger import Ledger
from registry.usage import RequestRecord
from serving.control.ingest import Ingest, Report, Writer
from serving.control.workers import Workers, WorkerStatus

log = logging.getLogger("modelyard.accounts")

STATEMENT_S = 10.0
RATES_S = 5.0
"""How old the rates may be that a scrape shows: they are of a whole minute."""
FRESH_S = 0.5


@dataclass(frozen=True, slots=True)
class Live:
    """What is true of the yard now, for the metrics."""

    engines: Sequence[EngineState] = ()
    engine_metrics: Sequence[EngineMetrics] = ()
    versions: Sequence[tuple[str, str]] = ()
    weights: Mapping[tuple[str, str], int] = field(default_factory=dict)
    revisions: Mapping[str, int] = field(default_factory=dict)
    paused: Collection[str] = ()
    generation: int = 0
    drift: DriftState = field(default_factory=DriftState)
    splits: Sequence[Split] = ()
    outlook: Outlook | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """The totals as of the last step that somebody asked after."""

    at: float = 0.0
    """When records were last counted; the totals may be of a later moment, never of an earlier one."""
    counters: Mapping[CounterKey, float] = field(default_factory=dict)
    histograms: Mapping[HistogramKey, HistogramDelta] = field(default_factory=dict)
    statement: Statement | None = None
    watermark: float = 0.0

    @property
    def usage(self) -> dict[str, Usage]:
        return {one.version: one for one in usage_of(self.counters)}


class Accounts:
    """One step at a time: the yard takes one a second, `fresh` and `cost` take one on demand.

    A step counts and no more. Totals, rates and statements are made when somebody looks: most seconds nobody does.
    """

    def __init__(
        self,
        ledger: Ledger,
        ingest: Ingest,
        sampler: Sampler,
        workers: Workers,
        *,
        prices: Callable[[], Prices],
        live: Callable[[], Live],
        token_prices: Callable[[], Mapping[str, TokenPrice]] = dict,
        slos: Callable[[], Mapping[str, Slo]] = dict,
        stored: Callable[[], Mapping[str, float]] = dict,
        sample_counts: Callable[[], SampleCounts] = SampleCounts,
        disks: Callable[[], Sequence[DiskSpace]] = tuple,
        version: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._ingest = ingest
        self.sampler = sampler
        self._workers = workers
        self._prices = prices
        self._live = live
        self._token_prices = token_prices
        self._slos = slos
        self._stored = stored
        self._running = RunningStatement(ledger)
        self._sample_counts = sample_counts
        self._samples = SampleCounts()
        self._read_disks = disks
        self._disks: Sequence[DiskSpace] = ()
        self._clock = clock
        self._window = RecentWindow()
        self._log = RequestLog()
        self._series = TrafficSeries()
        self._exemplars = Exemplars()
        self._arrived: list[RequestRecord] = []
        self._lock = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._behind = True
        self._statement_at = self._rates_at = -math.inf
        self._rates: Mapping[tuple[str, str], VersionRates] = {}
        self.figures = Figures()
        self._collectors = CollectorRegistry()
        self._metrics = Metrics(self._collectors, version=version, python=platform.python_version())

    def collect(self, records: Sequence[RequestRecord]) -> None:
        """Records that a step counted; called in the step's thread."""
        self._arrived.extend(records)
        self._exemplars.add(records)

    async def refill(self) -> None:
        """Fill the recent window and the log of requests from segments counted before this process began."""
        since = self._clock() - self._window.window_s
        self._window.add(await asyncio.to_thread(self._ingest.recent, since))
        newest = await asyncio.to_thread(self._ingest.newest, lambda record: True, self._log.records_max)
        self._log.add(newest)
        self._series.add(newest)

    async def step(self, *, settle_now: bool = False) -> Report:
        """Count what is new; with `settle_now` also divide time and write a new statement."""
        async with self._lock:
            if settle_now:
                await self._workers.ask()
            writers = [
                Writer(status.id, status.started_at, status.stats)
                for status in self._workers.statuses()
                if status.state != "backoff"
            ]
            now = self._clock()
            report = await asyncio.to_thread(self._ingest.step, writers, now, settle_now=settle_now)
            arrived, self._arrived = self._arrived, []
            self._window.add(arrived)
            self._log.add(arrived)
            self._series.add(arrived)
            self._behind |= report.records > 0
            if settle_now:
                self._statement_at = -math.inf
            self.figures = replace(self.figures, at=now, watermark=report.watermark)
            return report

    async def fresh(self) -> Figures:
        """Figures not older than FRESH_S."""
        if abs(self._clock() - self.figures.at) > FRESH_S:
            await self.step()
        await self._catch_up()
        return self.figures

    async def scrape(self) -> CollectorRegistry:
        """What Prometheus reads now. Where the ledger cannot be read, its totals are the last ones known."""
        try:
            await self._catch_up()
            self._samples = await asyncio.to_thread(self._sample_counts)
            self._disks = await asyncio.to_thread(self._read_disks)
        except (RegistryError, OSError):
            log.exception("the totals could not be read; a scrape shows those read last")
        now = self._clock()
        if abs(now - self._rates_at) >= RATES_S:
            self._rates_at, self._rates = now, self.rates()
        self._show(now)
        return self._collectors

    async def reprice(self, prices: Prices) -> None:
        """These prices are in force from now on; what was used before keeps the price it had."""
        self.sampler.cuts = await asyncio.to_thread(record_prices, self._ledger, prices, self._clock())

    async def cost(
        self, since: float | None, until: float | None = None, by: Sequence[Dimension] = DEFAULT_BY
    ) -> Statement:
        """The statement of the time from `since` (Unix seconds; None: the beginning) to `until` (None: now), its lines
        told apart `by` these."""
        await self.step(settle_now=True)
        return await asyncio.to_thread(self.statement, since, until, by)

    def rates(self) -> dict[tuple[str, str], VersionRates]:
        """Rates and latencies of the last minute, per (model, label)."""
        return self._window.rates(self._clock())

    def series(self, minutes: float) -> Series:
        """Traffic of the last minutes in steps, per version."""
        return self._series.read(self._clock(), minutes)

    async def requests(self, wanted: RequestQuery) -> RequestPage:
        """Finished requests: those in memory, and where they are too few, those that segments still hold."""
        page = self._log.page(wanted)
        limit = max(1, min(wanted.limit, PAGE_MAX))
        if page.more or wanted.slowest or len(self._log) < self._log.records_max:
            return page
        older = wanted.older(page.oldest or math.inf)
        missing = limit + 1 - len(page.records)
        found = await asyncio.to_thread(self._ingest.newest, older.takes, missing)
        records = (*page.records, *found)
        return replace(page, records=records[:limit], more=len(records) > limit)

    def traffic(self, model: str, since: float) -> Traffic:
        """The model's requests in memory that arrived at `since` or later."""
        return self._log.traffic(model, since)

    async def request(self, request_id: str) -> list[RequestRecord]:
        """The records of that id, and those of its copies; from memory, else from what segments still hold."""

        def is_it(record: RequestRecord) -> bool:
            return request_id in (record.request_id, record.shadow_of)

        return self._log.find(request_id) or await asyncio.to_thread(self._ingest.newest, is_it, PAGE_MAX)

    def problems(self) -> list[str]:
        """Segments that were set aside, one sentence each."""
        return [f"segment {one.segment}: {one.message}" for one in self._ingest.problems]

    async def _catch_up(self) -> None:
        """Read the totals where something was counted since, and make a new statement where the last one is old."""
        async with self._reading:
            totals, statement = (self.figures.counters, self.figures.histograms), self.figures.statement
            if self._behind:
                self._behind = False
                try:
                    totals = await asyncio.to_thread(lambda: (self._ledger.counters(), self._ledger.histograms()))
                except BaseException:
                    self._behind = True
                    raise
            now = self._clock()
            if abs(now - self._statement_at) >= STATEMENT_S:
                statement = await asyncio.to_thread(self._total)
                self._statement_at = now
            self.figures = replace(self.figures, counters=totals[0], histograms=totals[1], statement=statement)

    def statement(
        self,
        since: float | None,
        until: float | None = None,
        by: Sequence[Dimension] = DEFAULT_BY,
        *,
        prices: Prices | None = None,
    ) -> Statement:
        """As `cost`, of what is settled so far. `prices` instead of those that were in force. Blocking."""
        now = self._clock()
        return statement(
            view(self._ledger, since, until),
            prices=prices or self._prices(),
            devices=self.devices(),
            reserved_bytes=dict(self.sampler.engine_memory()),
            token_prices=self._token_prices(),
            stored_bytes=self._stored(),
            stop=now if until is None else min(now, until),
            by=by,
            history=prices is None,
        )

    def _total(self) -> Statement:
        """The statement of all time for the metrics. Blocking; one call at a time."""
        return self._running.statement(
            prices=self._prices(),
            devices=self.devices(),
            reserved_bytes=dict(self.sampler.engine_memory()),
            token_prices=self._token_prices(),
            stored_bytes=self._stored(),
            stop=self._clock(),
        )

    def devices(self) -> dict[str, Device]:
        """What bills must know of each device."""
        return {reading.device: Device(reading.kind, reading.cores or 1.0) for reading in self.sampler.latest()}

    def _show(self, now: float) -> None:
        """Hand the metrics what the next scrape shows."""
        live, figures = self._live(), self.figures
        self._metrics.publish(
            Snapshot(
                counters=figures.counters,
                histograms=figures.histograms,
                exemplars=self._exemplars.latest(),
                versions=live.versions,
                engines=live.engines,
                engine_metrics=live.engine_metrics,
                workers=[_worker_state(status) for status in self._workers.statuses()],
                weights=live.weights,
                queues=_queues(self._workers.statuses()),
                revisions=live.revisions,
                paused=live.paused,
                generation=live.generation,
                drift=live.drift,
                splits=live.splits,
                outlook=live.outlook,
                disks=self._disks,
                rates=self._rates,
                devices=self.sampler.latest(),
                engine_memory=self.sampler.engine_memory(),
                sampler=self.sampler.status(),
                statement=figures.statement,
                slo_targets={model: slo.target for model, slo in self._slos().items()},
                samples=self._samples,
                ledger=LedgerState(max(0.0, now - figures.at), max(0.0, now - figures.watermark)),
            )
        )


def _queues(workers: Sequence[WorkerStatus]) -> dict[str, tuple[int, ...]]:
    """What waits for admission, all workers together."""
    queues: dict[str, tuple[int, ...]] = {}
    for status in workers:
        for model, waiting in (status.stats.waiting if status.stats else {}).items():
            queues[model] = tuple(map(sum, zip(queues.get(model, (0,) * len(waiting)), waiting, strict=True)))
    return queues


def _worker_state(status: WorkerStatus) -> WorkerState:
    stats = status.stats
    return WorkerState(
        worker=status.id,
        up=stats is not None,
        resident_bytes=stats.resident_bytes if stats else 0,
        connections=stats.connections if stats else 0,
        loop_lag_s=stats.loop_lag_s if stats else 0.0,
        generation=status.generation,
        samples_lost=stats.samples_lost if stats else 0,
    )
