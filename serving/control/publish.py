"""The routing table out of what is registered and what runs.

Owns: `build_table` (pure) and the generation number, which only ever grows, across restarts too. Never: sockets (the
workers module has them), deciding a route.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from monitoring.sample_ratio import ModelRoute, Routing
from registry.keys import ApiKey, terms_of
from registry.models import BUCKETS, RouteSegment, ShadowArm
from serving.control.snapshot import ModelSnapshot, RegistrySnapshot
from serving.engines.base import Capabilities
from serving.router.split import arms_of
from serving.router.table import (
    ANY_NAME,
    Admission,
    Cache,
    Key,
    Limits,
    Match,
    Model,
    Replica,
    ReplicaState,
    Retry,
    Samples,
    Segment,
    Shadow,
    Table,
    Timeouts,
    Version,
)


class RunningReplica(Protocol):
    """What the table needs to know of an engine."""

    @property
    def id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def served_names(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """What the configuration, not the registry, says of a model's place in the table."""

    timeouts: Timeouts = field(default_factory=Timeouts)
    authorizations: Mapping[str, str] = field(default_factory=dict)
    """Label -> the whole Authorization header of an external engine."""
    retry: Retry = field(default_factory=Retry)
    admission: Admission = field(default_factory=Admission)
    cache: Cache = field(default_factory=Cache)
    samples: Samples = field(default_factory=Samples)
    larger_context: tuple[str, ...] = ()
    equivalent: tuple[tuple[str, ...], ...] = ()
    affinity: bool = True


def build_table(
    snapshot: RegistrySnapshot,
    replicas: Iterable[RunningReplica],
    *,
    traits: Mapping[str, ModelTraits],
    limits: Limits,
    generation: int,
    capabilities: Mapping[str, Capabilities] | None = None,
    keys: Iterable[ApiKey] = (),
    keys_required: bool = False,
) -> Table:
    """The table of the models that `traits` names: those of the configuration in force.

    1. A version is in it unless it is retired; its replicas in the order of their ids, whatever their state.
    2. The route's allocation becomes the arms; a model without a route has none and can only be pinned.
    3. Only aliases, fallbacks and shadows that name a version in the table are kept.

    `capabilities` says of replicas, by their ids, what their engines were seen to do. `keys` are those that are not
    revoked. `keys_required` stays true after the first one was made, so that revoking the last one opens no door.
    """
    by_version: dict[tuple[str, str], list[RunningReplica]] = {}
    for running in replicas:
        by_version.setdefault((running.model, running.label), []).append(running)
    models = {
        name: _model(snapshot[name], by_version, traits[name], capabilities or {})
        for name in sorted(traits)
        if name in snapshot
    }
    return Table(
        generation=generation,
        models=models,
        limits=limits,
        keys=tuple(_key(one) for one in keys),
        keys_required=keys_required,
    )


def same_but_generation(one: Table, other: Table) -> bool:
    """Whether two tables route alike."""
    return msgspec.structs.replace(one, generation=0) == msgspec.structs.replace(other, generation=0)


def _model(
    model: ModelSnapshot,
    by_version: Mapping[tuple[str, str], list[RunningReplica]],
    traits: ModelTraits,
    capabilities: Mapping[str, Capabilities],
) -> Model:
    versions: dict[str, Version] = {}
    for label, version in model.versions.items():
        if version.retired_at is not None:
            continue
        authorization = traits.authorizations.get(label, "")
        # A hosted engine's URL is its provider's: what the router talks to is the bridge.
        elsewhere = version.manifest.url if version.manifest.engine == "external" else ""
        running = sorted(by_version.get((model.name, label), []), key=lambda one: one.id)
        seen = [capabilities[one.id] for one in running if one.id in capabilities]
        versions[label] = Version(
            label=label,
            replicas=tuple(_replica(one, elsewhere, authorization, capabilities.get(one.id)) for one in running),
            served_names=next((tuple(one.served_names) for one in running if one.served_names), (ANY_NAME,)),
            stream_usage=all(one.stream_usage for one in seen),
            prefill=bool(seen) and all(one.prefill for one in seen),
            context_tokens=min((one.context_tokens for one in seen), default=0),
        )
    route = model.route
    return Model(
        name=model.name,
        versions=versions,
        aliases={name: label for name, label in sorted(model.aliases.items()) if label in versions},
        arms=arms_of(route.allocation) if route else (),
        salt=route.salt if route else "",
        sticky=route.sticky if route else (),
        fallback=tuple(label for label in route.fallback if label in versions) if route else (),
        timeouts=traits.timeouts,
        retry=traits.retry,
        admission=traits.admission,
        cache=traits.cache,
        samples=traits.samples,
        larger_context=tuple(label for label in traits.larger_context if label in versions),
        equivalent=traits.equivalent,
        segments=tuple(_segment(one) for one in route.segments) if route else (),
        shadows=tuple(_shadow(one) for one in route.shadows if one.label in versions) if route else (),
        affinity=traits.affinity,
        created=int(model.created_at),
    )


def _segment(segment: RouteSegment) -> Segment:
    when = tuple(Match(one.kind, one.name, one.values) for one in segment.when)
    return Segment(name=segment.name, when=when, arms=arms_of(segment.allocation))


def _shadow(shadow: ShadowArm) -> Shadow:
    return Shadow(
        label=shadow.label,
        sample=shadow.sample,
        inflight_max=shadow.inflight_max,
        engine_seconds_per_hour=shadow.engine_seconds_per_hour,
    )


def _key(key: ApiKey) -> Key:
    return Key(id=key.id, digest=key.digest, slot=key.slot, **terms_of(key.terms))


_STATES: Mapping[str, ReplicaState] = {"ready": "ready", "draining": "draining"}


def _replica(running: RunningReplica, url: str, authorization: str, seen: Capabilities | None) -> Replica:
    place = urlsplit(url) if url else None
    tls = place is not None and place.scheme == "https"
    return Replica(
        id=running.id,
        host=running.host,
        port=running.port,
        state=_STATES.get(running.state, "down"),
        base_path=place.path.rstrip("/") if place else "",
        tls=tls,
        host_header=place.netloc.rpartition("@")[2] if place else "",
        authorization=authorization,
        slots=seen.parallel_slots if seen else 0,
    )


def routing_of(table: Table | None, registered: RegistrySnapshot) -> Routing:
    """How the table divides each model's requests. A new revision counts as a change although its arms be the same."""
    if table is None:
        return Routing()
    models: dict[str, ModelRoute] = {}
    for name, model in table.models.items():
        shares: dict[str, float] = {}
        start = 0
        for arm in model.arms:
            shares[arm.label] = shares.get(arm.label, 0.0) + (arm.upto - start) / BUCKETS
            start = arm.upto
        known = registered.get(name)
        if shares:
            models[name] = ModelRoute(known.route.revision if known and known.route else 0, shares)
    return Routing(table.generation, models)


class Generations:
    """Numbers tables, in a file that outlives the process: `next` never gives a number again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._last = int(path.read_text())
        except (FileNotFoundError, ValueError):
            self._last = 0

    @property
    def last(self) -> int:
        return self._last

    def seen(self, generation: int) -> None:
        """A worker serves by this generation already: go on above it."""
        self._last = max(self._last, generation)

    def next(self) -> int:
        """The next number, written down before it is used."""
        self._last += 1
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(str(self._last))
        temporary.replace(self._path)
        return self._last
