"""The registry: models, versions, aliases, routes and their audit, in one SQL database.

Owns: what is registered and every change to it, each with its audit row in the same transaction. Never: deciding an
allocation (serving.router.split does), fetching artifacts, talking to engines.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, func, insert, select, update

from registry import keys, pauses, schema
from registry.database import connect, read, write
from registry.errors import ConflictError, NotFoundError
from registry.keys import ApiKey, KeyTerms
from registry.manifest import Manifest, canonical, definition, digest
from registry.models import (
    Alias,
    Allocation,
    AuditEntry,
    Pause,
    Route,
    RouteSegment,
    ShadowArm,
    Version,
    VersionRef,
    check_name,
    check_weights,
)
from registry.rows import route_values, to_alias, to_route, to_version


class Registry:
    """A registry in a database. Thread-safe: every call is a transaction of its own.

    Every method may raise DatabaseError. `at` is Unix seconds; `author` and `actor` say who, in the caller's words.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.changes = 0
        """Another number after every change made here: who follows the registry reads it again only then."""
        self._numbers = itertools.count(1)

    @classmethod
    def open(cls, location: str | Path) -> Registry:
        """Open the database at a path or an SQLAlchemy URL, creating or migrating it where needed."""
        return cls(connect(location))

    def close(self) -> None:
        """Let go of the database's connections."""
        self.engine.dispose()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with write(self.engine) as connection:
            yield connection
        self.changes = next(self._numbers)

    # Versions

    def register(self, model: str, label: str, manifest: Manifest, *, author: str, at: float) -> Version:
        """Register a version, and its model where it is new.

        A label is taken once. With the same definition again it returns what is there, unchanged; with another one it
        raises ConflictError. Raises InvalidNameError for names that cannot be used.
        """
        check_name("model", model)
        check_name("version", label)
        version = Version(model, label, manifest, digest(manifest), author, at)
        with self._write() as connection:
            known = _find_version(connection, model, label)
            if known is not None:
                _check_same(known, version)
                return known
            if _find_alias(connection, model, label) is not None:
                raise ConflictError(f"{model}@{label} is an alias already", remedy="choose another label")
            if not _has_model(connection, model):
                values = {"name": model, "salt": secrets.token_hex(16), "created_at": at}
                connection.execute(insert(schema.models).values(values))
            connection.execute(
                insert(schema.versions).values(
                    model=model,
                    label=label,
                    digest=version.digest,
                    manifest=canonical(manifest).decode(),
                    author=author,
                    created_at=at,
                )
            )
            after = {"digest": version.digest}
            _audit(connection, "version.register", str(version.ref), actor=author, at=at, after=after)
        return version

    def models(self) -> list[str]:
        """Names of all models, sorted."""
        with read(self.engine) as connection:
            return list(connection.scalars(select(schema.models.c.name).order_by(schema.models.c.name)))

    def version(self, model: str, label: str) -> Version:
        """The version with exactly this label. Raises NotFoundError naming the known ones."""
        with read(self.engine) as connection:
            return _version(connection, model, label)

    def versions(self, model: str | None = None) -> list[Version]:
        """All versions, or a model's: by model, then in the order of registration. Retired ones are among them."""
        table = schema.versions
        query = select(table).order_by(table.c.model, table.c.created_at, table.c.label)
        with read(self.engine) as connection:
            if model is not None:
                _require_model(connection, model)
                query = query.where(table.c.model == model)
            return [to_version(row) for row in connection.execute(query)]

    def resolve(self, ref: VersionRef) -> Version:
        """The version that a label or an alias names. Raises NotFoundError naming the known ones."""
        if not ref.label:
            raise NotFoundError(f"{ref} names a model, not a version", remedy=f"write {ref.model}@LABEL")
        with read(self.engine) as connection:
            alias = _find_alias(connection, ref.model, ref.label)
            return _version(connection, ref.model, alias.label if alias else ref.label)

    def retire(self, model: str, label: str, *, actor: str, at: float) -> Version:
        """Take a version out of use; its record stays. Retiring it again changes nothing.

        Raises ConflictError while the route (its segments and shadows too) gives it requests or falls back to it, or an
        alias points to it.
        """
        table = schema.versions
        with self._write() as connection:
            version = _version(connection, model, label)
            if version.retired_at is not None:
                return version
            _check_unused(connection, version)
            connection.execute(
                update(table).where(table.c.model == model, table.c.label == label).values(retired_at=at)
            )
            after = {"digest": version.digest, "retired_at": at}
            _audit(connection, "version.retire", str(version.ref), actor=actor, at=at, after=after)
        return replace(version, retired_at=at)

    # Aliases

    def set_alias(self, model: str, name: str, label: str, *, actor: str, at: float) -> Alias:
        """Point an alias to a version that is not retired. Raises NotFoundError or ConflictError."""
        check_name("alias", name)
        alias = Alias(model, name, label, at, actor)
        table = schema.aliases
        with self._write() as connection:
            _check_usable(connection, model, [label])
            if _find_version(connection, model, name) is not None:
                raise ConflictError(f"{model}@{name} is a version already", remedy="choose another alias")
            before = _find_alias(connection, model, name)
            if before is not None and before.label == label:
                return before
            if before is None:
                connection.execute(
                    insert(table).values(model=model, name=name, label=label, updated_at=at, updated_by=actor)
                )
            else:
                connection.execute(
                    update(table)
                    .where(table.c.model == model, table.c.name == name)
                    .values(label=label, updated_at=at, updated_by=actor)
                )
            old = None if before is None else {"label": before.label}
            _audit(connection, "alias.set", f"{model}@{name}", actor=actor, at=at, before=old, after={"label": label})
        return alias

    def aliases(self, model: str | None = None) -> list[Alias]:
        """All aliases, or a model's, by model and name."""
        table = schema.aliases
        query = select(table).order_by(table.c.model, table.c.name)
        with read(self.engine) as connection:
            if model is not None:
                _require_model(connection, model)
                query = query.where(table.c.model == model)
            return [to_alias(row) for row in connection.execute(query)]

    # Routes

    def route(self, model: str) -> Route | None:
        """The route in force; None before the first one was set, or where there is no such model."""
        with read(self.engine) as connection:
            return _head(connection, model)

    def routes(self) -> dict[str, Route]:
        """Model -> the route in force, for the models that have one."""
        table = schema.routes
        newest = select(table.c.model, func.max(table.c.revision).label("revision")).group_by(table.c.model).subquery()
        query = _routes_query().join(
            newest, (table.c.model == newest.c.model) & (table.c.revision == newest.c.revision)
        )
        with read(self.engine) as connection:
            return {row.model: to_route(row) for row in connection.execute(query.order_by(table.c.model))}

    def route_history(self, model: str, limit: int = 50) -> list[Route]:
        """The newest `limit` revisions, newest first. Raises NotFoundError for an unknown model."""
        with read(self.engine) as connection:
            _require_model(connection, model)
            return _history(connection, model, limit)

    def set_route(
        self,
        model: str,
        weights: Mapping[str, int],
        allocation: Allocation,
        *,
        sticky: tuple[str, ...] | None = None,
        fallback: tuple[str, ...] | None = None,
        segments: tuple[RouteSegment, ...] | None = None,
        shadows: tuple[ShadowArm, ...] | None = None,
        actor: str,
        at: float,
        restores: int | None = None,
        action: str = "route.set",
    ) -> Route:
        """Make a new revision of the model's route. Rules (`sticky` to `shadows`) keep their value where None.

        Raises NotFoundError where a label with weight (in a segment too), of the fallback chain or of a shadow is not
        registered or is retired; ValueError where weights or an allocation are not well-formed or contradict each
        other.
        """
        _check_allocation(check_weights(weights), allocation)
        for segment in segments or ():
            check_name("segment", segment.name)
            _check_allocation(check_weights(segment.weights), segment.allocation)
        with self._write() as connection:
            salt = _require_model(connection, model)
            before = _head(connection, model)
            kept = before or Route(model=model, revision=0, weights={}, allocation=(), salt=salt)
            route = Route(
                model=model,
                revision=kept.revision + 1,
                weights=dict(weights),
                allocation=tuple(allocation),
                salt=salt,
                sticky=kept.sticky if sticky is None else tuple(sticky),
                fallback=kept.fallback if fallback is None else tuple(fallback),
                segments=kept.segments if segments is None else tuple(segments),
                shadows=kept.shadows if shadows is None else tuple(shadows),
                restores=restores,
                created_at=at,
                created_by=actor,
            )
            _check_registered(connection, model, weights)
            _check_usable(connection, model, [label for label, weight in weights.items() if weight > 0])
            _check_usable(connection, model, [*route.fallback, *_carried_beside(route)])
            if restores is not None and _revision(connection, model, restores) is None:
                raise NotFoundError(f"the route of {model} has no revision {restores}")
            connection.execute(insert(schema.routes).values(route_values(route)))
            old = _summary(before) if before else None
            _audit(connection, action, model, actor=actor, at=at, before=old, after=_summary(route))
        return route

    def rollback_target(self, model: str) -> Route | None:
        """The revision that a rollback would restore; None where there is nothing before.

        It is the nearest one before the head that gave other weights. A revision that was itself a rollback stands for
        the one that it restored, so that rolling back twice goes two steps back and not to and fro.
        """
        with read(self.engine) as connection:
            _require_model(connection, model)
            history = {route.revision: route for route in _history(connection, model, None)}
        if not history:
            return None
        head = history[max(history)]
        position = head
        while True:
            while position.restores is not None and position.restores < position.revision:
                position = history[position.restores]
            if position.revision - 1 not in history:
                return None
            position = history[position.revision - 1]
            if _carrying(position) != _carrying(head):
                return position

    def pause(self, model: str, reason: str = "", *, actor: str, at: float) -> Pause:
        """Hold the model's route where it is; a route that is paused already gets the new reason. Who changes routes
        asks `pauses` first.

        Raises ValueError for an unusable reason, NotFoundError for an unknown model, ConflictError where it has no
        route.
        """
        made = Pause(model, reason.strip(), at, actor).check()
        with self._write() as connection:
            _require_model(connection, model)
            route = _head(connection, model)
            if route is None:
                raise ConflictError(f"model {model} has no route to pause", remedy="give it one first")
            before = pauses.begin(connection, made)
            old = {"reason": before.reason} if before else None
            new = {"reason": made.reason, "revision": route.revision}
            _audit(connection, "route.pause", model, actor=actor, at=at, before=old, after=new)
        return made

    def resume(self, model: str, *, actor: str, at: float) -> Pause:
        """Let the model's route be changed again. Returns the pause that ended. Raises NotFoundError, ConflictError."""
        with self._write() as connection:
            _require_model(connection, model)
            before = pauses.end(connection, model)
            if before is None:
                raise ConflictError(f"the route of {model} is not paused", remedy="there is nothing to resume")
            old = {"reason": before.reason, "paused_by": before.paused_by}
            _audit(connection, "route.resume", model, actor=actor, at=at, before=old)
        return before

    def pauses(self) -> dict[str, Pause]:
        """Model -> its pause, for the models whose route is paused."""
        with read(self.engine) as connection:
            return pauses.every(connection)

    # Keys

    def create_key(self, terms: KeyTerms, *, actor: str, at: float) -> tuple[ApiKey, str]:
        """Make an API key. Returns what is kept of it, and the key itself, which nobody can ask for again.

        Raises ValueError for unusable terms, NotFoundError for unknown models, ConflictError where there are too many.
        """
        terms.check()
        secret = keys.new_secret()
        with self._write() as connection:
            for model in terms.models:
                _require_model(connection, model)
            key = keys.create(connection, secret, terms, actor=actor, at=at)
            _audit(connection, "key.create", key.id, actor=actor, at=at, after=keys.summary(key))
        return key, secret

    def api_keys(self) -> list[ApiKey]:
        """Every key ever made, oldest first; revoked and expired ones are among them."""
        with read(self.engine) as connection:
            return keys.every(connection)

    def keys_in_force(self) -> list[ApiKey]:
        """Keys that are not revoked, oldest first; expired ones are among them."""
        with read(self.engine) as connection:
            return keys.every(connection, revoked=False)

    def has_keys(self) -> bool:
        """Whether a key was ever made, revoked ones included."""
        with read(self.engine) as connection:
            return keys.any_made(connection)

    def revoke_key(self, key_id: str, *, actor: str, at: float) -> ApiKey:
        """Take a key out of use; its record stays. Revoking it again changes nothing. Raises NotFoundError."""
        with self._write() as connection:
            key = keys.find(connection, key_id)
            if key.revoked_at is not None:
                return key
            _audit(connection, "key.revoke", key.id, actor=actor, at=at, before=keys.summary(key))
            return keys.revoke(connection, key, at)

    # Audit

    def record(
        self,
        action: str,
        subject: str,
        *,
        actor: str,
        at: float,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
    ) -> None:
        """Write an audit row for something that happened outside the registry, e.g. an applied configuration."""
        with self._write() as connection:
            _audit(connection, action, subject, actor=actor, at=at, before=before, after=after)

    def audit(self, limit: int = 100, subject: str | None = None) -> list[AuditEntry]:
        """The newest `limit` entries, newest first; of one subject (`assistant`, `assistant@v2`) where given."""
        table = schema.audit
        query = select(table).order_by(table.c.id.desc()).limit(limit)
        if subject is not None:
            query = query.where(table.c.subject == subject)
        with read(self.engine) as connection:
            return [AuditEntry(**row._mapping) for row in connection.execute(query)]


