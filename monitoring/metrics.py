"""The metrics of the contract: the ledger's totals, and gauges of what is true now, for Prometheus to read.

Owns: names, types, labels and help texts. Never: counting (`observe`), measuring, I/O, a registry of its own (the
`prometheus_client` registry is an argument).

Counters and histograms are the ledger's totals, so they go on where they were after a restart. A scrape reads one
immutable snapshot: it takes no lock and waits for nothing. Every label is bounded: models, versions and replicas are
those that are registered, endpoints and outcomes fixed sets, devices those of the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as ExemplarSample

from monitoring.cost_metrics import collect_outlook
from monitoring.cost_series import CostSeries, collect_cost, collect_service_levels, cost_series, hold
from monitoring.device_metrics import collect_devices, collect_sampler
from monitoring.devices import DeviceReading
from monitoring.drift_watch_metrics import DriftState, collect_drift
from monitoring.engine_scrape import EngineMetrics
from monitoring.engine_series import collect_engine_metrics
from monitoring.exemplars import Exemplar, SeriesKey
from monitoring.exponential import sparse
from monitoring.host_metrics import DiskSpace, collect_disks, collect_splits
from monitoring.observe import (
    BOUNDS,
    COUNTER_LABELS,
    HISTOGRAM_BOUNDS,
    HISTOGRAM_LABELS,
    LIMITING,
    NATIVE,
    REJECTIONS,
    observe,
)
from monitoring.outlook import Outlook
from monitoring.protobuf_exposition import NativeHistogramFamily
from monitoring.recent import RecentWindow, VersionRates
from monitoring.sample_ratio import Split
from monitoring.sampler import SamplerStatus
from monitoring.series import FAMILY_MAX, SeriesCap
from monitoring.statement import Statement
from registry.entries import CounterKey, HistogramDelta, HistogramKey

__all__ = ["EngineState", "LedgerState", "Metrics", "RecentWindow", "Snapshot", "WorkerState", "observe"]

PRIORITIES = ("interactive", "batch", "shadow")
"""Classes of requests, the first one first."""

ROLLOUT_STATES = ("stable", "progressing", "paused")
"""One version has all of a model's traffic; several share it; somebody holds the route where it is."""

Version = tuple[str, str]
"""(model, label)"""

COUNTER_HELP: Mapping[str, str] = {
    "modelyard_requests_total": "Requests that ended, by endpoint and outcome.",
    "modelyard_prompt_tokens_total": "Prompt tokens, cached ones included; source=engine is the engine's own usage.",
    "modelyard_prompt_cached_tokens_total": "Prompt tokens that the engine took from its cache.",
    "modelyard_completion_tokens_total": "Completion tokens; source=counted are partial answers counted in passing.",
    "modelyard_upstream_attempts_total": "Attempts at engines; more than requests where the router tried again.",
    "modelyard_fallbacks_total": "Requests answered by another version than the one that the split assigned.",
    "modelyard_continuations_total": "Times that a cut stream went on from another replica.",
    "modelyard_degraded_answers_total": "Requests that got a kept answer because no engine could give one.",
    "modelyard_phase_seconds_total": "Seconds of streams in prefill (hand-over to first token) and decode (after it).",
    "modelyard_phase_tokens_total": "Tokens that belong to modelyard_phase_seconds_total.",
    "modelyard_rejections_total": "Requests that the router refused, by reason; no engine saw them.",
    "modelyard_shadow_requests_total": "Copies of requests that ended, by outcome; rejected: a cap refused it.",
    "modelyard_shadow_prompt_tokens_total": "Prompt tokens of copies.",
    "modelyard_shadow_completion_tokens_total": "Completion tokens of copies.",
    "modelyard_shadow_engine_seconds_total": "Seconds that copies were in flight at engines.",
}
HISTOGRAM_HELP: Mapping[str, str] = {
    "modelyard_request_duration_seconds": "Completed requests, from arrival in full to the last byte.",
    "modelyard_time_to_first_token_seconds": "Streams, from arrival in full to the first content event.",
    "modelyard_inter_token_latency_seconds": "Gaps between content events of a stream; each stream's mean, per gap.",
    "modelyard_stream_gap_max_seconds": "The longest gap between two content events of each stream.",
    "modelyard_router_overhead_seconds": "The router's own share of a request, queueing excluded.",
    "modelyard_queue_seconds": "How long requests waited for admission, by class; 0 for those let in at once.",
    "modelyard_shadow_request_duration_seconds": "Completed copies of requests, from their making to the last byte.",
    "modelyard_shadow_time_to_first_token_seconds": "Streamed copies, from their making to the first content event.",
}


