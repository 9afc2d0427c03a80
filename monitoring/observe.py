"""What a finished request counts as: counters, histograms and the interval on a device.

Owns: the names, labels and bucket bounds of everything that is counted from records. Never: I/O, clocks, SQL.

The results go into the ledger in the transaction that also moves the segment's offset, so that a request is counted
once; `monitoring.metrics` shows the ledger's totals.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from registry.entries import CounterKey, HistogramDelta, HistogramKey, Interval
from registry.usage import RequestRecord

ENDPOINTS: Final = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/score",
        "/v1/messages",
        "/v1/models",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/audio/speech",
        "/tokenize",
        "/detokenize",
    }
)
"""The label values of `endpoint`; every other path is `other`."""

OUTCOMES: Final = ("completed", "client_error", "failed", "cancelled", "truncated", "rejected")
"""The label values of `outcome`: those of a record, with the engine's own 4xx answers (`client_error`) apart from the
completed requests. Only `completed` is a success; `failed` and `truncated` are the service's fault."""

REQUESTS: Final = "modelyard_requests_total"
PROMPT_TOKENS: Final = "modelyard_prompt_tokens_total"
CACHED_TOKENS: Final = "modelyard_prompt_cached_tokens_total"
COMPLETION_TOKENS: Final = "modelyard_completion_tokens_total"
ATTEMPTS: Final = "modelyard_upstream_attempts_total"
FALLBACKS: Final = "modelyard_fallbacks_total"
PHASE_SECONDS: Final = "modelyard_phase_seconds_total"
PHASE_TOKENS: Final = "modelyard_phase_tokens_total"

DURATION: Final = "modelyard_request_duration_seconds"
TTFT: Final = "modelyard_time_to_first_token_seconds"
ITL: Final = "modelyard_inter_token_latency_seconds"
STREAM_GAP_MAX: Final = "modelyard_stream_gap_max_seconds"
OVERHEAD: Final = "modelyard_router_overhead_seconds"

COUNTER_LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    REQUESTS: ("model", "version", "endpoint", "outcome"),
    PROMPT_TOKENS: ("model", "version", "source"),
    CACHED_TOKENS: ("model", "version"),
    COMPLETION_TOKENS: ("model", "version", "source"),
    ATTEMPTS: ("model", "version"),
    FALLBACKS: ("model", "version"),
    PHASE_SECONDS: ("model", "version", "phase"),
    PHASE_TOKENS: ("model", "version", "phase"),
}
HISTOGRAM_LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    DURATION: ("model", "version", "endpoint"),
    TTFT: ("model", "version"),
    ITL: ("model", "version"),
    STREAM_GAP_MAX: ("model", "version"),
    OVERHEAD: ("endpoint",),
}

REQUEST_BOUNDS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
FIRST_TOKEN_BOUNDS_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0),
    *(1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0),
)
TOKEN_BOUNDS_S: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
OVERHEAD_BOUNDS_S: Final = (25e-6, 50e-6, 75e-6, 100e-6, 150e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3, 0.25)

BOUNDS: Final[Mapping[str, tuple[float, ...]]] = {
    "request.1": REQUEST_BOUNDS_S,
    "first_token.1": FIRST_TOKEN_BOUNDS_S,
    "token.1": TOKEN_BOUNDS_S,
    "overhead.1": OVERHEAD_BOUNDS_S,
}
"""Bucket bounds in seconds by name. A changed bound gets a new name, so that old totals keep their meaning."""

HISTOGRAM_BOUNDS: Final[Mapping[str, str]] = {
    DURATION: "request.1",
    TTFT: "first_token.1",
    ITL: "token.1",
    STREAM_GAP_MAX: "token.1",
    OVERHEAD: "overhead.1",
}

Deltas = tuple[dict[CounterKey, float], dict[HistogramKey, HistogramDelta]]


def outcome_class(record: RequestRecord) -> str:
    """The value of `outcome` in metrics and on bills: one of OUTCOMES."""
    if record.outcome == "completed" and record.status >= 400:
        return "client_error"
    return record.outcome


def endpoint_label(endpoint: str) -> str:
    """`endpoint` where the contract has it, `other` otherwise: scanners cannot add series."""
    return endpoint if endpoint in ENDPOINTS else "other"


