"""Where finished requests go beside the books: the access log, spans and metrics for OpenTelemetry.

Owns: which of them there are, by the configuration in force. Never: failing a count for one that fails.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from registry.usage import RequestRecord
from serving.config import AccessLogConfig, ServerConfig, TracingConfig
from serving.control.access_log import AccessLog
from serving.control.otel_metrics import MetricExporter
from serving.control.spans import Place, SpanExporter

log = logging.getLogger("modelyard.outlets")

FILE_NAME = "access.jsonl"


class Outlets:
    """Hands the records of each committed step on. Blocking: `configure`, `take` and `close` run in threads."""

    def __init__(self, root: Path, *, version: str) -> None:
        self._root = root
        self._version = version
        self._lock = threading.Lock()
        self._wanted: tuple[AccessLogConfig | None, TracingConfig | None, Path] | None = None
        self.access_log: AccessLog | None = None
        self.spans: SpanExporter | None = None
        self.metrics: MetricExporter | None = None

    def configure(self, server: ServerConfig, base: Path) -> Callable[[], None]:
        """Make ready what the configuration wants; what is returned puts it in force. `base` is what paths are relative
        to. Raises NotThereError for a library that is missing, and then all is as it was."""
        wanted = (server.access_log, server.tracing, base)
        if wanted == self._wanted:
            return lambda: None
        access_log = self._access_log(server.access_log, base) if server.access_log is not None else None
        spans, metrics = self._exporters(server)

        def put_in_force() -> None:
            with self._lock:
                before, self._wanted = (self.access_log, self.spans, self.metrics), wanted
                self.access_log, self.spans, self.metrics = access_log, spans, metrics
            if before[0] is not None:
                before[0].close()
            for old, new in ((before[1], spans), (before[2], metrics)):
                if old is not None and old is not new:
                    old.close()

        return put_in_force

    def take(self, records: Sequence[RequestRecord]) -> None:
        """Records that were counted. Raises nothing."""
        if self.access_log is None and self.spans is None and self.metrics is None:
            return
        with self._lock:
            try:
                if self.access_log is not None:
                    self.access_log.write(records)
                if self.spans is not None:
                    self.spans.take(records)
                if self.metrics is not None:
                    self.metrics.take(records)
            except Exception:
                log.exception("%d finished requests are in no log", len(records))

    def close(self) -> None:
        with self._lock:
            if self.access_log is not None:
                self.access_log.close()
            if self.spans is not None:
                self.spans.close()
            if self.metrics is not None:
                self.metrics.close()
            self.access_log = self.spans = self.metrics = None
            self._wanted = None

    def _exporters(self, server: ServerConfig) -> tuple[SpanExporter | None, MetricExporter | None]:
        """Those that the configuration wants; one that goes on to the same receiver stays."""
        tracing, spans, metrics = server.tracing, self.spans, self.metrics
        if tracing is None:
            return None, None
        place = Place(server.host, server.port)
        if spans is None or spans.endpoint != tracing.endpoint:
            spans = SpanExporter(tracing.endpoint, version=self._version, place=place)
        if not tracing.metrics:
            metrics = None
        elif metrics is None or metrics.endpoint != tracing.endpoint:
            metrics = MetricExporter(tracing.endpoint, version=self._version, place=place)
        return spans, metrics

    def _access_log(self, config: AccessLogConfig, base: Path) -> AccessLog:
        path = base / Path(config.path).expanduser() if config.path else self._root / FILE_NAME
        return AccessLog(path, sample=config.sample, bytes_max=config.bytes_max, redact=config.redact)
