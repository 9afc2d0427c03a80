"""Drift: did what users ask, what versions answer, or what users say of it change since the reference?

Owns: this page. Never: judging drift (`monitoring.live_drift`), checking or pinning (the commands do).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from monitoring.console.charts import Chart, Series
from monitoring.console.data import DriftPolicy
from monitoring.console.pages.rollout import colours_of
from monitoring.console.shell import Page, Shell
from monitoring.drift_watch_board import Glance
from monitoring.drift_watch_episodes import Episode
from monitoring.features import EMBEDDINGS, FEATURES
from monitoring.windows import SEVERITY, Drift, FeatureDrift
from registry.errors import NotFoundError

PAGE: Final = Page("/drift", "Drift", "Is today's traffic still what it was when it was good?", order=50, private=True)
KINDS: Final = (
    ("data", "Inputs", "What users ask."),
    ("output", "Outputs", "What the version answers."),
    ("concept", "Quality", "What users say of the answers."),
)
MEANING: Final = {name: one.meaning for name, one in (*FEATURES.items(), *EMBEDDINGS.items())}
LONG: Final = re.compile(r"\d+\.\d{3,}")
SCALE: Final = 4.0
"""The bars reach as far as so many times the effect on which to act; what is larger fills them."""


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of drift of one version."""

    name: str
    meaning: str
    verdict: str
    features: Sequence[FeatureDrift]


@dataclass(frozen=True, slots=True)
class Watched:
    """A model with its reference and the latest check of its versions."""

    model: str
    reference: Mapping[str, Any] | None
    drifts: Sequence[tuple[Drift, Sequence[Part]]]
    chart: Chart | None
    rate: float


def routes(shell: Shell) -> APIRouter:
    router = APIRouter()

    @router.get(PAGE.path)
    async def drift(request: Request, model: Annotated[str, Query(max_length=64)] = "") -> Response:
        served = [one["model"] for one in (await shell.source.status())["models"]]
        if model and model not in served:
            raise NotFoundError(f"no model {model} is served here", remedy=f"there are {', '.join(served) or 'none'}")
        view = await shell.source.drift(model)
        policy = await shell.source.drift_policy()
        found = [await watched(shell, name, view, policy) for name in ([model] if model else served)]
        return shell.render(
            request,
            PAGE,
            "drift.html",
            served=served,
            model=model,
            view=view,
            policy=policy,
            found=sorted(found, key=lambda one: (one.reference is None, one.model)),
            episodes=msgspec.convert(view["episodes"], list[Episode]),
            meaning=MEANING,
            scale=SCALE * policy.act,
            shorter=shorter,
        )

    return router


async def watched(shell: Shell, model: str, view: Mapping[str, Any], policy: DriftPolicy) -> Watched:
    """Everything of one model."""
    drifts = [one for one in msgspec.convert(view["drifts"], list[Drift]) if one.model == model]
    drifts.sort(key=lambda one: (-SEVERITY[one.verdict], one.version))
    history = [one for one in msgspec.convert(view["history"], list[Glance]) if one.model == model]
    colours = colours_of([one["label"] for one in await shell.source.versions(model)])
    return Watched(
        model,
        view["references"].get(model),
        [(one, parts(one)) for one in drifts],
        effects(model, history, colours, policy),
        (await shell.source.settings(model)).sample_rate,
    )


def parts(drift: Drift) -> list[Part]:
    """The kinds apart; one about which nothing is known is inconclusive."""
    return [
        Part(title, meaning, drift.kinds.get(kind, "inconclusive"), [one for one in drift.features if one.kind == kind])
        for kind, title, meaning in KINDS
    ]


def shorter(name: str) -> str:
    """A bin's name with numbers that are read at a glance: 0.0491674 to 0.0579923 -> 0.0492 to 0.058."""
    return LONG.sub(lambda found: f"{float(found[0]):.3g}", name)


def effects(model: str, history: Sequence[Glance], colours: Mapping[str, int], policy: DriftPolicy) -> Chart | None:
    """The largest effect of every check over time; None before there are two."""
    times = sorted({one.at for one in history})
    if len(times) < 2:
        return None
    found = {(one.version, one.at): one.effect for one in history}
    versions = [label for label in colours if any(one.version == label for one in history)]
    lines = [Series(label, tuple(found.get((label, at)) for at in times), colours[label]) for label in versions]
    lines += [
        Series(f"{name} from {value:g}", (value,) * len(times), 0, dashed=True)
        for name, value in (("watch", policy.watch), ("act", policy.act))
    ]
    last = ", ".join(f"{label} {found.get((label, times[-1]), 0.0):.2f}" for label in versions)
    return Chart(
        f"effects-{model}",
        "The largest effect of every check",
        f"{len(times)} checks; at the last one {last}.",
        tuple(times),
        tuple(lines),
        unit="score",
    )