def _has_model(connection: Connection, model: str) -> bool:
    return connection.scalar(select(schema.models.c.name).where(schema.models.c.name == model)) is not None


def _require_model(connection: Connection, model: str) -> str:
    """The model's salt. Raises NotFoundError naming the known models."""
    salt = connection.scalar(select(schema.models.c.salt).where(schema.models.c.name == model))
    if salt is None:
        known = connection.scalars(select(schema.models.c.name).order_by(schema.models.c.name)).all()
        raise NotFoundError(f"there is no model {model!r}", remedy=f"known: {', '.join(known) or 'none'}")
    return str(salt)


def _find_version(connection: Connection, model: str, label: str) -> Version | None:
    table = schema.versions
    row = connection.execute(select(table).where(table.c.model == model, table.c.label == label)).one_or_none()
    return None if row is None else to_version(row)


def _version(connection: Connection, model: str, label: str) -> Version:
    version = _find_version(connection, model, label)
    if version is None:
        _require_model(connection, model)
        raise NotFoundError(f"{model} has no version {label!r}", remedy=f"known: {_known(connection, model)}")
    return version


def _known(connection: Connection, model: str) -> str:
    """The labels and aliases of a model that may be used, for a message."""
    table, aliases = schema.versions, schema.aliases
    labels = select(table.c.label).where(table.c.model == model, table.c.retired_at.is_(None))
    names = select(aliases.c.name).where(aliases.c.model == model)
    return ", ".join([*sorted(connection.scalars(labels)), *sorted(connection.scalars(names))]) or "none"