def observe(records: Sequence[RequestRecord]) -> Deltas:
    """The changes that `records` make to counters and histograms.

    - duration: completed requests, arrival to last byte.
    - time to first token: streams, arrival in full to the first content event; for a reasoning model that is its first
      reasoning token.
    - inter-token latency: streams; a stream's mean gap (last - first) / (events - 1) counts once per gap, so that
      sum / count is the true mean gap; the longest gap of each stream is in `stream_gap_max`.
    - router overhead: requests that were handed to an engine.
    - phase seconds and tokens: streams with usage; prefill is first token - dispatch over the uncached prompt tokens,
      decode is last - first token over the tokens after the first. `monitoring.cost` prices tokens by them.
    """
    counters: defaultdict[CounterKey, float] = defaultdict(float)
    histograms = _Histograms()
    for record in records:
        _count(record, counters)
        _measure(record, histograms)
    return dict(counters), histograms.deltas()


def intervals(records: Sequence[RequestRecord], device_of: Callable[[str], str | None]) -> list[Interval]:
    """The time of each record on a device, from its hand-over to the engine until its end.

    `device_of` names the device of a replica (None: not one of ours, e.g. an external engine; such a request takes no
    device time). Requests that no engine saw have no interval.
    """
    found: list[Interval] = []
    for record in records:
        if record.dispatched_s <= 0 or not record.version or record.duration_s <= record.dispatched_s:
            continue
        device = device_of(record.replica)
        if device is not None:
            start = record.started_at + record.dispatched_s
            version = f"{record.model}@{record.version}"
            found.append(Interval(device, version, outcome_class(record), start, record.ended_at))
    return found


def _count(record: RequestRecord, counters: defaultdict[CounterKey, float]) -> None:
    owner = (record.model, record.version)
    counters[CounterKey(REQUESTS, (*owner, endpoint_label(record.endpoint), outcome_class(record)))] += 1
    if record.attempts:
        counters[CounterKey(ATTEMPTS, owner)] += record.attempts
    if record.assigned and record.version and record.assigned != record.version:
        counters[CounterKey(FALLBACKS, owner)] += 1
    if record.usage_source != "none":
        counters[CounterKey(PROMPT_TOKENS, (*owner, record.usage_source))] += record.prompt_tokens
        counters[CounterKey(COMPLETION_TOKENS, (*owner, record.usage_source))] += record.completion_tokens
        counters[CounterKey(CACHED_TOKENS, owner)] += record.cached_tokens
    if record.first_token_s > record.dispatched_s > 0 and record.usage_source == "engine":
        uncached = max(0, record.prompt_tokens - record.cached_tokens)
        counters[CounterKey(PHASE_SECONDS, (*owner, "prefill"))] += record.first_token_s - record.dispatched_s
        counters[CounterKey(PHASE_TOKENS, (*owner, "prefill"))] += uncached
        counters[CounterKey(PHASE_SECONDS, (*owner, "decode"))] += max(0.0, record.last_token_s - record.first_token_s)
        counters[CounterKey(PHASE_TOKENS, (*owner, "decode"))] += max(0, record.completion_tokens - 1)


def _measure(record: RequestRecord, histograms: _Histograms) -> None:
    owner = (record.model, record.version)
    endpoint = endpoint_label(record.endpoint)
    if record.dispatched_s > 0:
        histograms.add(OVERHEAD, (endpoint,), record.overhead_s)
    if record.outcome == "completed" and record.status < 400:
        histograms.add(DURATION, (*owner, endpoint), record.duration_s)
    if record.streamed and record.first_token_s > 0:
        histograms.add(TTFT, owner, record.first_token_s)
        gap_s = mean_gap_s(record)
        if gap_s is not None:
            histograms.add(ITL, owner, gap_s, times=record.events - 1)
            histograms.add(STREAM_GAP_MAX, owner, record.gap_max_s)


def mean_gap_s(record: RequestRecord) -> float | None:
    """The mean wait between two content events of a stream; None where there were fewer than two."""
    if record.events < 2 or record.last_token_s < record.first_token_s:
        return None
    return (record.last_token_s - record.first_token_s) / (record.events - 1)


class _Histograms:
    """Accumulates observations: an upper bound is inclusive, as Prometheus has it."""

    def __init__(self) -> None:
        self._counts: dict[HistogramKey, list[int]] = {}
        self._sums: defaultdict[HistogramKey, float] = defaultdict(float)

    def add(self, name: str, labels: tuple[str, ...], value: float, times: int = 1) -> None:
        bounds_name = HISTOGRAM_BOUNDS[name]
        bounds = BOUNDS[bounds_name]
        key = HistogramKey(name, labels, bounds_name)
        counts = self._counts.setdefault(key, [0] * (len(bounds) + 1))
        counts[bisect_left(bounds, value)] += times
        self._sums[key] += value * times

    def deltas(self) -> dict[HistogramKey, HistogramDelta]:
        return {key: HistogramDelta(tuple(counts), self._sums[key]) for key, counts in self._counts.items()}