@dataclass(frozen=True, slots=True)
class EngineState:
    """One replica now."""

    model: str
    version: str
    replica: str
    """`assistant@v2/0`"""
    up: bool
    """Ready to take requests."""
    restarts: int = 0
    """Since the control plane started to watch it."""
    inflight: int = 0


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One router worker now."""

    worker: str
    up: bool
    resident_bytes: int = 0
    connections: int = 0
    loop_lag_s: float = 0.0
    generation: int = 0
    samples_lost: int = 0


@dataclass(frozen=True, slots=True)
class SampleCounts:
    """Totals of samples and feedback."""

    samples: Mapping[Version, float] = field(default_factory=dict)
    feedback: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    """(model, label, positive | neutral | negative)"""
    ignored: Mapping[str, float] = field(default_factory=dict)
    """Reason -> feedback that was not counted."""


@dataclass(frozen=True, slots=True)
class LedgerState:
    """How far behind the ledger is when the snapshot is published; a scrape adds the snapshot's age."""

    lag_s: float = 0.0
    """Since segments were last read: how old the oldest uncounted record may be."""
    settle_lag_s: float = 0.0
    """Since the watermark: grows while a request runs, as its time is divided when it ends."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one scrape shows."""

    counters: Mapping[CounterKey, float] = field(default_factory=dict)
    histograms: Mapping[HistogramKey, HistogramDelta] = field(default_factory=dict)
    exemplars: Mapping[SeriesKey, Mapping[int, Exemplar]] = field(default_factory=dict)
    versions: Sequence[Version] = ()
    """Every registered version that is not retired: their series exist from the start, at 0."""
    engines: Sequence[EngineState] = ()
    engine_metrics: Sequence[EngineMetrics] = ()
    """What engines say of themselves."""
    workers: Sequence[WorkerState] = ()
    weights: Mapping[Version, int] = field(default_factory=dict)
    """Basis points in the current route."""
    queues: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Model -> requests that wait for admission, by class as in PRIORITIES; models without any may be left out."""
    revisions: Mapping[str, int] = field(default_factory=dict)
    """Model -> revision of its current route."""
    paused: Collection[str] = ()
    """Models whose route is held where it is."""
    generation: int = 0
    """Of the routing table last published."""
    rates: Mapping[Version, VersionRates] = field(default_factory=dict)
    devices: Sequence[DeviceReading] = ()
    engine_memory: Mapping[str, int] = field(default_factory=dict)
    """`model@version` -> bytes."""
    sampler: SamplerStatus | None = None
    statement: Statement | None = None
    slo_targets: Mapping[str, float] = field(default_factory=dict)
    """Model -> share of requests that shall be good; models without a service level are left out."""
    ledger: LedgerState | None = None
    samples: SampleCounts = field(default_factory=SampleCounts)
    drift: DriftState = field(default_factory=DriftState)
    outlook: Outlook | None = None
    """None until one was made."""
    splits: Sequence[Split] = ()
    disks: Sequence[DiskSpace] = ()


class Metrics(Collector):
    """Registers itself with `registry`; `publish` replaces what a scrape shows, in one assignment."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        version: str,
        python: str = "",
        clock: Callable[[], float] = time.monotonic,
        family_max: int = FAMILY_MAX,
    ) -> None:
        self._build = {"version": version, "python": python}
        self._clock = clock
        self._published: tuple[Snapshot, float] = (Snapshot(), clock())
        self._cost: CostSeries = {}
        self._cap = SeriesCap(family_max)
        registry.register(self)

    def publish(self, snapshot: Snapshot) -> None:
        """Show `snapshot` from the next scrape on. Called by one thread."""
        if snapshot.statement is not None:
            self._cost = hold(self._cost, cost_series(snapshot.statement))
        self._published = (snapshot, self._clock())

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are checked by tests, not by a collection at registration."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every family, each within the cap of `series`."""
        count = 0
        for family in self._families():
            limited = self._cap.limit(family)
            count += len(limited.samples)
            yield limited
        yield CounterMetricFamily(
            "modelyard_metrics_series_dropped",
            "Series that were left out because their family has too many.",
            value=self._cap.dropped,
        )
        yield _gauge("modelyard_metrics_series", "Series of this exposition.", count + 2)

    def _families(self) -> Iterator[Metric]:
        snapshot, published_at = self._published
        build = GaugeMetricFamily("modelyard_build_info", "Always 1; the labels say what runs.", labels=[*self._build])
        build.add_metric([*self._build.values()], 1)
        yield build
        yield from _counters(snapshot)
        yield from _histograms(snapshot)
        yield from _engines(snapshot)
        yield from collect_engine_metrics(snapshot.engine_metrics)
        yield from _workers(snapshot)
        yield from _routes(snapshot)
        yield _queues(snapshot)
        yield from _samples(snapshot)
        yield from collect_drift(snapshot.drift)
        if snapshot.outlook is not None:
            yield from collect_outlook(snapshot.outlook, snapshot.versions)
        yield from collect_splits(snapshot.splits)
        yield from collect_disks(snapshot.disks)
        yield from collect_devices(snapshot.devices, snapshot.engine_memory)
        if snapshot.sampler is not None:
            yield from collect_sampler(snapshot.sampler)
        if snapshot.statement is not None:
            yield from collect_cost(snapshot.statement, self._cost)
        yield from collect_service_levels(snapshot.counters, snapshot.versions, snapshot.slo_targets)
        if snapshot.ledger is not None:
            age_s = self._clock() - published_at  # a control plane that is stuck publishes nothing
            lag, settle_lag = snapshot.ledger.lag_s + age_s, snapshot.ledger.settle_lag_s + age_s
            yield _gauge("modelyard_ledger_lag_seconds", "Age of what is not counted yet.", lag)
            yield _gauge("modelyard_settlement_lag_seconds", "Age of what is not divided among versions.", settle_lag)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help_text, value=value)


