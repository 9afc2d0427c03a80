"""The admin API's answers and requests, as documented in its OpenAPI schema.

Owns: their shape. Never: where the values come from.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from registry.config import VersionConfig
from registry.manifest import Manifest
from registry.models import REASON_LENGTH_MAX, Alias, AuditEntry, Pause, Route, Version
from serving.control.plan import Plan


class Shape(BaseModel):
    """Unknown fields of a request are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ReplicaView(Shape):
    """One engine process of a version."""

    id: str
    ref: str
    engine: str
    state: str
    host: str
    port: int
    pid: int | None
    since: float
    """Unix seconds at which it entered its state."""
    restarts: int
    last_error: str
    digest: str
    device: str | None
    served_names: list[str]
    capabilities: dict[str, Any] | None
    inflight: int
    resident_bytes: int | None
    cpu_time_s: float | None
    log_path: str


class VersionStatus(Shape):
    """One version now. Rates and latencies are of the last minute; counts are of all time."""

    ref: str
    label: str
    digest: str
    state: str
    """`ready`, `starting`, `backoff`, `failed`, `draining`, `stopped`, or `registered` where it has no engine."""
    weight: int
    """Basis points of the route."""
    replicas: list[str]
    inflight: int
    requests: int
    failures: int
    """Failed and truncated requests: the service's fault."""
    shadow_requests: int
    """Copies of requests that it answered as a shadow; they count nowhere else here."""
    prompt_tokens: int
    completion_tokens: int
    requests_per_second: float
    tokens_per_second: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    itl_p50_s: float | None
    cost_per_1k_requests: float | None
    """On the basis `busy`: the time that it kept the device busy."""
    cost_per_1k_requests_allocated: float | None
    """On the basis `allocated`: its part of everything that was held, idle time included."""
    currency: str


class ModelStatus(Shape):
    model: str
    route: dict[str, int]
    revision: int
    fallback: list[str]
    segments: list[str]
    """Names of the segments that have arms of their own."""
    shadows: dict[str, int]
    """Label -> basis points of the requests that it gets copies of."""
    pause: PauseView | None
    """Null where the route is not paused."""
    versions: list[VersionStatus]
    aliases: dict[str, str]


class WorkerView(Shape):
    """One router worker."""

    id: str
    pid: int
    state: str
    started_at: float
    restarts: int
    generation: int
    connections: int
    upstream_connections: int
    resident_bytes: int
    loop_lag_s: float
    records_lost: int


class DeviceView(Shape):
    """One device; values that it does not give are null."""

    kind: str
    device: str
    name: str | None
    cores: float | None
    utilisation: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_w: float | None
    temperature_c: float | None
    power_limit_w: float | None
    throttle_reasons: list[str] | None
    """Why its clocks are held down: words as in `modelyard_gpu_throttled`."""
    mig: bool | None
    mps: bool | None
    lost: bool
    """Neither it nor its driver answers."""
    absent: dict[str, str]
    """Value -> why the device does not give it."""


class DriftLine(Shape):
    """The latest check of one version's traffic against its model's reference."""

    model: str
    version: str
    verdict: str
    """`none`, `watch`, `act` or `inconclusive`."""
    kinds: dict[str, str]
    """`data`, `output`, `concept` -> verdict."""
    features: list[str]
    """Those whose verdict is act."""
    needed: int
    """About how many more samples make a verdict, where it is inconclusive."""
    at: float


class Status(Shape):
    generation: int
    uptime_s: float
    url: str
    admin_url: str
    pid: int
    config: str
    models: list[ModelStatus]
    engines: list[ReplicaView]
    workers: list[WorkerView]
    device: DeviceView | None
    devices: list[DeviceView]
    drift: list[DriftLine]
    problems: list[str]
    """What an operator should know: segments set aside, engines that failed, records lost."""


class VersionView(Shape):
    """One registered version."""

    ref: str
    model: str
    label: str
    digest: str
    author: str
    created_at: float
    retired_at: float | None
    engine: str
    weight: int
    aliases: list[str]
    state: str
    manifest: dict[str, Any]


class ModelView(Shape):
    model: str
    versions: list[str]
    aliases: dict[str, str]
    route: dict[str, int]
    revision: int


class ConditionView(Shape):
    """One condition on a request; any of the values does."""

    kind: str
    """`header`, `metadata`, `key` or `user`."""
    name: str
    values: list[str]


class SegmentView(Shape):
    """Requests that go by arms of their own."""

    name: str
    when: list[ConditionView]
    weights: dict[str, int]


class ShadowView(Shape):
    """A version that gets copies of requests."""

    label: str
    sample: int
    """Basis points of the model's requests."""
    inflight_max: int
    engine_seconds_per_hour: float


class RouteView(Shape):
    """One revision of a model's route."""

    model: str
    revision: int
    weights: dict[str, int]
    sticky: list[str]
    fallback: list[str]
    segments: list[SegmentView]
    """The first that matches a request decides."""
    shadows: list[ShadowView]
    restores: int | None
    created_at: float
    created_by: str

    @classmethod
    def of(cls, route: Route) -> RouteView:
        return cls(
            model=route.model,
            revision=route.revision,
            weights=dict(route.weights),
            sticky=list(route.sticky),
            fallback=list(route.fallback),
            segments=[
                SegmentView(
                    name=one.name,
                    when=[ConditionView(kind=c.kind, name=c.name, values=list(c.values)) for c in one.when],
                    weights=dict(one.weights),
                )
                for one in route.segments
            ],
            shadows=[ShadowView(**asdict(one)) for one in route.shadows],
            restores=route.restores,
            created_at=route.created_at,
            created_by=route.created_by,
        )


