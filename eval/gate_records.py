"""A gate's verdict on its way to the registry and back: through the admin API, or the database where no yard runs.

Owns: what a verdict's evidence holds, where it is written, its tables. Never: deciding, the rows (registry.verdicts).
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval import endpoint
from eval.endpoint import Endpoint
from eval.errors import RunError
from eval.gate import Decision, Judged
from eval.policy import Policy
from eval.reports import document
from registry.errors import RegistryError
from registry.models import VersionRef
from registry.state import StateDir
from registry.store import Registry
from registry.verdicts import GateVerdict, Verdicts

_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}
NOT_KEPT = "the verdict is not in a registry: "


def verdict_of(policy: Policy, judged: Sequence[Judged], decision: Decision) -> GateVerdict:
    """The verdict with its evidence: per suite the runs and figures, and every check."""
    sides = judged[0].assessment
    left, right = sides.baseline.subject, sides.candidate.subject
    model = right.model.partition("@")[0]
    return GateVerdict(
        model=model,
        policy=policy.name,
        policy_digest=policy.digest,
        baseline=left.model.partition("@")[2],
        baseline_digest=left.digest,
        candidate=right.model.partition("@")[2],
        candidate_digest=right.digest,
        verdict=decision.outcome,
        text=decision.text,
        suites={one.suite: one.suite_digest for one in judged},
        evidence={
            "alpha": policy.alpha,
            "suites": [_suite(one) for one in judged],
            "checks": [asdict(check) for check in decision.checks],
        },
        author=getpass.getuser(),
        created_at=time.time(),
    )


def _suite(one: Judged) -> dict[str, Any]:
    overall = one.assessment.result.overall
    value: dict[str, Any] = document.finite(
        {
            "suite": one.suite,
            "digest": one.suite_digest,
            "runs": {"baseline": one.assessment.baseline.run.name, "candidate": one.assessment.candidate.run.name},
            "margin": one.margin,
            "n": overall.n,
            "baseline": overall.baseline.mean,
            "candidate": overall.candidate.mean,
            "difference": overall.difference,
            "interval": [overall.interval.low, overall.interval.high],
            "p": overall.p,
        }
    )
    return value


def write(where: Endpoint, state: StateDir, verdict: GateVerdict) -> tuple[GateVerdict | None, str]:
    """Keep the verdict. Returns it as kept (None where there is no registry that knows both versions), and a note."""
    if not verdict.baseline_digest or not verdict.candidate_digest:
        return None, f"{NOT_KEPT}it takes two pinned versions of a yard (assistant@v1, assistant@v2)"
    body = {
        name: value for name, value in asdict(verdict).items() if name not in ("id", "model", "author", "created_at")
    }
    answer = endpoint.admin_post(where, f"models/{quote(verdict.model)}/gates", body)
    if answer is not None:
        if "id" in answer:
            return replace(verdict, id=answer["id"], author=answer["author"]), f"written as {answer['id']}"
        error = answer.get("error") or {}
        raise RunError(f"{NOT_KEPT}{error.get('message', 'the admin API refuses it')}")
    if not state.database.exists():
        return None, f"{NOT_KEPT}no admin API answers, and {state.root} has none"
    registry = Registry.open(state.database)
    try:
        kept = Verdicts(registry.engine).record(verdict)
    except RegistryError as error:
        raise RunError(f"{NOT_KEPT}{error}") from error
    finally:
        registry.close()
    return kept, f"written as {kept.id}, into the registry itself: no admin API answers"


def listed(where: Endpoint, state: StateDir, model: str, policy: str) -> list[dict[str, Any]]:
    """Verdicts as the admin API shows them, newest first. Raises RunError where there is no registry."""
    names = [model] if model else [one["model"] for one in endpoint.admin_get(where, "models") or ()]
    if names and where.admin_url:
        wanted = f"?policy={quote(policy)}" if policy else ""
        answers = [endpoint.admin_get(where, f"models/{quote(name)}/gates{wanted}") for name in names]
        if all(answer is not None for answer in answers):
            return sorted((one for answer in answers for one in answer), key=lambda one: -one["created_at"])
        raise RunError(f"the yard knows no model {model!r}")
    if not state.database.exists():
        raise RunError(f"no yard runs, and there is no registry in {state.root}: name another with --state-dir")
    registry = Registry.open(state.database)
    try:
        return [asdict(one) for one in Verdicts(registry.engine).newest(model or None, policy=policy or None)]
    finally:
        registry.close()


def as_json(verdict: GateVerdict, kept: GateVerdict | None, note: str, exit_code: int) -> dict[str, Any]:
    """The one JSON object of `eval gate`."""
    return asdict(kept or verdict) | {"note": note, "exit_code": exit_code}


def show(console: Console, verdict: GateVerdict, decision: Decision) -> None:
    """Every check, then the verdict."""
    table = Table("suite", "check", "", "why", box=None, pad_edge=False)
    for check in decision.checks:
        colour = _COLOURS[check.outcome]
        table.add_row(escape(check.suite), escape(check.name), f"[{colour}]{check.outcome}[/]", escape(check.text))
    console.print(table)
    sides = f"{verdict.model}@{verdict.candidate} against {verdict.baseline}" if verdict.candidate else "the candidate"
    console.print(
        f"\n[bold]gate {verdict.policy}[/]  {escape(sides)}: [bold {_COLOURS[decision.outcome]}]{decision.outcome}[/]  "
        f"{escape(decision.text)}"
    )


def show_list(console: Console, found: Iterable[dict[str, Any]]) -> None:
    """A verdict a line."""
    table = Table("gate", "verdict", "candidate", "baseline", "suites", "when", "by", "id", box=None, pad_edge=False)
    for one in found:
        when = datetime.fromtimestamp(one["created_at"]).astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(
            one["policy"],
            f"[{_COLOURS[one['verdict']]}]{one['verdict']}[/]",
            str(VersionRef(one["model"], one["candidate"])),
            one["baseline"],
            escape(", ".join(one["suites"])),
            when,
            escape(one["author"]),
            one["id"],
        )
    console.print(table)