def _check_same(known: Version, offered: Version) -> None:
    if definition(known.manifest) == definition(offered.manifest):
        return
    raise ConflictError(
        f"{known.ref} is registered with another definition ({known.digest}, offered {offered.digest})",
        remedy="a version never changes; register this one under a new label",
    )


def _check_registered(connection: Connection, model: str, labels: Mapping[str, int]) -> None:
    for label in labels:
        _version(connection, model, label)


def _check_usable(connection: Connection, model: str, labels: list[str] | tuple[str, ...]) -> None:
    for label in labels:
        if _version(connection, model, label).retired_at is not None:
            raise NotFoundError(f"{model}@{label} is retired", remedy=f"known: {_known(connection, model)}")


def _check_unused(connection: Connection, version: Version) -> None:
    table = schema.aliases
    names = connection.scalars(
        select(table.c.name)
        .where(table.c.model == version.model, table.c.label == version.label)
        .order_by(table.c.name)
    ).all()
    if names:
        raise ConflictError(
            f"{version.ref} is what the alias {', '.join(names)} points to", remedy="point the alias elsewhere first"
        )
    route = _head(connection, version.model)
    if route is not None and route.weights.get(version.label):
        raise ConflictError(
            f"{version.ref} has {route.weights[version.label]} basis points of the route",
            remedy="give its weight to another version first",
        )
    if route is not None and version.label in route.fallback:
        raise ConflictError(f"{version.ref} is in the route's fallback chain", remedy="take it out of the chain first")
    if route is not None and version.label in (beside := _carried_beside(route)):
        raise ConflictError(
            f"{version.ref} is {beside[version.label]}", remedy="take it out of the configuration first"
        )


