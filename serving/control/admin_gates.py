"""The admin API's calls about gates: verdicts of evaluations, written once.

Owns: these paths and their shapes. Never: deciding a verdict (eval), what a required gate stops (changes).
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from registry.models import VersionRef
from registry.verdicts import GateVerdict, Verdicts
from serving.control.admin_api import Control, actor_of
from serving.control.admin_models import Shape

Actor = Annotated[str, Depends(actor_of)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class RecordGate(Shape):
    """What was decided. The digests must be those of the versions that are registered here."""

    policy: Name
    policy_digest: Digest
    baseline: Name
    baseline_digest: Digest
    candidate: Name
    candidate_digest: Digest
    verdict: Literal["pass", "fail", "inconclusive"]
    text: str = Field(default="", max_length=2000)
    suites: dict[str, str] = Field(default={}, description="Suite -> its digest.")
    evidence: dict[str, Any] = Field(default={}, description="Runs, figures and checks.")


class GateView(Shape):
    """One verdict."""

    id: str
    model: str
    policy: str
    policy_digest: str
    baseline: str
    baseline_digest: str
    candidate: str
    candidate_digest: str
    verdict: Literal["pass", "fail", "inconclusive"]
    text: str
    suites: dict[str, str]
    evidence: dict[str, Any]
    author: str
    created_at: float

    @classmethod
    def of(cls, found: GateVerdict) -> GateView:
        return cls(**asdict(found))


def gate_routes(control: Control) -> APIRouter:
    """The routes, over one control plane."""
    router = APIRouter()

    @router.get("/models/{model}/gates", tags=["versions"], summary="Verdicts of gates, newest first")
    def list_gates(
        model: str,
        candidate: Annotated[str | None, Query(description="Only about this version, by label or alias.")] = None,
        policy: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 50,
    ) -> list[GateView]:
        control.registry.versions(model)  # raises NotFoundError, which names the known models
        label = control.registry.resolve(VersionRef(model, candidate)).label if candidate else None
        found = Verdicts(control.registry.engine).newest(model, candidate=label, policy=policy, limit=limit)
        return [GateView.of(one) for one in found]

    @router.post("/models/{model}/gates", tags=["versions"], summary="Record a gate's verdict", status_code=201)
    def record_gate(model: str, body: RecordGate, actor: Actor) -> GateView:
        """Immutable. A model that requires the gate gives a version more traffic only once its newest one passed."""
        verdict = GateVerdict(model=model, author=actor, created_at=time.time(), **body.model_dump())
        return GateView.of(Verdicts(control.registry.engine).record(verdict))

    return router
