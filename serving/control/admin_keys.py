"""The admin API's calls about API keys.

Owns: these paths and their shapes. Never: deciding (changes, registry), checking a key (access, the router). A key
itself is in one answer only, that of the call that made it.
"""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import Field

from registry.keys import ApiKey, KeyTerms
from serving.control.admin_api import Control, actor_of
from serving.control.admin_models import Shape

Actor = Annotated[str, Depends(actor_of)]
Limit = Annotated[int, Field(ge=0, le=2**53, description="0 for no limit.")]
YEAR_S = 365 * 86_400.0


class CreateKey(Shape):
    name: str = Field(default="", max_length=64, description="Whose it is or what it is for.")
    scopes: list[Literal["inference", "admin"]] = Field(default=["inference"], min_length=1, max_length=2)
    models: list[str] = Field(default=[], max_length=256, description="Models that it may use; empty for all.")
    expires_in_s: float | None = Field(default=None, gt=0, le=100 * YEAR_S, description="null for never.")
    priority: Literal["interactive", "batch"] = "interactive"
    requests_per_minute: Limit = 0
    tokens_per_minute: Limit = 0
    concurrency_max: int = Field(default=0, ge=0, le=1_000_000, description="0 for no limit.")
    budget_tokens: Limit = 0
    budget_engine_s: float = Field(default=0.0, ge=0, le=1e12, description="In-flight seconds at engines; 0: no limit.")
    budget_period: Literal["day", "month", "total"] = "month"

    def terms(self, now: float) -> KeyTerms:
        values = self.model_dump(exclude={"expires_in_s"})
        values |= {"scopes": tuple(self.scopes), "models": tuple(dict.fromkeys(self.models))}
        return KeyTerms(**values, expires_at=now + self.expires_in_s if self.expires_in_s else 0.0)


class KeyView(Shape):
    """One API key: everything but the key."""

    id: str
    name: str
    key: str
    """As far as it may be shown: `mya_…xY3z`."""
    state: Literal["active", "expired", "revoked"]
    scopes: list[str]
    models: list[str]
    priority: str
    requests_per_minute: int
    tokens_per_minute: int
    concurrency_max: int
    budget_tokens: int
    budget_engine_s: float
    budget_period: str
    created_at: float
    created_by: str
    expires_at: float | None
    revoked_at: float | None

    @classmethod
    def of(cls, key: ApiKey, now: float) -> KeyView:
        terms = key.terms
        return cls(
            id=key.id,
            name=terms.name,
            key=key.shown,
            state=key.state(now),
            scopes=list(terms.scopes),
            models=list(terms.models),
            priority=terms.priority,
            requests_per_minute=terms.requests_per_minute,
            tokens_per_minute=terms.tokens_per_minute,
            concurrency_max=terms.concurrency_max,
            budget_tokens=terms.budget_tokens,
            budget_engine_s=terms.budget_engine_s,
            budget_period=terms.budget_period,
            created_at=key.created_at,
            created_by=key.created_by,
            expires_at=terms.expires_at or None,
            revoked_at=key.revoked_at,
        )


class KeyChanged(Shape):
    """A key as it is now: every worker listed in no `waiting_for` serves by it."""

    key: KeyView
    generation: int
    waiting_for: list[str]
    """Workers that did not confirm in time; the table reaches them when they can be reached."""


class KeyCreated(KeyChanged):
    secret: str
    """The key itself. It is shown this once and kept nowhere."""


def key_routes(control: Control) -> APIRouter:
    """The routes, over one control plane."""
    router = APIRouter()

    @router.get("/keys", tags=["access"], summary="Every API key ever made, oldest first")
    def list_keys() -> list[KeyView]:
        now = time.time()
        return [KeyView.of(key, now) for key in control.registry.api_keys()]

    @router.post("/keys", tags=["access"], summary="Make an API key", status_code=201)
    async def create_key(body: CreateKey, actor: Actor, response: Response) -> KeyCreated:
        """Answers once every worker takes it. From the first key on, requests to models need one."""
        now = time.time()
        key, secret, published = await control.changes.create_key(body.terms(now), actor=actor)
        response.headers["cache-control"] = "no-store"
        return KeyCreated(
            key=KeyView.of(key, now),
            secret=secret,
            generation=published.generation,
            waiting_for=list(published.waiting_for),
        )

    @router.post("/keys/{key_id}/revoke", tags=["access"], summary="Take an API key out of use")
    async def revoke_key(key_id: str, actor: Actor) -> KeyChanged:
        """Answers once no worker takes it any more. Requests that began before are finished. It cannot be undone."""
        key, published = await control.changes.revoke_key(key_id, actor=actor)
        return KeyChanged(
            key=KeyView.of(key, time.time()),
            generation=published.generation,
            waiting_for=list(published.waiting_for),
        )

    return router