def _find_alias(connection: Connection, model: str, name: str) -> Alias | None:
    table = schema.aliases
    row = connection.execute(select(table).where(table.c.model == model, table.c.name == name)).one_or_none()
    return None if row is None else to_alias(row)


def _routes_query() -> Any:
    table = schema.routes
    return select(table, schema.models.c.salt).join(schema.models, schema.models.c.name == table.c.model)


def _history(connection: Connection, model: str, limit: int | None) -> list[Route]:
    table = schema.routes
    query = _routes_query().where(table.c.model == model).order_by(table.c.revision.desc()).limit(limit)
    return [to_route(row) for row in connection.execute(query)]


def _head(connection: Connection, model: str) -> Route | None:
    return next(iter(_history(connection, model, 1)), None)


def _revision(connection: Connection, model: str, revision: int) -> Route | None:
    table = schema.routes
    query = _routes_query().where(table.c.model == model, table.c.revision == revision)
    row = connection.execute(query).one_or_none()
    return None if row is None else to_route(row)


def _check_allocation(weights: Mapping[str, int], allocation: Allocation) -> None:
    held = dict.fromkeys(weights, 0)
    position = 0
    for span in allocation:
        if span.start != position or span.stop <= span.start or span.label not in held:
            raise ValueError(f"allocation has a gap, an overlap or an unknown label at bucket {span.start}")
        held[span.label] += span.stop - span.start
        position = span.stop
    if held != dict(weights):
        raise ValueError(f"allocation holds {held} buckets, but the weights are {dict(weights)}")


