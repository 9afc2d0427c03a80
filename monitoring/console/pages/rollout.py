"""A rollout as it runs: how a model's traffic was divided, by whom, and how the arms do beside each other.

Owns: this page. Never: moving traffic (the actions do), judging an arm, what a figure is (`monitoring.arms`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from monitoring.arms import Arm, arms
from monitoring.console.charts import Chart, weights_over_time
from monitoring.console.pages.requests import hello
from monitoring.console.shell import PREFIX, Page, Shell
from monitoring.sample_ratio import Split
from registry.errors import NotFoundError

PAGE: Final = Page(
    "/rollout", "Rollout", "How is traffic divided, how did it come to that, and how do the arms do?", order=20
)
HISTORY: Final = 50
BROKEN_P: Final = 0.001
"""Below it an alert is raised too."""
COLOURS: Final = 6
ACTIONS: Final = {
    "route.set": "changed",
    "route.forced": "forced past the gate",
    "route.rollback": "rolled back",
    "route.rules": "rules changed by the configuration",
}


@dataclass(frozen=True, slots=True)
class Revision:
    """One entry of the history."""

    revision: int
    at: float
    by: str
    how: str
    weights: Mapping[str, int]
    before: Mapping[str, int]
    restores: int | None

    @property
    def moved(self) -> list[tuple[str, int, int]]:
        """(label, before, after) in basis points of what changed."""
        labels = [*self.weights, *(label for label in self.before if label not in self.weights)]
        pairs = ((label, self.before.get(label, 0), self.weights.get(label, 0)) for label in labels)
        return [one for one in pairs if one[1] != one[2]]


def routes(shell: Shell) -> APIRouter:
    router = APIRouter()

    @router.get(PAGE.path)
    async def first(request: Request) -> Response:
        models = [one["model"] for one in (await shell.source.status())["models"]]
        if not models:
            return shell.render(request, PAGE, "rollout.html", models=[], model="", seen=None, hello="")
        return RedirectResponse(f"{PREFIX}{PAGE.path}/{models[0]}", status_code=307)

    @router.get(PAGE.path + "/{model}")
    async def rollout(request: Request, model: str) -> Response:
        status = await shell.source.status()
        models = [one["model"] for one in status["models"]]
        if model not in models:
            raise NotFoundError(
                f"no model {model} is served here", remedy=f"there are {', '.join(models) or 'none yet'}"
            )
        seen = await look(shell, model)
        hint = hello(status, model)
        return shell.render(request, PAGE, "rollout.html", models=models, model=model, seen=seen, hello=hint)

    return router


async def look(shell: Shell, model: str) -> dict[str, Any]:
    """Everything that the page shows of one model."""
    source, now = shell.source, shell.clock()
    status = next(one for one in (await source.status())["models"] if one["model"] == model)
    labels = [one["label"] for one in await source.versions(model)]
    colours = colours_of(labels)
    found = history(await source.route_history(model, HISTORY), await source.audit(subject=model, limit=4 * HISTORY))
    since = found[0].at if found else 0.0
    traffic = await source.traffic(model, since)
    policy = (await source.settings(model)).required_gate
    verdicts = [one for one in await source.gates(model) if not policy or one["policy"] == policy]
    weights = dict(found[0].weights) if found else {}
    return {
        "status": status,
        "states": {one["label"]: one for one in status["versions"]},
        "colours": colours,
        "history": found,
        "current": found[0] if found else None,
        "weights": [(label, weights.get(label, 0), colours.get(label, 0)) for label in weights],
        "since": traffic.since,
        "is_cut": traffic.since > since + 1,
        "arms": compared(arms(traffic.records, since=traffic.since), weights, labels),
        "policy": policy,
        "verdicts": verdicts[:5],
        "pause": status["pause"],
        "split": divided(await source.split(model), weights),
        "chart": over_time(found, now=now, colours=colours, model=model),
    }


def colours_of(labels: Sequence[str]) -> dict[str, int]:
    """Label -> number of its colour: its place among the model's versions, whatever page it stands on."""
    return {label: place % COLOURS + 1 for place, label in enumerate(labels)}


def history(found: Sequence[Mapping[str, Any]], audit: Sequence[Mapping[str, Any]]) -> list[Revision]:
    """The revisions, newest first, each with what the audit calls it."""
    said = {(one["after"] or {}).get("revision"): one["action"] for one in audit if one["action"] in ACTIONS}
    made: list[Revision] = []
    for place, one in enumerate(found):
        before = found[place + 1]["weights"] if place + 1 < len(found) else {}
        how = ACTIONS[said[one["revision"]]] if one["revision"] in said else "changed"
        how = "set" if not before and how == "changed" else how
        made.append(
            Revision(
                one["revision"], one["created_at"], one["created_by"], how, one["weights"], before, one["restores"]
            )
        )
    return made


def compared(
    found: Mapping[str, Arm], weights: Mapping[str, int], labels: Sequence[str]
) -> list[tuple[str, Arm | None]]:
    """The arms in the order of the versions; one with weight that nothing was given yet is None."""
    wanted = [label for label in labels if weights.get(label) or label in found]
    return [(label, found.get(label)) for label in wanted]


def over_time(found: Sequence[Revision], *, now: float, colours: Mapping[str, int], model: str) -> Chart | None:
    """The weights as steps; None where there was only ever one revision."""
    if len(found) < 2:
        return None
    past = [(one.at, dict(one.weights)) for one in reversed(found)]
    there = [label for label in colours if any(weights.get(label) for _, weights in past)]
    return weights_over_time(past, now=now, colours={label: colours[label] for label in there}, model=model)


@dataclass(frozen=True, slots=True)
class Divided:
    """Whether the split gives each arm its share of users and conversations."""

    kind: str
    title: str
    units: int
    arms: Sequence[tuple[str, int, float]]
    """(label, distinct units, the share of the units that its weight says)."""
    p: float


def divided(split: Split | None, weights: Mapping[str, int]) -> Divided | None:
    """The split in words; None where no request carried a key by which units are told apart, or where there is one arm.

    `p` may be looked at as often as one likes: its bound holds at every look (`monitoring.sample_ratio`).
    """
    total = sum(split.units.values()) if split is not None else 0
    shares = {label: weight / 10_000 for label, weight in weights.items() if weight}
    if split is None or not total or len(shares) < 2:
        return None
    kind, title = ("bad", "The split is broken.") if split.p < BROKEN_P else ("good", "The split is sound.")
    arms_ = [(label, split.units.get(label, 0), share) for label, share in shares.items()]
    return Divided(kind, title, total, arms_, split.p)
