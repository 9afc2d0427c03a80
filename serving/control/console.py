"""The yard as the console sees it: what pages read, and what they may do.

Owns: the answers of `monitoring.console.ConsoleSource`. Never: HTML, deciding (changes, desk, supervisor).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from monitoring.console import Cookie
from registry.verdicts import Verdicts
from serving.control import snapshot
from serving.control.admin_drift import drift_view
from serving.control.admin_gates import GateView
from serving.control.admin_models import AuditView, RouteView, version_view
from serving.control.admin_registry import in_force, route_changed
from serving.control.changes import Planned
from serving.control.console_access import ConsoleAccess
from serving.control.console_data import ConsoleData
from serving.control.desk import Desk, Parts

Json = dict[str, Any]
GATES_MAX = 50


class YardConsole(ConsoleData):
    """Answers for one yard."""

    def __init__(self, desk: Desk, parts: Parts, runs: Path, door: ConsoleAccess) -> None:
        super().__init__(parts, runs)
        self._desk = desk
        self._door = door

    # --- what is true now ---

    async def status(self) -> Json:
        return (await self._desk.status()).model_dump()

    async def readiness(self) -> Json:
        return (await self._desk.readiness()).model_dump()

    async def cost(self, since: float | None) -> Json:
        return (await self._desk.cost(since)).as_json()

    async def series(self, minutes: float) -> Json:
        found: Json = msgspec.to_builtins(self._accounts.series(minutes))
        return found

    # --- models and traffic ---

    async def versions(self, model: str) -> list[Json]:
        registry = self._desk.registry

        def read() -> list[Json]:
            known = snapshot.take(registry)
            if model not in known:
                registry.versions(model)  # raises NotFoundError, which names the known ones
            found = known[model]
            weights = found.route.weights if found.route else {}
            return [
                version_view(
                    one,
                    weight=weights.get(one.label, 0),
                    aliases=[name for name, label in found.aliases.items() if label == one.label],
                    state="retired" if one.retired_at is not None else self._desk.version_state(model, one.label),
                ).model_dump()
                for one in found.versions.values()
            ]

        return await asyncio.to_thread(read)

    async def route(self, model: str) -> Json:
        return (await asyncio.to_thread(in_force, self._desk, model)).model_dump()

    async def route_history(self, model: str, limit: int) -> list[Json]:
        found = await asyncio.to_thread(self._desk.registry.route_history, model, limit)
        return [RouteView.of(one).model_dump() for one in found]

    async def gates(self, model: str) -> list[Json]:
        verdicts = Verdicts(self._desk.registry.engine)
        found = await asyncio.to_thread(verdicts.newest, model, candidate=None, policy=None, limit=GATES_MAX)
        return [GateView.of(one).model_dump() for one in found]

    async def drift(self, model: str) -> Json:
        return (await drift_view(self._desk, model)).model_dump()

    # --- the machine room ---

    async def engine_log(self, replica: str, lines: int) -> Json:
        path, found = await asyncio.to_thread(self._desk.engine_log, replica, lines)
        return {"replica": replica, "path": path, "lines": list(found)}

    async def audit(self, *, subject: str = "", limit: int = 200) -> list[Json]:
        found = await asyncio.to_thread(self._desk.registry.audit, limit, subject or None)
        return [AuditView.of(one).model_dump() for one in found]

    # --- actions ---

    async def plan_route(self, model: str, weights: Mapping[str, int]) -> Json:
        return _planned(await asyncio.to_thread(self._desk.changes.plan_route, model, weights))

    async def set_route(self, model: str, weights: Mapping[str, int], *, force: bool, actor: str) -> Json:
        changed = await self._desk.changes.set_route(model, weights, actor=actor, force=force)
        return route_changed(changed).model_dump()

    async def plan_rollback(self, model: str, to: int | None) -> Json:
        return _planned(await asyncio.to_thread(self._desk.changes.plan_rollback, model, to))

    async def roll_back(self, model: str, to: int | None, *, actor: str) -> Json:
        return route_changed(await self._desk.changes.roll_back(model, to, actor=actor)).model_dump()

    async def pause(self, model: str, reason: str, *, actor: str) -> None:
        await self._desk.changes.pause(model, reason, actor=actor)

    async def resume(self, model: str, *, actor: str) -> None:
        await self._desk.changes.resume(model, actor=actor)

    async def restart_engine(self, replica: str, *, actor: str) -> Json:
        return asdict(await self._desk.restart_engine(replica, actor=actor))

    # --- who is there ---

    async def sign_in(self, credential: str, name: str) -> Cookie:
        return self._door.sign_in(credential, name)

    async def redeem(self, code: str) -> Cookie:
        return self._door.redeem(code)

    def sign_out(self, headers: Mapping[bytes, str]) -> str:
        self._door.end(headers)
        return self._door.cookie_name


def _planned(found: Planned) -> Json:
    target = found.target
    return {
        "before": dict(found.before.weights),
        "revision_before": found.before.revision,
        "after": dict(found.weights),
        "moved_buckets": found.moved_buckets,
        "refusal": found.refusal,
        "revision": target.revision if target else None,
        "created_at": target.created_at if target else None,
        "created_by": target.created_by if target else None,
    }