def _carrying(route: Route) -> dict[str, int]:
    return {label: weight for label, weight in route.weights.items() if weight > 0}


def _carried_beside(route: Route) -> dict[str, str]:
    """Labels that get requests beside the route's own arms, and as what."""
    shadows = {shadow.label: "a shadow of the route" for shadow in route.shadows}
    return shadows | {
        label: f"in the route's segment {segment.name}"
        for segment in route.segments
        for label, weight in segment.weights.items()
        if weight > 0
    }


def _summary(route: Route) -> dict[str, Any]:
    """A route as its audit rows show it."""
    summary: dict[str, Any] = {
        "revision": route.revision,
        "weights": dict(route.weights),
        "sticky": list(route.sticky),
        "fallback": list(route.fallback),
    }
    values = route_values(route)
    for rules in ("segments", "shadows"):
        if values[rules]:
            summary[rules] = [
                {name: part for name, part in one.items() if name != "allocation"} for one in values[rules]
            ]
    return summary if route.restores is None else {**summary, "restores": route.restores}


def _audit(
    connection: Connection,
    action: str,
    subject: str,
    *,
    actor: str,
    at: float,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    row = {"at": at, "actor": actor, "action": action, "subject": subject}
    changes = {name: dict(value) for name, value in (("before", before), ("after", after)) if value is not None}
    connection.execute(insert(schema.audit).values({**row, **changes}))
