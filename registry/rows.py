"""Rows of the registry's tables as the immutable values of registry.models, and back.

Owns: the encoding of a route's parts as JSON. Never: queries.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from registry.manifest import decode
from registry.models import Alias, Route, Span, Version


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
        "weights": [
            [label, weight] for label, weight in route.weights.items()
        ],  # a list: JSON objects lose their order
        "allocation": [[span.start, span.stop, span.label] for span in route.allocation],
        "sticky": list(route.sticky),
        "fallback": list(route.fallback),
        "restores": route.restores,
        "created_at": route.created_at,
        "created_by": route.created_by,
    }


def to_route(row: Row[Any]) -> Route:
    return Route(
        model=row.model,
        revision=row.revision,
        weights=dict(row.weights),
        allocation=tuple(Span(start, stop, label) for start, stop, label in row.allocation),
        salt=row.salt,
        sticky=tuple(row.sticky),
        fallback=tuple(row.fallback),
        restores=row.restores,
        created_at=row.created_at,
        created_by=row.created_by,
    )
