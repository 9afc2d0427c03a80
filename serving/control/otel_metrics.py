"""Metrics for OpenTelemetry by the GenAI conventions, made from the records of finished requests, over OTLP/HTTP.

Owns: the instruments, their bounds and attributes, the thread that fills and exports them. Never: holding up anybody,
unbounded attributes. Totals are of this process (cumulative since its start), so an export that fails loses nothing.

OpenTelemetry is imported when it is configured, not before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from monitoring.observe import endpoint_label
from registry.usage import RequestRecord
from serving.control.spans import PAUSE_S, STOP_S, TIMEOUT_S, Place, error_type, missing, operation_of

log = logging.getLogger("modelyard.otel_metrics")

INTERVAL_S: Final = 10.0
QUEUE_MAX: Final = 65_536

TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105 - no secret
OPERATION_DURATION: Final = "gen_ai.client.operation.duration"
FIRST_TOKEN: Final = "gen_ai.server.time_to_first_token"  # noqa: S105 - no secret
PER_TOKEN: Final = "gen_ai.server.time_per_output_token"  # noqa: S105 - no secret

INSTRUMENTS: Final[Mapping[str, tuple[str, str, tuple[float, ...]]]] = {
    TOKEN_USAGE: ("{token}", "Number of input and output tokens used.", tuple(4.0**n for n in range(14))),
    OPERATION_DURATION: ("s", "Duration of an operation.", tuple(0.01 * 2**n for n in range(14))),
    FIRST_TOKEN: (
        "s",
        "Time to the first token of a successful streamed response.",
        (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    ),
    PER_TOKEN: (
        "s",
        "Time per output token after the first one of a successful streamed response.",
        (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    ),
}
"""Name -> unit, description, and the bucket bounds that the conventions name for it."""

Attributes = dict[str, str | int]


class MetricExporter:
    """Takes records and exports their totals every `interval_s`, on a thread of its own.

    Raises NotThereError where OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, *, version: str, place: Place, interval_s: float = INTERVAL_S) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
            from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
            from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415
            from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View  # noqa: PLC0415
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        except ImportError:
            raise missing() from None
        self.endpoint = endpoint
        self.place = place
        self._interval_s = interval_s
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider(
            [self._reader],
            Resource.create({"service.name": "modelyard", "service.version": version}),
            shutdown_on_exit=False,
            views=[
                View(instrument_name=name, aggregation=ExplicitBucketHistogramAggregation(bounds))
                for name, (_, _, bounds) in INSTRUMENTS.items()
            ],
        )
        meter = self._provider.get_meter("modelyard", version)
        self._histograms = {
            name: meter.create_histogram(name, unit=unit, description=text)
            for name, (unit, text, _) in INSTRUMENTS.items()
        }
        self._exporter = OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics", timeout=TIMEOUT_S)
        self._queue: deque[RequestRecord] = deque(maxlen=QUEUE_MAX)
        self._stop = threading.Event()
        self.exported = 0
        """Times that the receiver took the totals."""
        self.problem = ""
        """Why it did not take them last; "" where it did."""
        self._thread: threading.Thread | None = None

    def take(self, records: Sequence[RequestRecord]) -> None:
        """Queue the records. Never waits; where the queue is full, the oldest go uncounted."""
        self._queue.extend(record for record in records if not record.shadow_of)
        if self._queue and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="otel metrics", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Count and export what waits, for at most STOP_S. Blocking."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_S)
        self._exporter.shutdown()
        self._provider.shutdown()

    def _run(self) -> None:
        due = time.monotonic() + self._interval_s
        while not self._stop.wait(min(PAUSE_S, self._interval_s)):
            self._count()
            if time.monotonic() >= due:
                due = time.monotonic() + self._interval_s
                self._export()
        self._count()
        self._export()

    def _count(self) -> None:
        while self._queue:
            for name, value, attributes in measurements(self._queue.popleft(), self.place):
                self._histograms[name].record(value, attributes)

    def _export(self) -> None:
        data = self._reader.get_metrics_data()
        if data is None:
            return
        try:
            done = self._exporter.export(data).name == "SUCCESS"
        except Exception:
            log.exception("metrics could not be exported")
            done = False
        if done:
            self.exported += 1
        elif not self.problem:
            log.warning("%s takes no metrics: its totals go there once it does", self.endpoint)
        self.problem = "" if done else f"{self.endpoint} takes no metrics"


def measurements(record: RequestRecord, place: Place) -> Iterator[tuple[str, float, Attributes]]:
    """Instrument, value and attributes of what one request is measured as.

    Requests that the router refused have a duration and an error. Times of tokens are those of streams that ended well:
    per token it is (duration - first token) / (tokens - 1), as the conventions have it.
    """
    common: Attributes = {
        "gen_ai.operation.name": operation_of(endpoint_label(record.endpoint)),
        "gen_ai.provider.name": "modelyard",
        **place.attributes(),
    }
    if record.model:
        common["gen_ai.request.model"] = record.model
    if record.version:
        common["gen_ai.response.model"] = f"{record.model}@{record.version}"
    error = error_type(record)
    yield OPERATION_DURATION, record.duration_s, {**common, "error.type": error} if error else common
    if record.usage_source != "none":
        yield TOKEN_USAGE, record.prompt_tokens, {**common, "gen_ai.token.type": "input"}
        yield TOKEN_USAGE, record.completion_tokens, {**common, "gen_ai.token.type": "output"}
    if record.streamed and record.first_token_s > 0 and not error:
        yield FIRST_TOKEN, record.first_token_s, common
        if record.completion_tokens > 1:
            yield PER_TOKEN, (record.duration_s - record.first_token_s) / (record.completion_tokens - 1), common