def _counters(snapshot: Snapshot) -> Iterator[Metric]:
    for name, labels in COUNTER_LABELS.items():
        family = CounterMetricFamily(name, COUNTER_HELP[name], labels=labels)
        shown: set[tuple[str, ...]] = set()
        for key, value in snapshot.counters.items():
            if key.name == name and len(key.labels) == len(labels):
                family.add_metric(key.labels, value)
                shown.add(key.labels)
        for start in _first_series(name, snapshot.versions):
            if start not in shown:
                family.add_metric(start, 0.0)
        yield family


def _first_series(name: str, versions: Sequence[Version]) -> Iterator[tuple[str, ...]]:
    """Series that exist before their first event, so that `rate` and `increase` see that event."""
    if name == REJECTIONS:
        yield from ((model, reason) for model in dict.fromkeys(model for model, _ in versions) for reason in LIMITING)
        return
    for model, version in versions:
        match COUNTER_LABELS[name][2:]:
            case ():
                yield model, version
            case ("source",):
                yield model, version, "engine"
            case ("endpoint", "outcome"):
                for outcome in ("completed", "failed", "truncated"):
                    yield model, version, "/v1/chat/completions", outcome
            case ("outcome",):
                for outcome in ("completed", "failed", "truncated", "rejected"):
                    yield model, version, outcome
            case ("phase",):
                yield model, version, "prefill"
                yield model, version, "decode"


def _histograms(snapshot: Snapshot) -> Iterator[Metric]:
    for name, labels in HISTOGRAM_LABELS.items():
        family = NativeHistogramFamily(name, HISTOGRAM_HELP[name], labels)
        bounds_name = HISTOGRAM_BOUNDS[name]
        for key, total in snapshot.histograms.items():
            if key.name == name and key.bounds == bounds_name:
                exemplars = snapshot.exemplars.get((name, key.labels), {})
                family.add_metric(key.labels, _buckets(BOUNDS[bounds_name], total.counts, exemplars), total.sum)
                native = snapshot.histograms.get(key._replace(bounds=NATIVE))
                family.native[key.labels] = sparse(total, native)
        yield family


def _buckets(
    bounds: Sequence[float], counts: Sequence[int], exemplars: Mapping[int, Exemplar]
) -> list[tuple[str, float] | tuple[str, float, ExemplarSample]]:
    """Cumulative buckets as the exposition format has them."""
    edges = [*(repr(bound) for bound in bounds), "+Inf"]
    running = 0
    buckets: list[tuple[str, float] | tuple[str, float, ExemplarSample]] = []
    for place, (edge, count) in enumerate(zip(edges, counts, strict=True)):
        running += count
        if (seen := exemplars.get(place)) is not None:
            buckets.append((edge, running, ExemplarSample({"trace_id": seen.trace_id}, seen.value, seen.at)))
        else:
            buckets.append((edge, running))
    return buckets


def _engines(snapshot: Snapshot) -> Iterator[Metric]:
    up = GaugeMetricFamily(
        "modelyard_engine_up", "1 where the replica takes requests.", labels=["model", "version", "replica"]
    )
    restarts = CounterMetricFamily(
        "modelyard_engine_restarts_total", "Restarts of the replica.", labels=["model", "version", "replica"]
    )
    inflight = GaugeMetricFamily(
        "modelyard_inflight_requests", "Requests that an engine works on now.", labels=["model", "version"]
    )
    waiting: dict[Version, int] = dict.fromkeys(snapshot.versions, 0)
    for engine in snapshot.engines:
        labels = [engine.model, engine.version, engine.replica]
        up.add_metric(labels, float(engine.up))
        restarts.add_metric(labels, engine.restarts)
        owner = (engine.model, engine.version)
        waiting[owner] = waiting.get(owner, 0) + engine.inflight
    for (model, version), count in waiting.items():
        inflight.add_metric([model, version], count)
    yield from (up, restarts, inflight)


