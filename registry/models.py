"""The nouns of Modelyard as immutable values: model, version, alias, route, allocation, audit entry.

Owns: the shape and the validity of names and of routes. Never: I/O, clocks, randomness, SQL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from registry.manifest import Manifest

BUCKETS: Final = 10_000
"""A route divides its keys into this many buckets; one bucket is one basis point of traffic."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class InvalidNameError(ValueError):
    """A model, version or alias name that cannot be used in a URL, a header and a metric label alike."""


def check_name(kind: str, name: str) -> str:
    """Return `name` if it may name a `kind` ("model", "version", "alias"); raise InvalidNameError otherwise."""
    if not _NAME.fullmatch(name):
        raise InvalidNameError(
            f"{kind} name {name!r} is not usable: 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    return name


@dataclass(frozen=True, slots=True)
class VersionRef:
    """`assistant@v2`: a model and, where one is pinned, the label or alias after the `@` ("" where none is)."""

    model: str
    label: str = ""

    @classmethod
    def parse(cls, text: str) -> VersionRef:
        model, _, label = text.partition("@")
        check_name("model", model)
        if label or text.endswith("@"):
            check_name("version", label)
        return cls(model, label)

    def __str__(self) -> str:
        return f"{self.model}@{self.label}" if self.label else self.model


@dataclass(frozen=True, slots=True)
class Version:
    """One registered version: its immutable manifest, and who registered it when."""

    model: str
    label: str
    manifest: Manifest
    digest: str
    author: str
    created_at: float
    """Unix seconds."""
    retired_at: float | None = None

    @property
    def ref(self) -> VersionRef:
        return VersionRef(self.model, self.label)


@dataclass(frozen=True, slots=True)
class Alias:
    """A movable pointer to a version of the same model, e.g. `champion`."""

    model: str
    name: str
    label: str
    updated_at: float
    updated_by: str


@dataclass(frozen=True, slots=True)
class Span:
    """Buckets `start` to `stop` - 1 belong to the version `label`."""

    start: int
    stop: int
    label: str


Allocation = tuple[Span, ...]
"""Spans in ascending order that cover 0 to BUCKETS without gap or overlap."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition on a request: any of `values` does."""

    kind: str
    """`header`, `metadata`, `key` (its id) or `user`."""
    name: str
    """Of the header, or of the entry in the body's `metadata`; "" for the other kinds."""
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RouteSegment:
    """Requests that meet every condition, and the arms that they go by in place of the route's."""

    name: str
    when: tuple[Condition, ...]
    weights: Mapping[str, int]
    """As a route's."""
    allocation: Allocation


@dataclass(frozen=True, slots=True)
class ShadowArm:
    """A version that gets copies of requests and whose answers nobody sees."""

    label: str
    sample: int
    """Basis points of the model's requests."""
    inflight_max: int
    """Copies in flight per worker."""
    engine_seconds_per_hour: float
    """In-flight seconds per hour and worker; 0 for no bound."""


@dataclass(frozen=True, slots=True)
class Route:
    """How a model's traffic is divided: one revision of it. Revisions are kept, so that any can be returned to."""

    model: str
    revision: int
    weights: Mapping[str, int]
    """Version label -> basis points; sums to BUCKETS. The first one listed is the stable arm."""
    allocation: Allocation
    salt: str
    """Hex; keys the hash of sticky keys. Fixed for the life of the model, so that keys keep their bucket."""
    sticky: tuple[str, ...] = ("header:x-session-id", "body:user")
    """Where the sticky key is looked for, first hit wins: `header:NAME`, `body:user`."""
    fallback: tuple[str, ...] = ()
    """Version labels that take over, in order, where the assigned arm cannot answer."""
    segments: tuple[RouteSegment, ...] = ()
    """The first that matches a request decides."""
    shadows: tuple[ShadowArm, ...] = ()
    restores: int | None = None
    """The revision whose weights a rollback brought back."""
    created_at: float = 0.0
    created_by: str = ""


REASON_LENGTH_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class Pause:
    """A route that is held where it is: its weights change by a rollback or by force only."""

    model: str
    reason: str
    """In the words of who paused it, one line; "" where they gave none."""
    paused_at: float
    """Unix seconds."""
    paused_by: str

    def check(self) -> Pause:
        """Itself; raises ValueError for a reason that is no line of at most REASON_LENGTH_MAX characters."""
        if len(self.reason) > REASON_LENGTH_MAX or any(not character.isprintable() for character in self.reason):
            raise ValueError(f"the reason for a pause is one line of at most {REASON_LENGTH_MAX} characters")
        return self


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what to which thing, when, and the values before and after. Append-only."""

    id: int
    at: float
    actor: str
    action: str
    """`version.register`, `version.retire`, `alias.set`, `route.set`, `route.rollback`, `route.pause`, …"""
    subject: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = field(default=None)


def check_weights(weights: Mapping[str, int]) -> Mapping[str, int]:
    """Return `weights` if every one is in 0..BUCKETS and they sum to BUCKETS; raise ValueError otherwise."""
    for label, weight in weights.items():
        check_name("version", label)
        if not 0 <= weight <= BUCKETS:
            raise ValueError(f"weight of {label} is {weight}: it must lie between 0 and {BUCKETS} basis points")
    total = sum(weights.values())
    if total != BUCKETS:
        raise ValueError(f"weights sum to {total}: they must sum to {BUCKETS} basis points (100%)")
    return weights
