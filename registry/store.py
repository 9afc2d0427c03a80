"""The registry: models, versions, aliases, routes and their audit, in one SQL database.

Owns: what is registered and every change to it, each with its audit row in the same transaction. Never: deciding an
allocation (serving.router.split does), fetching artifacts, talking to engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from registry.manifest import Manifest
from registry.models import Alias, Allocation, AuditEntry, Route, Version, VersionRef


class Registry:
    """A registry in a database. Thread-safe: every call is a transaction of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @classmethod
    def open(cls, location: str | Path) -> Registry:
        """Open the database at a path or an SQLAlchemy URL, creating or migrating it where needed."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def register(self, model: str, label: str, manifest: Manifest, *, author: str, at: float) -> Version:
        """Register a version. The label's own definition again returns what is there; another one is a ConflictError."""
        raise NotImplementedError

    def models(self) -> list[str]:
        raise NotImplementedError

    def version(self, model: str, label: str) -> Version:
        raise NotImplementedError

    def versions(self, model: str | None = None) -> list[Version]:
        """By model, then in the order of registration."""
        raise NotImplementedError

    def resolve(self, ref: VersionRef) -> Version:
        """The version that a label or an alias names."""
        raise NotImplementedError

    def retire(self, model: str, label: str, *, actor: str, at: float) -> Version:
        raise NotImplementedError

    def set_alias(self, model: str, name: str, label: str, *, actor: str, at: float) -> Alias:
        raise NotImplementedError

    def aliases(self, model: str | None = None) -> list[Alias]:
        raise NotImplementedError

    def route(self, model: str) -> Route | None:
        raise NotImplementedError

    def routes(self) -> dict[str, Route]:
        raise NotImplementedError

    def route_history(self, model: str, limit: int = 50) -> list[Route]:
        """Newest first."""
        raise NotImplementedError

    def set_route(
        self,
        model: str,
        weights: Mapping[str, int],
        allocation: Allocation,
        *,
        sticky: tuple[str, ...] | None = None,
        fallback: tuple[str, ...] | None = None,
        actor: str,
        at: float,
        restores: int | None = None,
        action: str = "route.set",
    ) -> Route:
        """Make a new revision of the model's route. `sticky` and `fallback` keep their value where None."""
        raise NotImplementedError

    def rollback_target(self, model: str) -> Route | None:
        """The revision that a rollback would restore; None where there is nothing before."""
        raise NotImplementedError

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
        """Write an audit row for something that happened outside the registry (an applied configuration)."""
        raise NotImplementedError

    def audit(self, limit: int = 100, subject: str | None = None) -> list[AuditEntry]:
        """Newest first."""
        raise NotImplementedError
