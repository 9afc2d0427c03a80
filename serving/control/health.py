"""What a yard depends on, and how each of it stands: the answer of `/health/ready` on the admin port.

Owns: looking at each dependency, within bounds, and the words for what is found. Never: mending anything; taking the
data plane down for what only the control plane lacks.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from monitoring.sampler import SamplerStatus
from registry.errors import RegistryError
from registry.store import Registry
from serving.control.admin_models import Dependency, Readiness
from serving.control.outlets import Outlets
from serving.control.workers import WorkerStatus
from serving.engines.replica import ReplicaStatus

if TYPE_CHECKING:
    from serving.control.desk import Parts

State = Literal["ok", "degraded", "failed"]
DATABASE_TIMEOUT_S: Final = 2.0
DISK_FULL_BYTES: Final = 64 * 1024 * 1024
DISK_LOW_BYTES: Final = 1024**3
SAMPLE_LATE_S: Final = 10.0
NEEDED: Final = frozenset({"workers", "engines"})
"""Without these nothing can be served; without the others less is known, or nothing can be changed."""


async def readiness(parts: Parts, requests: Path, now: float) -> Readiness:
    """Every dependency of a yard; `requests` is where records of finished requests go."""
    generation = parts.publisher.table.generation if parts.publisher.table else 0
    found = [
        workers_state(parts.workers.statuses(), generation),
        engines_state(parts.supervisor.replicas()),
        await database_state(parts.registry),
        await asyncio.to_thread(disk_state, requests),
        devices_state(parts.sampler.status(), now),
        records_state(parts.accounts.problems(), parts.workers.statuses()),
        *outlet_states(parts.outlets),
    ]
    return judged(found)


def judged(found: Sequence[Dependency]) -> Readiness:
    """`failed` only where nothing can be served."""
    if any(one.state == "failed" and one.name in NEEDED for one in found):
        status = "failed"
    else:
        status = "ready" if all(one.state == "ok" for one in found) else "degraded"
    return Readiness(status=status, dependencies=list(found))


def workers_state(workers: Sequence[WorkerStatus], generation: int) -> Dependency:
    serving = [one for one in workers if one.state == "ready" and one.generation]
    staying = [one for one in workers if one.state != "draining"]
    if not serving:
        return _found("workers", "failed", "no router worker serves: `modelyard status` shows their states")
    away = [f"{one.id} is {one.state}" for one in staying if one not in serving]
    away += [
        f"{one.id} serves generation {one.generation}, not {generation}"
        for one in serving
        if one.generation != generation
    ]
    return _found("workers", "degraded" if away else "ok", "; ".join(away) or f"{len(serving)} serve")


def engines_state(replicas: Sequence[ReplicaStatus]) -> Dependency:
    ready = [one for one in replicas if one.state == "ready"]
    away = [f"{one.id} is {one.state}" + (f" ({_line(one.last_error)})" if one.last_error else "") for one in replicas]
    away = [text for text, one in zip(away, replicas, strict=True) if one.state != "ready"]
    if not ready:
        return _found("engines", "failed", "; ".join(away) or "there are none")
    return _found("engines", "degraded" if away else "ok", "; ".join(away) or f"{len(ready)} ready")


async def database_state(registry: Registry) -> Dependency:
    """Asked, not assumed; a database that does not answer is not waited for."""
    without = "requests are served on, but nothing can be changed or counted until it is back"
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT_S):
            models = await asyncio.to_thread(registry.models)
    except TimeoutError:
        return _found("database", "failed", f"it did not answer within {DATABASE_TIMEOUT_S:g} s: {without}")
    except (RegistryError, OSError) as error:
        return _found("database", "failed", f"{error}: {without}")
    return _found("database", "ok", f"{len(models)} {'model' if len(models) == 1 else 'models'} registered")


def disk_state(requests: Path) -> Dependency:
    """Room for the records of finished requests. Blocking."""
    try:
        free = shutil.disk_usage(requests).free
    except OSError as error:
        return _found("disk", "failed", f"{requests} cannot be looked at ({error.strerror}): records may be lost")
    room = f"{free / 1e9:.1f} GB free for records of finished requests"
    if free < DISK_FULL_BYTES:
        return _found("disk", "failed", f"{room}: make room, or requests go uncounted")
    return _found("disk", "degraded" if free < DISK_LOW_BYTES else "ok", room)


def devices_state(sampler: SamplerStatus, now: float) -> Dependency:
    if sampler.failing:
        return _found("devices", "degraded", f"readings fail ({sampler.failing}): cost is not measured meanwhile")
    if sampler.last_at is not None and now - sampler.last_at > SAMPLE_LATE_S:
        return _found("devices", "degraded", f"the last reading is {now - sampler.last_at:.0f} s old")
    return _found("devices", "ok", "read" if sampler.last_at is not None else "not read yet")


def records_state(problems: Sequence[str], workers: Iterable[WorkerStatus]) -> Dependency:
    lost = [
        f"worker {one.id} could not write {one.stats.records_lost} records"
        for one in workers
        if one.stats is not None and one.stats.records_lost
    ]
    return _found("records", "degraded" if problems or lost else "ok", "; ".join([*problems, *lost]) or "all counted")


def outlet_states(outlets: Outlets) -> list[Dependency]:
    """Only those that the configuration asks for."""
    found: list[Dependency] = []
    if (access_log := outlets.access_log) is not None:
        detail = access_log.problem or f"written to {access_log.path}"
        found.append(_found("access log", "degraded" if access_log.problem else "ok", detail))
    if (spans := outlets.spans) is not None:
        problems = "; ".join(one.problem for one in (spans, outlets.metrics) if one is not None and one.problem)
        detail = problems or f"{spans.exported} spans exported to {spans.endpoint}"
        found.append(_found("tracing", "degraded" if problems else "ok", detail))
    return found


def _found(name: str, state: State, detail: str) -> Dependency:
    return Dependency(name=name, state=state, detail=detail)


def _line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:160]
