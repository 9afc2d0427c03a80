"""Verdicts of gates: which policy a candidate passed or failed against which baseline, with the evidence.

Owns: their rows, written once, each with its audit row in the same transaction, and never changed; and what a required
gate asks of them. Never: deciding a verdict (eval does), routes.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from sqlalchemy import Connection, Engine, Row, insert, select

from registry import schema
from registry.database import read, write
from registry.errors import ConflictError, NotFoundError
from registry.models import check_name

Outcome = Literal["pass", "fail", "inconclusive"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("pass", "fail", "inconclusive")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """One decision of one policy about two versions of a model."""

    id: str = ""
    """Given when it is written."""
    model: str
    policy: str
    """The policy's name."""
    policy_digest: str
    baseline: str
    """Label, at the time; the digest says which version it was."""
    baseline_digest: str
    candidate: str
    candidate_digest: str
    verdict: Outcome
    text: str = ""
    """The decision in a sentence."""
    suites: Mapping[str, str] = field(default_factory=dict)
    """Suite -> its digest."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Runs, figures and checks, as eval states them."""
    author: str = ""
    created_at: float = 0.0
    """Unix seconds."""

    def check(self) -> None:
        """Raise ValueError where it could not be kept as it is."""
        for kind, name in (("policy", self.policy), ("version", self.baseline), ("version", self.candidate)):
            check_name(kind, name)
        if self.verdict not in OUTCOMES:
            raise ValueError(f"verdict {self.verdict!r} is none of {', '.join(OUTCOMES)}")


class Verdicts:
    """The verdicts in the registry's database. Every method may raise DatabaseError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(self, found: GateVerdict) -> GateVerdict:
        """Write a verdict. Returns it with its id.

        Raises NotFoundError where a version is not registered, ConflictError where one has another digest than the
        verdict says, ValueError for unusable names.
        """
        found.check()
        kept = replace(found, id=f"gate_{secrets.token_hex(6)}")
        values = {name: getattr(kept, name) for name in GateVerdict.__dataclass_fields__}
        values |= {"suites": dict(kept.suites), "evidence": dict(kept.evidence)}
        after = {"id": kept.id, "policy": kept.policy, "verdict": kept.verdict, "baseline": kept.baseline}
        with write(self._engine) as connection:
            for label, said in ((kept.baseline, kept.baseline_digest), (kept.candidate, kept.candidate_digest)):
                digest = _digest(connection, kept.model, label)
                if digest != said:
                    raise ConflictError(
                        f"{kept.model}@{label} is {digest}, and the verdict is about {said}",
                        remedy="run the gate against this yard's versions",
                    )
            connection.execute(insert(schema.gate_verdicts).values(values))
            connection.execute(
                insert(schema.audit).values(
                    at=kept.created_at,
                    actor=kept.author,
                    action="gate.record",
                    subject=f"{kept.model}@{kept.candidate}",
                    after=after,
                )
            )
        return kept

    def newest(
        self,
        model: str | None = None,
        *,
        candidate: str | None = None,
        baseline: str | None = None,
        policy: str | None = None,
        limit: int = 50,
    ) -> list[GateVerdict]:
        """The newest `limit`, newest first: all, a model's, those of a policy, those about the versions that are
        labelled so now, whatever they were called then. Raises NotFoundError for an unknown label."""
        table = schema.gate_verdicts
        query = select(table).order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit)
        with read(self._engine) as connection:
            digests = [
                None if label is None or model is None else _digest(connection, model, label)
                for label in (candidate, baseline)
            ]
            for column, wanted in (
                (table.c.model, model),
                (table.c.candidate_digest, digests[0]),
                (table.c.baseline_digest, digests[1]),
                (table.c.policy, policy),
            ):
                if wanted is not None:
                    query = query.where(column == wanted)
            return [_to_verdict(row) for row in connection.execute(query)]

    def lacking(self, model: str, policy: str, *, baseline: str, candidate: str) -> str:
        """Why the candidate may not take the baseline's place under the policy; "" where its newest verdict is a pass,
        or where both are one version."""
        with read(self._engine) as connection:
            if _digest(connection, model, baseline) == _digest(connection, model, candidate):
                return ""
        found = self.newest(model, candidate=candidate, baseline=baseline, policy=policy, limit=1)
        if not found:
            return f"the gate {policy} was never run on it against {baseline}"
        return "" if found[0].verdict == "pass" else f"the gate {policy} against {baseline} says {found[0].verdict}"


def _digest(connection: Connection, model: str, label: str) -> str:
    table = schema.versions
    digest = connection.scalar(select(table.c.digest).where(table.c.model == model, table.c.label == label))
    if digest is None:
        known = connection.scalars(select(table.c.label).where(table.c.model == model).order_by(table.c.label)).all()
        remedy = f"known: {', '.join(known)}" if known else "there is no such model"
        raise NotFoundError(f"{model} has no version {label!r}", remedy=remedy)
    return str(digest)


def _to_verdict(row: Row[Any]) -> GateVerdict:
    return GateVerdict(**row._mapping)
