"""Prometheus' client model (io.prometheus.client), described to the `protobuf` library for tests to decode with."""

from __future__ import annotations

import importlib.util
from typing import Any

from components import missing


def family_class() -> Any:
    """The class MetricFamily. Skips where `protobuf` is not installed (it comes with the extra `otel`)."""
    if importlib.util.find_spec("google.protobuf") is None:
        missing("protobuf", "pip install '.[otel]'")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", package="io.prometheus.client", syntax="proto3")
    kind = file.enum_type.add(name="MetricType")
    for number, name in enumerate(("COUNTER", "GAUGE", "SUMMARY", "UNTYPED", "HISTOGRAM", "GAUGE_HISTOGRAM")):
        kind.value.add(name=name, number=number)
    messages = {
        "Timestamp": {"seconds": (1, "INT64"), "nanos": (2, "INT32")},
        "LabelPair": {"name": (1, "STRING"), "value": (2, "STRING")},
        "Exemplar": {"label": (1, "*LabelPair"), "value": (2, "DOUBLE"), "timestamp": (3, "Timestamp")},
        "Gauge": {"value": (1, "DOUBLE")},
        "Counter": {"value": (1, "DOUBLE"), "exemplar": (2, "Exemplar")},
        "Untyped": {"value": (1, "DOUBLE")},
        "Bucket": {"cumulative_count": (1, "UINT64"), "upper_bound": (2, "DOUBLE"), "exemplar": (3, "Exemplar")},
        "BucketSpan": {"offset": (1, "SINT32"), "length": (2, "UINT32")},
        "Histogram": {
            "sample_count": (1, "UINT64"),
            "sample_sum": (2, "DOUBLE"),
            "bucket": (3, "*Bucket"),
            "schema": (5, "SINT32"),
            "zero_threshold": (6, "DOUBLE"),
            "zero_count": (7, "UINT64"),
            "positive_span": (12, "*BucketSpan"),
            "positive_delta": (13, "*SINT64"),
        },
        "Metric": {
            "label": (1, "*LabelPair"),
            "gauge": (2, "Gauge"),
            "counter": (3, "Counter"),
            "untyped": (5, "Untyped"),
            "histogram": (7, "Histogram"),
        },
        "MetricFamily": {
            "name": (1, "STRING"),
            "help": (2, "STRING"),
            "type": (3, "MetricType"),
            "metric": (4, "*Metric"),
        },
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, (number, said) in fields.items():
            described = message.field.add(name=field, number=number, label=kinds.LABEL_OPTIONAL)
            if said.startswith("*"):
                described.label = kinds.LABEL_REPEATED
            kind_name = said.removeprefix("*")
            if kind_name in messages or kind_name == "MetricType":
                described.type = kinds.TYPE_ENUM if kind_name == "MetricType" else kinds.TYPE_MESSAGE
                described.type_name = f".io.prometheus.client.{kind_name}"
            else:
                described.type = getattr(kinds, f"TYPE_{kind_name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("io.prometheus.client.MetricFamily"))


def decode(body: bytes) -> list[Any]:
    """The families of a delimited exposition; raises where a byte is left over or a field is unknown."""
    made, found, place = family_class(), [], 0
    while place < len(body):
        size = shift = 0
        while True:
            byte = body[place]
            place += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
        assert place + size <= len(body)
        family = made.FromString(body[place : place + size])
        assert len(family.SerializeToString()) <= size
        found.append(family)
        place += size
    return found


def buckets(histogram: Any) -> dict[int, int]:
    """Index of a native bucket -> its count."""
    found: dict[int, int] = {}
    deltas = iter(histogram.positive_delta)
    index = count = 0
    for span in histogram.positive_span:
        index += span.offset
        for _ in range(span.length):
            count += next(deltas)
            found[index] = count
            index += 1
    assert next(deltas, None) is None
    return found
