"""In which form a scraper gets the metrics: text, OpenMetrics (with exemplars) or protobuf (native histograms too).

Owns: reading the Accept header. Never: the metrics, HTTP.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from monitoring.protobuf_exposition import CONTENT_TYPE, encode

PROTOBUF = ("application/vnd.google.protobuf", "io.prometheus.client.MetricFamily", "delimited")


def render(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The exposition and its content type, by the scraper's Accept header ("" for the plain text).

    Protobuf only where it is asked for by its full name and nothing else is preferred; blocking.
    """
    if _prefers_protobuf(accept):
        return encode(registry.collect()), CONTENT_TYPE
    make, content_type = choose_encoder(accept)
    return make(registry), content_type


def _prefers_protobuf(accept: str) -> bool:
    best, protobuf = 0.0, 0.0
    for offer in accept.split(","):
        kind, *parameters = (part.strip() for part in offer.split(";"))
        said = dict(part.split("=", 1) for part in parameters if "=" in part)
        try:
            quality = float(said.get("q", "1"))
        except ValueError:
            quality = 0.0
        best = max(best, quality)
        if (kind.lower(), said.get("proto"), said.get("encoding")) == PROTOBUF:
            protobuf = max(protobuf, quality)
    return protobuf > 0 and protobuf >= best
