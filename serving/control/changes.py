"""Changes that an operator makes to traffic and to the registry while a yard runs, each published before it answers.

Owns: routes, rollbacks, pauses, aliases, registering and retiring. Never: HTTP, what a table looks like.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from registry.artifacts import ArtifactStore, NoProgress, Progress
from registry.config import VersionConfig
from registry.errors import ConflictError, NotFoundError
from registry.keys import ApiKey, KeyTerms
from registry.models import BUCKETS, Alias, Allocation, Pause, Route, Version, VersionRef, check_weights
from registry.store import Registry
from registry.terminal import UserError
from registry.verdicts import Verdicts
from serving.control import snapshot
from serving.control.plan import Draft
from serving.control.publish import RunningReplica
from serving.control.publisher import Publisher
from serving.control.resolve import Environment, Resolver
from serving.control.workers import Published
from serving.router.split import allocate

CHAMPION = "champion"
"""The alias of the version that others have to measure up to."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A route in force, and how it got there."""

    route: Route
    published: Published
    applied_ms: float
    moved_buckets: int


@dataclass(frozen=True, slots=True)
class Planned:
    """What a change of a route would do, found without doing it."""

    before: Route
    weights: Mapping[str, int]
    moved_buckets: int
    target: Route | None = None
    """The revision that a rollback would restore."""
    refusal: str = ""
    """Why it would need force; "" where it would not."""


class UndeclaredUrlError(UserError):
    """A caller of the admin API names an address that the configuration does not."""


