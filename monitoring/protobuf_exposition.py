"""Prometheus' protobuf exposition, the one form that carries native histograms: delimited MetricFamily messages.

Owns: the bytes of those messages. Never: I/O, which form a scraper gets (exposition).

Written by hand, as the few messages take less than their library (`protobuf`, which is not in the base set): the
fields of io.prometheus.client.MetricFamily and what is in it, by number. The test reads them back with the library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar, Sample

from monitoring.exponential import SCHEMA, ZERO_THRESHOLD, Sparse

CONTENT_TYPE: Final = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
_COUNTER, _GAUGE, _UNTYPED, _HISTOGRAM = 0, 1, 3, 4
_VALUE_FIELD: Final = {_COUNTER: 3, _GAUGE: 2, _UNTYPED: 5}

LabelValues = tuple[str, ...]


class NativeHistogramFamily(HistogramMetricFamily):
    """A histogram family that knows its series' native histograms too; text forms show the classic buckets alone."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str]) -> None:
        super().__init__(name, documentation, labels=labels)
        self.label_names = tuple(labels)
        self.native: dict[LabelValues, Sparse] = {}


def encode(families: Iterable[Metric]) -> bytes:
    """The exposition. Gauges, counters and histograms keep their type, others become untyped."""
    return b"".join(_delimited(message) for family in families for message in _messages(family))


def _messages(family: Metric) -> Iterable[bytes]:
    """One message per name that Prometheus stores: a counter's has `_total`."""
    if family.type == "histogram":
        yield _family(family.name, family.documentation, _HISTOGRAM, _histogram_metrics(family))
        return
    kind = {"counter": _COUNTER, "gauge": _GAUGE}.get(family.type, _UNTYPED)
    for name in dict.fromkeys(sample.name for sample in family.samples):
        metrics = [_simple(sample, kind) for sample in family.samples if sample.name == name]
        yield _family(name, family.documentation, kind, metrics)


def _family(name: str, documentation: str, kind: int, metrics: Iterable[bytes]) -> bytes:
    head = _text(1, name) + _text(2, documentation) + _number(3, kind)
    return head + b"".join(_message(4, metric) for metric in metrics)


def _simple(sample: Sample, kind: int) -> bytes:
    value = _double(1, sample.value)
    if kind == _COUNTER and sample.exemplar is not None:
        value += _message(2, _exemplar(sample.exemplar))
    return _labels(sample.labels) + _message(_VALUE_FIELD[kind], value)


def _histogram_metrics(family: Metric) -> Iterable[bytes]:
    """One metric per label set; with its native histogram where the family has one."""
    series: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in family.samples:
        labels = tuple((name, value) for name, value in sample.labels.items() if name != "le")
        series.setdefault(labels, []).append(sample)
    native = family.native if isinstance(family, NativeHistogramFamily) else {}
    names = family.label_names if isinstance(family, NativeHistogramFamily) else ()
    for labels, samples in series.items():
        found = dict(labels)
        yield _labels(found) + _message(7, _histogram(samples, native.get(tuple(found[name] for name in names))))


def _histogram(samples: Sequence[Sample], native: Sparse | None) -> bytes:
    """Classic buckets but the last (which is the count), then the native histogram.

    A native histogram is one series, for which Prometheus takes exemplars in the order of time alone: it gets the last.
    """
    buckets = [sample for sample in samples if sample.name.endswith("_bucket")]
    exemplars = [sample.exemplar for sample in buckets if sample.exemplar is not None]
    if native is not None:
        exemplars = sorted(exemplars, key=lambda one: float(one.timestamp or 0))[-1:]
    count = next((sample.value for sample in samples if sample.name.endswith("_count")), 0)
    total = next((sample.value for sample in samples if sample.name.endswith("_sum")), 0.0)
    body = _number(1, int(count)) + _double(2, total)
    for sample in buckets:
        shown = _message(3, _exemplar(sample.exemplar)) if sample.exemplar in exemplars and sample.exemplar else b""
        if sample.labels["le"] != "+Inf" or shown:
            body += _message(3, _number(1, int(sample.value)) + _double(2, float(sample.labels["le"])) + shown)
    return body + (_native(native) if native is not None else b"")


def _native(native: Sparse) -> bytes:
    spans = b"".join(_message(12, _number(1, _zigzag(offset)) + _number(2, length)) for offset, length in native.spans)
    deltas = b"".join(_varint(_zigzag(delta)) for delta in native.deltas)
    head = _number(5, _zigzag(SCHEMA)) + _double(6, ZERO_THRESHOLD) + _number(7, native.zero_count)
    return head + spans + (_message(13, deltas) if deltas else b"")


def _exemplar(exemplar: Exemplar) -> bytes:
    at = float(exemplar.timestamp or 0.0)
    stamp = _number(1, int(at)) + _number(2, int((at - int(at)) * 1e9))
    return _labels(exemplar.labels) + _double(2, exemplar.value) + (_message(3, stamp) if at else b"")


def _labels(labels: Mapping[str, str]) -> bytes:
    return b"".join(_message(1, _text(1, name) + _text(2, value)) for name, value in labels.items())


def _zigzag(value: int) -> int:
    """A signed number as the wire has it: small ones stay small."""
    return value * 2 if value >= 0 else -value * 2 - 1


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _delimited(body)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _delimited(body: bytes) -> bytes:
    return _varint(len(body)) + body