def _workers(snapshot: Snapshot) -> Iterator[Metric]:
    series: tuple[tuple[str, str, str], ...] = (
        ("modelyard_router_up", "1 where the worker answers the control plane.", "up"),
        ("modelyard_router_resident_bytes", "Resident memory of the worker.", "resident_bytes"),
        ("modelyard_router_connections", "Client connections that the worker holds.", "connections"),
        ("modelyard_router_loop_lag_seconds", "Longest recent delay of the worker's event loop.", "loop_lag_s"),
        ("modelyard_router_generation", "Routing table that the worker serves by.", "generation"),
    )
    for name, help_text, attribute in series:
        family = GaugeMetricFamily(name, help_text, labels=["worker"])
        for worker in snapshot.workers:
            family.add_metric([worker.worker], float(getattr(worker, attribute)))
        yield family


def _samples(snapshot: Snapshot) -> Iterator[Metric]:
    lost = CounterMetricFamily(
        "modelyard_samples_lost_total", "Samples and feedback that the worker had no room for.", labels=["worker"]
    )
    for worker in snapshot.workers:
        lost.add_metric([worker.worker], worker.samples_lost)
    taken = CounterMetricFamily("modelyard_samples_total", "Requests kept as samples.", labels=["model", "version"])
    said = CounterMetricFamily(
        "modelyard_feedback_total", "Feedback on requests, by its sign.", labels=["model", "version", "score"]
    )
    for model, version in sorted({*snapshot.versions, *snapshot.samples.samples}):
        taken.add_metric([model, version], snapshot.samples.samples.get((model, version), 0))
    starts = {(*version, score) for version in snapshot.versions for score in ("positive", "negative")}
    for key in sorted(starts | snapshot.samples.feedback.keys()):
        said.add_metric(key, snapshot.samples.feedback.get(key, 0))
    ignored = CounterMetricFamily(
        "modelyard_feedback_ignored_total", "Feedback without a request, or with another key.", labels=["reason"]
    )
    for reason in ("unknown_request", "other_key"):
        ignored.add_metric([reason], snapshot.samples.ignored.get(reason, 0))
    yield from (lost, taken, said, ignored)


def _queues(snapshot: Snapshot) -> Metric:
    length = GaugeMetricFamily(
        "modelyard_queue_length", "Requests that wait for admission.", labels=["model", "priority"]
    )
    for model in dict.fromkeys([*(model for model, _ in snapshot.versions), *snapshot.queues]):
        for priority, count in zip(PRIORITIES, snapshot.queues.get(model, (0, 0, 0)), strict=True):
            length.add_metric([model, priority], count)
    return length


def _rollout_state(snapshot: Snapshot, model: str) -> str:
    stable, progressing, paused = ROLLOUT_STATES
    if model in snapshot.paused:
        return paused
    arms = sum(1 for (name, _), weight in snapshot.weights.items() if name == model and weight)
    return progressing if arms > 1 else stable


def _routes(snapshot: Snapshot) -> Iterator[Metric]:
    weight = GaugeMetricFamily(
        "modelyard_route_weight", "Share of the route, in basis points of 10000.", labels=["model", "version"]
    )
    for model, version in sorted({*snapshot.versions, *snapshot.weights}):
        weight.add_metric([model, version], snapshot.weights.get((model, version), 0))
    revision = GaugeMetricFamily("modelyard_route_revision", "Revision of the current route.", labels=["model"])
    rollout = GaugeMetricFamily(
        "modelyard_rollout_state", "1 for the state that the model's route is in.", labels=["model", "state"]
    )
    for model, number in snapshot.revisions.items():
        revision.add_metric([model], number)
        current = _rollout_state(snapshot, model)
        for state in ROLLOUT_STATES:
            rollout.add_metric([model, state], float(state == current))
    speed = GaugeMetricFamily(
        "modelyard_tokens_per_second", "Completion tokens per second over the last minute.", labels=["model", "version"]
    )
    for model, version in sorted({*snapshot.versions, *snapshot.rates}):
        rates = snapshot.rates.get((model, version))
        speed.add_metric([model, version], rates.tokens_per_second if rates else 0.0)
    yield from (weight, revision, rollout, speed)
    yield _gauge("modelyard_table_generation", "Routing table last published.", snapshot.generation)
