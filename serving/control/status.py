"""What `modelyard status` shows, put together from the registry, the engines, the workers and the books.

Owns: that view. Never: I/O, deciding. Pure: everything comes in as values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from monitoring.devices import DeviceReading
from monitoring.engine_scrape import Target
from monitoring.recent import FAULTS, VersionRates
from monitoring.statement import Statement, Usage
from monitoring.unit_costs import UnitCost
from monitoring.windows import Drift
from registry.models import Version
from serving.control.admin_models import (
    DeviceView,
    DriftLine,
    ModelStatus,
    PauseView,
    ReplicaView,
    VersionStatus,
    WorkerView,
)
from serving.control.snapshot import ModelSnapshot, RegistrySnapshot
from serving.control.workers import WorkerStatus
from serving.engines.replica import ReplicaStatus

STATES = ("ready", "draining", "starting", "backoff", "failed", "stopped")
"""From the best to the worst: a version is in the best state of its replicas."""


def state_of(replicas: Iterable[ReplicaStatus]) -> str:
    """The state of a version with these replicas; `registered` where it has none."""
    states = {replica.state for replica in replicas}
    return next((state for state in STATES if state in states), "registered")


def tls_problems(workers: Iterable[WorkerStatus]) -> list[str]:
    """Why workers go on with an older certificate than the one that lies there, each reason once."""
    return sorted({one.stats.tls_problem for one in workers if one.stats is not None and one.stats.tls_problem})


def inflight_of(workers: Iterable[WorkerStatus]) -> Counter[str]:
    """Replica id -> requests in flight there, over all workers."""
    total: Counter[str] = Counter()
    for worker in workers:
        if worker.stats is not None:
            total.update(worker.stats.inflight)
    return total


def replica_view(status: ReplicaStatus, inflight: int) -> ReplicaView:
    return ReplicaView(
        id=status.id,
        ref=f"{status.model}@{status.label}",
        engine=status.kind,
        state=status.state,
        host=status.host,
        port=status.port,
        pid=status.pid or None,
        since=status.since,
        restarts=status.restarts,
        last_error=status.last_error,
        digest=status.digest,
        device=status.device or None,
        served_names=list(status.served_names),
        capabilities=msgspec.to_builtins(status.capabilities) if status.capabilities is not None else None,
        inflight=inflight,
        resident_bytes=status.rss if status.pid else None,
        cpu_time_s=status.cpu_time_s if status.pid else None,
        log_path=status.log_path,
    )


def worker_view(status: WorkerStatus) -> WorkerView:
    stats = status.stats
    return WorkerView(
        id=status.id,
        pid=status.pid,
        state=status.state,
        started_at=status.started_at,
        restarts=status.restarts,
        generation=status.generation,
        connections=stats.connections if stats else 0,
        upstream_connections=stats.upstream_connections if stats else 0,
        resident_bytes=stats.resident_bytes if stats else 0,
        loop_lag_s=stats.loop_lag_s if stats else 0.0,
        records_lost=stats.records_lost if stats else 0,
    )


def drift_lines(drifts: Iterable[Drift]) -> list[DriftLine]:
    """The latest check of each version that is watched."""
    return [
        DriftLine(
            model=one.model,
            version=one.version,
            verdict=one.verdict,
            kinds=dict(one.kinds),
            features=[feature.feature for feature in one.features if feature.verdict == "act"],
            needed=one.needed,
            at=one.at,
        )
        for one in drifts
    ]


def device_view(reading: DeviceReading) -> DeviceView:
    fields: dict[str, Any] = {name: getattr(reading, name) for name in DeviceView.model_fields}
    if reading.throttle_reasons is not None:
        fields["throttle_reasons"] = sorted(reading.throttle_reasons)
    return DeviceView(**fields)


def model_statuses(
    snapshot: RegistrySnapshot,
    served: Iterable[str],
    replicas: Sequence[ReplicaStatus],
    *,
    inflight: Mapping[str, int],
    usage: Mapping[str, Usage],
    rates: Mapping[tuple[str, str], VersionRates],
    statement: Statement | None,
    currency: str,
) -> list[ModelStatus]:
    """The models that are served, each with the versions that are not retired."""
    busy, allocated = unit_costs(statement, "busy"), unit_costs(statement, "allocated")

    def version_status(model: ModelSnapshot, version: Version) -> VersionStatus:
        ref = str(version.ref)
        own = [one for one in replicas if (one.model, one.label) == (model.name, version.label)]
        used, recent = usage.get(ref), rates.get((model.name, version.label))
        return VersionStatus(
            ref=ref,
            label=version.label,
            digest=version.digest,
            state=state_of(own),
            weight=model.route.weights.get(version.label, 0) if model.route else 0,
            replicas=[one.id for one in own],
            inflight=sum(inflight.get(one.id, 0) for one in own),
            requests=sum(used.requests.values()) if used else 0,
            failures=sum(used.requests.get(name, 0) for name in FAULTS) if used else 0,
            shadow_requests=used.shadow_requests if used else 0,
            prompt_tokens=used.prompt_tokens if used else 0,
            completion_tokens=used.completion_tokens if used else 0,
            requests_per_second=recent.requests_per_second if recent else 0.0,
            tokens_per_second=recent.tokens_per_second if recent else 0.0,
            ttft_p50_s=recent.ttft_p50_s if recent else None,
            ttft_p95_s=recent.ttft_p95_s if recent else None,
            itl_p50_s=recent.itl_p50_s if recent else None,
            cost_per_1k_requests=busy.get(ref),
            cost_per_1k_requests_allocated=allocated.get(ref),
            currency=currency,
        )

    found: list[ModelStatus] = []
    for name in served:
        model = snapshot.get(name, ModelSnapshot(name))
        found.append(
            ModelStatus(
                model=name,
                route=dict(model.route.weights) if model.route else {},
                revision=model.route.revision if model.route else 0,
                fallback=list(model.route.fallback) if model.route else [],
                segments=[one.name for one in model.route.segments] if model.route else [],
                shadows={one.label: one.sample for one in model.route.shadows} if model.route else {},
                pause=PauseView.of(model.pause),
                versions=[version_status(model, one) for one in model.versions.values() if one.retired_at is None],
                aliases=dict(model.aliases),
            )
        )
    return found


def unit_costs(statement: Statement | None, basis: str) -> dict[str, float]:
    """`model@version` -> cost per 1k requests on this basis, by the in-flight method, over all devices."""
    costs: dict[str, float] = {}
    found: Sequence[UnitCost] = statement.unit_costs if statement is not None else ()
    for one in found:
        if one.basis == basis and one.method == "inflight" and one.per_1k_requests is not None:
            costs[one.version] = costs.get(one.version, 0.0) + one.per_1k_requests
    return costs


def metrics_targets(replicas: Sequence[ReplicaStatus]) -> list[Target]:
    """The engines of this machine that take requests, and where their own metrics are."""
    return [
        Target(
            one.model,
            one.label,
            one.id,
            f"http://{one.host}:{one.port}/metrics" if one.capabilities.metrics else "",
            one.pid,
        )
        for one in replicas
        if one.state == "ready" and one.pid and one.capabilities is not None and one.kind != "hosted"
    ]