class PauseView(Shape):
    """Who holds a route where it is."""

    reason: str
    paused_at: float
    paused_by: str

    @classmethod
    def of(cls, pause: Pause | None) -> PauseView | None:
        """None for none."""
        return None if pause is None else cls(**{name: getattr(pause, name) for name in cls.model_fields})


class RouteInForce(RouteView):
    """How a model's traffic is divided now, and whether that may change."""

    pause: PauseView | None
    """Null where the route is not paused."""


class RouteChanged(Shape):
    """A route in force: every worker listed in no `waiting_for` serves by it."""

    route: RouteView
    generation: int
    applied_ms: float
    """From the request's arrival until every worker confirmed."""
    moved_buckets: int
    """Of 10000: how many changed their version."""
    waiting_for: list[str]
    """Workers that did not confirm in time; the table reaches them when they can be reached."""


class AliasView(Shape):
    model: str
    name: str
    label: str
    updated_at: float
    updated_by: str

    @classmethod
    def of(cls, alias: Alias) -> AliasView:
        return cls(
            model=alias.model,
            name=alias.name,
            label=alias.label,
            updated_at=alias.updated_at,
            updated_by=alias.updated_by,
        )


class AuditView(Shape):
    id: int
    at: float
    actor: str
    action: str
    subject: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None

    @classmethod
    def of(cls, entry: AuditEntry) -> AuditView:
        return cls(
            id=entry.id,
            at=entry.at,
            actor=entry.actor,
            action=entry.action,
            subject=entry.subject,
            before=dict(entry.before) if entry.before is not None else None,
            after=dict(entry.after) if entry.after is not None else None,
        )


class StepView(Shape):
    kind: str
    subject: str
    reason: str
    changes: bool


class PlanView(Shape):
    """What a configuration changes, and what was left as it is."""

    dry_run: bool
    steps: list[StepView]
    refusals: list[str]
    """Why it cannot be applied; empty where it can."""

    @classmethod
    def of(cls, plan: Plan, *, dry_run: bool) -> PlanView:
        steps = [
            StepView(kind=step.kind, subject=step.subject, reason=step.reason, changes=step.changes)
            for step in plan.steps
        ]
        return cls(dry_run=dry_run, steps=steps, refusals=[refusal.message for refusal in plan.refusals])


class LogTail(Shape):
    replica: str
    path: str
    lines: list[str]


class Health(Shape):
    status: str
    """`ok`"""


class Dependency(Shape):
    """One thing that the yard depends on."""

    name: str
    """`workers`, `engines`, `database`, `disk`, `devices`, `records`; `access log` and `tracing` where configured"""
    state: Literal["ok", "degraded", "failed"]
    detail: str


class Readiness(Shape):
    """How the yard stands: `failed` only where nothing can be served."""

    status: Literal["ready", "degraded", "failed"]
    dependencies: list[Dependency]


class ReplacementView(Shape):
    """How one router worker was replaced."""

    worker: str
    """The new one."""
    replaced: str
    ready_s: float
    """Until the new one served."""
    drained_s: float
    """Until the old one had answered what it had, or was cut off."""
    cut_off: int
    """Requests that the drain's deadline ended."""


class Restart(Shape):
    """A rolling replacement of the router's workers."""

    running: bool
    total: int
    step: str
    replacements: list[ReplacementView]


class SetRoute(Shape):
    weights: dict[str, int] = Field(description="Label -> basis points, summing to 10000.")
    force: bool = Field(
        default=False,
        description="Also without a ready engine, past a pause, or past the gate that the model requires.",
    )


class PauseRoute(Shape):
    reason: str = Field(default="", max_length=REASON_LENGTH_MAX, description="One line: why, for who comes next.")


class Rollback(Shape):
    to: int | None = Field(default=None, description="The revision to restore; null restores the one before.")


class SetAlias(Shape):
    label: str


class RegisterVersion(Shape):
    label: str
    version: VersionConfig = Field(description="The definition, in the words of the configuration file.")
    base: str = Field(default=".", description="The folder that relative paths start from.")


class ApplyConfig(Shape):
    config: str = Field(description="The configuration as YAML text.")
    path: str = Field(default="", description="Where the text stands: relative paths start from its folder.")


def manifest_view(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain values, defaults left out."""
    value: dict[str, Any] = msgspec.to_builtins(manifest)
    return value


def version_view(version: Version, *, weight: int, aliases: list[str], state: str) -> VersionView:
    return VersionView(
        ref=str(version.ref),
        model=version.model,
        label=version.label,
        digest=version.digest,
        author=version.author,
        created_at=version.created_at,
        retired_at=version.retired_at,
        engine=version.manifest.engine,
        weight=weight,
        aliases=aliases,
        state=state,
        manifest=manifest_view(version.manifest),
    )
