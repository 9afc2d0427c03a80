"""What a finished request counts as: counters, histograms and the interval on a device.

Owns: the names, labels and bucket bounds of everything that is counted from records. Never: I/O, clocks, SQL.

The results go into the ledger in the transaction that also moves the segment's offset, so that a request is counted
once; `monitoring.metrics` shows the ledger's totals.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import attrgetter, mul, truediv
from typing import Final

from monitoring.exponential import BOUNDS_S as EXPONENTIAL_BOUNDS_S
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

SHADOW: Final = "shadow"
"""What a bill says in place of an outcome for copies of requests (shadow arms), however they ended."""

LIMITING: Final = ("queue_full", "queue_timeout", "rate_limit_exceeded", "insufficient_quota")
"""Reasons for which a request is rejected that say something about capacity and limits."""

REJECTION_REASONS: Final = frozenset(
    {
        *LIMITING,
        "invalid_api_key",
        "invalid_form",
        "invalid_json",
        "invalid_priority",
        "invalid_type",
        "malformed_http",
        "method_not_allowed",
        "missing_api_key",
        "missing_model",
        "missing_scope",
        "model_not_allowed",
        "model_not_found",
        "request_head_too_large",
        "request_timeout",
        "request_too_large",
        "unknown_path",
    }
)
"""The label values of `reason`; every other one is `other`."""

REQUESTS: Final = "modelyard_requests_total"
PROMPT_TOKENS: Final = "modelyard_prompt_tokens_total"
CACHED_TOKENS: Final = "modelyard_prompt_cached_tokens_total"
COMPLETION_TOKENS: Final = "modelyard_completion_tokens_total"
ATTEMPTS: Final = "modelyard_upstream_attempts_total"
FALLBACKS: Final = "modelyard_fallbacks_total"
CONTINUATIONS: Final = "modelyard_continuations_total"
DEGRADED: Final = "modelyard_degraded_answers_total"
PHASE_SECONDS: Final = "modelyard_phase_seconds_total"
PHASE_TOKENS: Final = "modelyard_phase_tokens_total"
REJECTIONS: Final = "modelyard_rejections_total"
SHADOW_REQUESTS: Final = "modelyard_shadow_requests_total"
SHADOW_PROMPT_TOKENS: Final = "modelyard_shadow_prompt_tokens_total"
SHADOW_COMPLETION_TOKENS: Final = "modelyard_shadow_completion_tokens_total"
SHADOW_SECONDS: Final = "modelyard_shadow_engine_seconds_total"

DURATION: Final = "modelyard_request_duration_seconds"
TTFT: Final = "modelyard_time_to_first_token_seconds"
ITL: Final = "modelyard_inter_token_latency_seconds"
STREAM_GAP_MAX: Final = "modelyard_stream_gap_max_seconds"
OVERHEAD: Final = "modelyard_router_overhead_seconds"
QUEUE: Final = "modelyard_queue_seconds"
SHADOW_DURATION: Final = "modelyard_shadow_request_duration_seconds"
SHADOW_TTFT: Final = "modelyard_shadow_time_to_first_token_seconds"

COUNTER_LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    REQUESTS: ("model", "version", "endpoint", "outcome"),
    PROMPT_TOKENS: ("model", "version", "source"),
    CACHED_TOKENS: ("model", "version"),
    COMPLETION_TOKENS: ("model", "version", "source"),
    ATTEMPTS: ("model", "version"),
    FALLBACKS: ("model", "version"),
    CONTINUATIONS: ("model", "version"),
    DEGRADED: ("model", "version"),
    PHASE_SECONDS: ("model", "version", "phase"),
    PHASE_TOKENS: ("model", "version", "phase"),
    REJECTIONS: ("model", "reason"),
    SHADOW_REQUESTS: ("model", "version", "outcome"),
    SHADOW_PROMPT_TOKENS: ("model", "version", "source"),
    SHADOW_COMPLETION_TOKENS: ("model", "version", "source"),
    SHADOW_SECONDS: ("model", "version"),
}
HISTOGRAM_LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    DURATION: ("model", "version", "endpoint"),
    TTFT: ("model", "version"),
    ITL: ("model", "version"),
    STREAM_GAP_MAX: ("model", "version"),
    OVERHEAD: ("endpoint",),
    QUEUE: ("model", "priority"),
    SHADOW_DURATION: ("model", "version"),
    SHADOW_TTFT: ("model", "version"),
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
QUEUE_BOUNDS_S: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)

NATIVE: Final = "exponential.3"
"""The bounds by which every histogram is counted a second time, for scrapers that take native histograms."""

BOUNDS: Final[Mapping[str, tuple[float, ...]]] = {
    NATIVE: EXPONENTIAL_BOUNDS_S,
    "request.1": REQUEST_BOUNDS_S,
    "first_token.1": FIRST_TOKEN_BOUNDS_S,
    "token.1": TOKEN_BOUNDS_S,
    "overhead.1": OVERHEAD_BOUNDS_S,
    "queue.1": QUEUE_BOUNDS_S,
}
"""Bucket bounds in seconds by name. A changed bound gets a new name, so that old totals keep their meaning."""

HISTOGRAM_BOUNDS: Final[Mapping[str, str]] = {
    DURATION: "request.1",
    TTFT: "first_token.1",
    ITL: "token.1",
    STREAM_GAP_MAX: "token.1",
    OVERHEAD: "overhead.1",
    QUEUE: "queue.1",
    SHADOW_DURATION: "request.1",
    SHADOW_TTFT: "first_token.1",
}

Deltas = tuple[dict[CounterKey, float], dict[HistogramKey, HistogramDelta]]

_alike: Final[Callable[[RequestRecord], tuple[object, ...]]] = attrgetter(
    "model", "version", "endpoint", "outcome", "status", "streamed", "usage_source", "assigned", "source"
)
"""Records that agree in these count into the same series: a batch is one pass in C per figure, not one per record."""
_shadow_of = attrgetter("shadow_of")
_attempts = attrgetter("attempts")
_continuations = attrgetter("continuations")
_prompt = attrgetter("prompt_tokens")
_completion = attrgetter("completion_tokens")
_cached = attrgetter("cached_tokens")
_duration = attrgetter("duration_s")
_first = attrgetter("first_token_s")
_gap_max = attrgetter("gap_max_s")
_priority = attrgetter("priority")


def outcome_class(record: RequestRecord) -> str:
    """The value of `outcome` in metrics and on bills: one of OUTCOMES."""
    if record.outcome == "completed" and record.status >= 400:
        return "client_error"
    return record.outcome


def billed_as(record: RequestRecord) -> str:
    """The value of `outcome` on bills: copies of requests have their own, apart from what clients asked for."""
    return SHADOW if record.shadow_of else outcome_class(record)


def endpoint_label(endpoint: str) -> str:
    """`endpoint` where the contract has it, `other` otherwise: scanners cannot add series."""
    return endpoint if endpoint in ENDPOINTS else "other"


def observe(records: Sequence[RequestRecord]) -> Deltas:
    """The changes that `records` make to counters and histograms.

    - duration: completed requests, arrival to last byte; degraded answers, which no engine gave, are left out.
    - time to first token: streams, arrival in full to the first content event; for a reasoning model that is its first
      reasoning token.
    - inter-token latency: streams; a stream's mean gap (last - first) / (events - 1) counts once per gap, so that
      sum / count is the true mean gap; the longest gap of each stream is in `stream_gap_max`.
    - router overhead: requests that were handed to an engine.
    - queue seconds: requests that asked at a model's gate, whether they were let in at once, later or not at all; those
      for which the queue was full are among the rejections alone.
    - phase seconds and tokens: streams with usage; prefill is first token - dispatch over the uncached prompt tokens,
      decode is last - first token over the tokens after the first. `monitoring.unit_costs` prices tokens so.
    - shadow_…: copies of requests (shadow arms), which are in none of the others.
    """
    counters: defaultdict[CounterKey, float] = defaultdict(float)
    histograms = _Histograms()
    if any(map(_shadow_of, records)):
        _observe_shadows([record for record in records if record.shadow_of], counters, histograms)
        records = [record for record in records if not record.shadow_of]
    groups: defaultdict[tuple[object, ...], list[RequestRecord]] = defaultdict(list)
    for kind, record in zip(map(_alike, records), records, strict=True):
        groups[kind].append(record)
    for group in groups.values():
        _count(group, counters)
        _measure(group, histograms)
    return dict(counters), histograms.deltas()


def intervals(
    records: Sequence[RequestRecord],
    device_of: Callable[[str], str | None],
    labels: Sequence[tuple[str, str]] = (),
) -> list[Interval]:
    """The time of each record on a device, from its hand-over to the engine until its end; `labels` are the key and
    segment that each one is billed to (without them: nobody's).

    `device_of` names the device of a replica (None: not one of ours, e.g. an external engine; such a request takes no
    device time). Requests that no engine saw have no interval.
    """
    found: list[Interval] = []
    devices: dict[str, str | None] = {}
    for record, label in zip(records, labels or repeat(("", "")), strict=False):
        dispatched_s, replica = record.dispatched_s, record.replica
        if dispatched_s <= 0 or not record.version or record.duration_s <= dispatched_s:
            continue
        if replica not in devices:
            devices[replica] = device_of(replica)
        device = devices[replica]
        if device is not None:
            start = record.started_at + dispatched_s
            version = f"{record.model}@{record.version}"
            found.append(Interval(device, version, billed_as(record), start, record.ended_at, *label))
    return found


def _count(group: Sequence[RequestRecord], counters: defaultdict[CounterKey, float]) -> None:
    """Count records that are alike."""
    like = group[0]
    owner = (like.model, like.version)
    counters[CounterKey(REQUESTS, (*owner, endpoint_label(like.endpoint), outcome_class(like)))] += len(group)
    if attempts := sum(map(_attempts, group)):
        counters[CounterKey(ATTEMPTS, owner)] += attempts
    if continuations := sum(map(_continuations, group)):
        counters[CounterKey(CONTINUATIONS, owner)] += continuations
    if like.assigned and like.version and like.assigned != like.version:
        counters[CounterKey(FALLBACKS, owner)] += len(group)
    if like.source == "cache":
        counters[CounterKey(DEGRADED, owner)] += len(group)
    if like.outcome == "rejected":
        for one in group:
            reason = one.error if one.error in REJECTION_REASONS else "other"
            counters[CounterKey(REJECTIONS, (like.model, reason))] += 1
    if like.usage_source != "none":
        counters[CounterKey(PROMPT_TOKENS, (*owner, like.usage_source))] += sum(map(_prompt, group))
        counters[CounterKey(COMPLETION_TOKENS, (*owner, like.usage_source))] += sum(map(_completion, group))
        counters[CounterKey(CACHED_TOKENS, owner)] += sum(map(_cached, group))
    phased = [one for one in group if one.first_token_s > one.dispatched_s > 0] if like.usage_source == "engine" else []
    if phased:
        prefill, decode = (*owner, "prefill"), (*owner, "decode")
        counters[CounterKey(PHASE_SECONDS, prefill)] += sum([one.first_token_s - one.dispatched_s for one in phased])
        counters[CounterKey(PHASE_TOKENS, prefill)] += sum(
            [max(0, one.prompt_tokens - one.cached_tokens) for one in phased]
        )
        counters[CounterKey(PHASE_SECONDS, decode)] += sum(
            [max(0.0, one.last_token_s - one.first_token_s) for one in phased]
        )
        counters[CounterKey(PHASE_TOKENS, decode)] += sum([max(0, one.completion_tokens - 1) for one in phased])


def _measure(group: Sequence[RequestRecord], histograms: _Histograms) -> None:
    """Take the times of records that are alike."""
    like = group[0]
    owner = (like.model, like.version)
    endpoint = endpoint_label(like.endpoint)
    histograms.add(OVERHEAD, (endpoint,), [one.overhead_s for one in group if one.dispatched_s > 0])
    if any(map(_priority, group)):
        asked = [one for one in group if one.priority and (one.attempts or one.queued_s)]
        for priority in {one.priority for one in asked}:
            waits = [one.queued_s for one in asked if one.priority == priority]
            histograms.add(QUEUE, (like.model, priority), waits)
    if like.outcome == "completed" and like.status < 400 and like.source == "engine":
        histograms.add(DURATION, (*owner, endpoint), list(map(_duration, group)))
    if like.streamed:
        begun = [one for one in group if one.first_token_s > 0]
        histograms.add(TTFT, owner, list(map(_first, begun)))
        flowing = [one for one in begun if one.events >= 2 and one.last_token_s >= one.first_token_s]
        gaps = [one.events - 1 for one in flowing]
        spans = [one.last_token_s - one.first_token_s for one in flowing]
        histograms.add(ITL, owner, list(map(truediv, spans, gaps)), gaps)
        histograms.add(STREAM_GAP_MAX, owner, list(map(_gap_max, flowing)))


def _observe_shadows(
    records: Sequence[RequestRecord], counters: defaultdict[CounterKey, float], histograms: _Histograms
) -> None:
    """Count copies of requests and take their times."""
    for one in records:
        owner = (one.model, one.version)
        counters[CounterKey(SHADOW_REQUESTS, (*owner, outcome_class(one)))] += 1
        if one.usage_source != "none":
            counters[CounterKey(SHADOW_PROMPT_TOKENS, (*owner, one.usage_source))] += one.prompt_tokens
            counters[CounterKey(SHADOW_COMPLETION_TOKENS, (*owner, one.usage_source))] += one.completion_tokens
        if one.dispatched_s > 0:
            counters[CounterKey(SHADOW_SECONDS, owner)] += max(0.0, one.duration_s - one.dispatched_s)
        if one.outcome == "completed" and one.status < 400:
            histograms.add(SHADOW_DURATION, owner, [one.duration_s])
        if one.streamed and one.first_token_s > 0:
            histograms.add(SHADOW_TTFT, owner, [one.first_token_s])


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

    def add(self, name: str, labels: tuple[str, ...], values: Sequence[float], times: Sequence[int] = ()) -> None:
        """Each value once, or as often as `times` says at its place."""
        if values:
            for bounds in (HISTOGRAM_BOUNDS[name], NATIVE):
                self._add(HistogramKey(name, labels, bounds), values, times)

    def _add(self, key: HistogramKey, values: Sequence[float], times: Sequence[int]) -> None:
        bounds = BOUNDS[key.bounds]
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0] * (len(bounds) + 1)
        buckets = map(bisect_left, repeat(bounds), values)
        if times:
            for bucket, count in zip(buckets, times, strict=True):
                counts[bucket] += count
            self._sums[key] += sum(map(mul, values, times))
        else:
            for bucket, count in Counter(buckets).items():
                counts[bucket] += count
            self._sums[key] += sum(values)

    def deltas(self) -> dict[HistogramKey, HistogramDelta]:
        return {key: HistogramDelta(tuple(counts), self._sums[key]) for key, counts in self._counts.items()}