class Changes:
    """Every method is atomic in the registry and audited there; routes and aliases are in force when it returns.

    `declared` says whether the configuration in force has a version (model, label), `declared_url` whether it names an
    engine at a URL, `required_gate` which policy a version of a model must have passed ("" for none).
    """

    def __init__(
        self,
        registry: Registry,
        store: ArtifactStore,
        publisher: Publisher,
        *,
        replicas: Callable[[], Sequence[RunningReplica]],
        environment: Environment,
        declared: Callable[[str, str], bool],
        declared_url: Callable[[str], bool],
        required_gate: Callable[[str], str] = lambda model: "",
        progress: Callable[[], Progress] = NoProgress,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._store = store
        self._publisher = publisher
        self._replicas = replicas
        self._environment = environment
        self._declared = declared
        self._declared_url = declared_url
        self._required_gate = required_gate
        self._progress = progress
        self._clock = clock
        self.lock = asyncio.Lock()
        """Held while traffic changes; an apply holds it while what is declared changes."""

    async def set_route(self, model: str, weights: Mapping[str, int], *, actor: str, force: bool = False) -> Changed:
        """Divide the model's traffic anew. Raises NotFoundError, ConflictError, or ValueError for unusable weights.

        Past a pause or a required gate by force, the audit calls it `route.forced`; the pause stays.
        """
        started = time.perf_counter()
        async with self.lock:
            before = await asyncio.to_thread(self.route, model)
            ordered = in_order(check_weights(weights), before.weights)
            held = await asyncio.to_thread(self._held, model)
            if not force:
                if held:
                    raise held
                self._check_ready(model, ordered, before.weights)
            ungated = await asyncio.to_thread(self._ungated, model, ordered, before.weights)
            if ungated and not force:
                raise ConflictError(ungated, remedy="run `modelyard eval gate`, or force it")
            allocation = allocate(ordered, before.allocation)
            route = await asyncio.to_thread(
                self._registry.set_route,
                model,
                ordered,
                allocation,
                actor=actor,
                at=self._clock(),
                action="route.forced" if held or ungated else "route.set",
            )
            return await self._published(route, before, started)

    async def roll_back(self, model: str, to: int | None, *, actor: str) -> Changed:
        """Bring an earlier revision back: `to`, or the one before. Every key returns to the version it had then.

        Nothing stands in its way, a pause neither.
        """
        started = time.perf_counter()
        async with self.lock:
            before = await asyncio.to_thread(self.route, model)
            target = await asyncio.to_thread(self._target, model, to)
            route = await asyncio.to_thread(
                self._registry.set_route,
                model,
                dict(target.weights),
                target.allocation,
                actor=actor,
                at=self._clock(),
                restores=target.revision,
                action="route.rollback",
            )
            return await self._published(route, before, started)

    async def pause(self, model: str, reason: str, *, actor: str) -> Pause:
        """Hold the model's route where it is. Raises NotFoundError, or ValueError for an unusable reason."""
        async with self.lock:
            await asyncio.to_thread(self.route, model)
            pause = partial(self._registry.pause, actor=actor, at=self._clock())
            return await asyncio.to_thread(pause, model, reason)

    async def resume(self, model: str, *, actor: str) -> Pause:
        """Let the model's route be changed again. Returns the pause that ended. Raises NotFoundError, ConflictError."""
        async with self.lock:
            return await asyncio.to_thread(partial(self._registry.resume, model, actor=actor, at=self._clock()))

    def plan_route(self, model: str, weights: Mapping[str, int]) -> Planned:
        """What `set_route` would do now. Blocking. Raises as it does, but for what force overcomes."""
        before = self.route(model)
        ordered = in_order(check_weights(weights), before.weights)
        for label in ordered:
            self._registry.version(model, label)
        refusal = ""
        try:
            if held := self._held(model):
                raise held
            self._check_ready(model, ordered, before.weights)
        except ConflictError as error:
            refusal = str(error)
        refusal = refusal or self._ungated(model, ordered, before.weights)
        moved = moved_buckets(before.allocation, allocate(ordered, before.allocation))
        return Planned(before, ordered, moved, refusal=refusal)

    def plan_rollback(self, model: str, to: int | None) -> Planned:
        """What `roll_back` would do now. Blocking. Raises as it does."""
        before = self.route(model)
        target = self._target(model, to)
        return Planned(before, target.weights, moved_buckets(before.allocation, target.allocation), target)

    async def set_alias(self, model: str, name: str, label: str, *, actor: str) -> Alias:
        async with self.lock:
            set_alias = partial(self._registry.set_alias, actor=actor, at=self._clock())
            alias = await asyncio.to_thread(set_alias, model, name, label)
            await self._publisher.publish()
            return alias

    async def retire(self, model: str, label: str, *, actor: str) -> Version:
        """Take a version out of use. Raises ConflictError while it has traffic, or while its engine runs."""
        async with self.lock:
            running = any((one.model, one.label) == (model, label) for one in self._replicas())
            if running or self._declared(model, label):
                raise ConflictError(
                    f"{model}@{label} is in the configuration in force",
                    remedy="take it out of the file and `modelyard apply` that first",
                )
            version = await asyncio.to_thread(self._registry.retire, model, label, actor=actor, at=self._clock())
            await self._publisher.publish()
            return version

    async def create_key(self, terms: KeyTerms, *, actor: str) -> tuple[ApiKey, str, Published]:
        """Make an API key, in force when this returns: what is kept of it, the key itself, how it was published.

        Keys wait for no lock: a revocation must not stand behind an apply that fetches a model.
        """
        create = partial(self._registry.create_key, terms, actor=actor, at=self._clock())
        key, secret = await asyncio.to_thread(create)
        return key, secret, await self._publish_keys()

    async def revoke_key(self, key_id: str, *, actor: str) -> tuple[ApiKey, Published]:
        """Take a key out of use: no worker takes it any more when this returns. Raises NotFoundError."""
        revoke = partial(self._registry.revoke_key, key_id, actor=actor, at=self._clock())
        key = await asyncio.to_thread(revoke)
        return key, await self._publish_keys()

    async def _publish_keys(self) -> Published:
        self._publisher.mark()  # should publishing fail now, it is tried again until it does not
        return await self._publisher.publish()

    async def register(
        self, model: str, label: str, version: VersionConfig, *, base: Path, actor: str
    ) -> tuple[Version, bool]:
        """Fetch a version's artifacts and register it; no engine starts. Returns it, and whether it is new.

        Raises UndeclaredUrlError for an engine elsewhere that the configuration does not name.
        """
        ref = VersionRef.parse(f"{model}@{label}")
        if version.url and not self._declared_url(version.url):
            raise UndeclaredUrlError(
                f"{ref}: the configuration in force names no engine at {version.url}: the addresses of engines come "
                "from the configuration only, so declare the version there and run `modelyard apply`"
            )

        def work() -> tuple[Version, bool]:
            known = snapshot.take(self._registry)
            there = known.get(model)
            siblings = {
                other.label: Draft(other.ref, other.manifest, (), True, 0)
                for other in (there.versions.values() if there else ())
            }
            resolver = Resolver(self._store, known, base, progress=self._progress, environment=self._environment)
            draft = resolver.draft(ref, version, siblings)
            made = self._registry.register(model, label, draft.manifest, author=actor, at=self._clock())
            return made, label not in siblings

        return await asyncio.to_thread(work)

    def route(self, model: str) -> Route:
        """The route in force. Raises NotFoundError naming the models that have one."""
        route = self._registry.route(model)
        if route is None:
            known = ", ".join(sorted(self._registry.routes())) or "none"
            raise NotFoundError(f"model {model} has no route", remedy=f"models with one: {known}")
        return route

    def _target(self, model: str, to: int | None) -> Route:
        if to is None:
            target = self._registry.rollback_target(model)
            if target is None:
                raise ConflictError(
                    f"there is nothing to roll {model} back to", remedy="its route was never another one"
                )
            return target
        history = self._registry.route_history(model, limit=1_000_000)
        found = next((route for route in history if route.revision == to), None)
        if found is None:
            raise NotFoundError(
                f"route {model} has no revision {to}", remedy=f"it has 1 to {history[0].revision if history else 0}"
            )
        return found

    def _check_ready(self, model: str, weights: Mapping[str, int], before: Mapping[str, int]) -> None:
        """More traffic only goes where somebody can answer it."""
        for label, weight in weights.items():
            states = [one.state for one in self._replicas() if (one.model, one.label) == (model, label)]
            if weight <= before.get(label, 0):
                continue
            declared = self._declared(model, label)
            if not declared or "ready" not in states:
                self._registry.version(model, label)
                is_there = declared and states
                why = f"its engines are {', '.join(states)}" if is_there else "the configuration in force starts none"
                raise ConflictError(
                    f"{model}@{label} has no ready engine ({why})",
                    remedy="start one (`modelyard apply`), wait for it, or force it",
                )

    def _held(self, model: str) -> ConflictError | None:
        """Why the route stays where it is: somebody paused it; None where nobody did."""
        pause = self._registry.pauses().get(model)
        if pause is None:
            return None
        since = datetime.fromtimestamp(pause.paused_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        why = f" ({pause.reason})" if pause.reason else ""
        return ConflictError(
            f"the route of {model} is paused by {pause.paused_by} since {since}{why}",
            remedy=f"let it go on (`modelyard route resume {model}`), or force it",
        )

    def _ungated(self, model: str, weights: Mapping[str, int], before: Mapping[str, int]) -> str:
        """Why a version that would get more traffic may not have it by the model's required gate; "" where it may."""
        policy = self._required_gate(model)
        if not policy:
            return ""
        aliases = {alias.name: alias.label for alias in self._registry.aliases(model)}
        champion = aliases.get(CHAMPION) or next((label for label, weight in before.items() if weight), "")
        verdicts = Verdicts(self._registry.engine)
        for label, weight in weights.items():
            if champion and weight > before.get(label, 0):
                lacking = verdicts.lacking(model, policy, baseline=champion, candidate=label)
                if lacking:
                    return f"{model}@{label} may not have more traffic: {lacking}"
        return ""

    async def _published(self, route: Route, before: Route, started: float) -> Changed:
        published = await self._publisher.publish()
        applied_ms = (time.perf_counter() - started) * 1000
        return Changed(route, published, applied_ms, moved_buckets(before.allocation, route.allocation))


def in_order(weights: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """The weights with the labels of the route before in their order: its first one stays the stable arm."""
    known = [label for label in before if label in weights]
    return {label: weights[label] for label in [*known, *(label for label in weights if label not in before)]}


def moved_buckets(before: Allocation, after: Allocation) -> int:
    """How many of the BUCKETS belong to another version after than before."""
    stayed = sum(
        max(0, min(one.stop, other.stop) - max(one.start, other.start))
        for one in before
        for other in after
        if one.label == other.label
    )
    return BUCKETS - stayed if before else 0
