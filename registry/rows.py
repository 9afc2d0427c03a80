"""Rows of the registry's tables as the immutable values of registry.models, and back.

Owns: the encoding of a route's parts as JSON. Never: queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row

from registry.manifest import decode
from registry.models import Alias, Allocation, Condition, Route, RouteSegment, ShadowArm, Span, Version


def _weights_value(weights: Mapping[str, int]) -> list[list[Any]]:
    return [[label, weight] for label, weight in weights.items()]  # a list: JSON objects lose their order


def _allocation_value(allocation: Allocation) -> list[list[Any]]:
    return [[span.start, span.stop, span.label] for span in allocation]


def _to_allocation(value: list[list[Any]]) -> Allocation:
    return tuple(Span(start, stop, label) for start, stop, label in value)


def to_version(row: Row[Any]) -> Version:
    return Version(
        model=row.model,
        label=row.label,
        manifest=decode(row.manifest),
        digest=row.digest,
        author=row.author,
        created_at=row.created_at,
        retired_at=row.retired_at,
    )


def to_alias(row: Row[Any]) -> Alias:
    return Alias(**row._mapping)


def route_values(route: Route) -> dict[str, Any]:
    return {
        "model": route.model,
        "revision": route.revision,
        "weights": _weights_value(route.weights),
        "allocation": _allocation_value(route.allocation),
        "sticky": list(route.sticky),
        "fallback": list(route.fallback),
        "segments": [
            {
                "name": segment.name,
                "when": [[one.kind, one.name, list(one.values)] for one in segment.when],
                "weights": _weights_value(segment.weights),
                "allocation": _allocation_value(segment.allocation),
            }
            for segment in route.segments
        ],
        "shadows": [asdict(shadow) for shadow in route.shadows],
        "restores": route.restores,
        "created_at": route.created_at,
        "created_by": route.created_by,
    }


def to_route(row: Row[Any]) -> Route:
    return Route(
        model=row.model,
        revision=row.revision,
        weights=dict(row.weights),
        allocation=_to_allocation(row.allocation),
        salt=row.salt,
        sticky=tuple(row.sticky),
        fallback=tuple(row.fallback),
        segments=tuple(
            RouteSegment(
                name=segment["name"],
                when=tuple(Condition(kind, name, tuple(values)) for kind, name, values in segment["when"]),
                weights=dict(segment["weights"]),
                allocation=_to_allocation(segment["allocation"]),
            )
            for segment in row.segments
        ),
        shadows=tuple(ShadowArm(**shadow) for shadow in row.shadows),
        restores=row.restores,
        created_at=row.created_at,
        created_by=row.created_by,
    )
