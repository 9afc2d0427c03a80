"""Compare two versions of a model: what they are, how they do, what evaluations say.

Owns: this page. Never: a verdict (eval gives those), what a figure is (`monitoring.arms`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from monitoring.arms import arms
from monitoring.console.charts import Chart, shares_within
from monitoring.console.manifests import differences
from monitoring.console.pages.rollout import colours_of
from monitoring.console.shell import Page, Shell
from monitoring.observe import BOUNDS, DURATION, HISTOGRAM_BOUNDS, TTFT
from registry.entries import HistogramDelta, HistogramKey
from registry.errors import NotFoundError

PAGE: Final = Page("/compare", "Compare", "What is different between two versions, and which does better?", 30)
CHARTS: Final = ((TTFT, "first", "First token: which share came within a time"),
                 (DURATION, "whole", "Whole answer: which share was done within a time"))  # fmt: skip
RUNS_SHOWN: Final = 10
Name = Annotated[str, Query(max_length=64)]


def routes(shell: Shell) -> APIRouter:
    router = APIRouter()

    @router.get(PAGE.path)
    async def compare(request: Request, model: Name = "", a: Name = "", b: Name = "") -> Response:
        status = await shell.source.status()
        models = {one["model"]: one for one in status["models"]}
        if model and model not in models:
            raise NotFoundError(f"no model {model} is served here", remedy=f"there are {', '.join(models) or 'none'}")
        model = model or most_versions(models)
        versions = await shell.source.versions(model) if model else []
        chosen = choose(versions, a, b)
        seen = await look(shell, models[model], versions, chosen) if chosen else None
        return shell.render(
            request, PAGE, "compare.html", models=list(models), model=model, versions=versions, chosen=chosen, seen=seen
        )

    return router


def most_versions(models: Mapping[str, Mapping[str, Any]]) -> str:
    """The model to begin with: the first of those with the most versions; "" where there is none."""
    return max(models, key=lambda name: len(models[name]["versions"]), default="")


def choose(versions: Sequence[Mapping[str, Any]], a: str, b: str) -> tuple[str, str] | None:
    """The two labels: those asked for, else those with the most traffic. None where there are not two versions.

    Raises NotFoundError for a label that there is not.
    """
    labels = [one["label"] for one in versions]
    for label in (a, b):
        if label and label not in labels:
            raise NotFoundError(f"there is no version {label}", remedy=f"there are {', '.join(labels)}")
    if len(labels) < 2:
        return None
    places = {label: place for place, label in enumerate(labels)}
    busiest = sorted(versions, key=lambda one: (-one["weight"], places[one["label"]]))
    spare = [one["label"] for one in busiest if one["label"] not in (a, b)]
    if a and b:
        return a, b
    if a or b:
        return (a, spare[0]) if a else (spare[0], b)
    left, right = sorted(spare[:2], key=places.__getitem__)
    return left, right


async def look(
    shell: Shell, status: Mapping[str, Any], versions: Sequence[Mapping[str, Any]], chosen: tuple[str, str]
) -> dict[str, Any]:
    """Everything that the page shows of the two."""
    source, model = shell.source, status["model"]
    known = {one["label"]: one for one in versions}
    pair = [known[label] for label in chosen]
    found, same = differences(pair[0]["manifest"], pair[1]["manifest"])
    traffic = await source.traffic(model, 0.0)
    live = arms(traffic.records)
    colours = colours_of([one["label"] for one in versions])
    totals = await source.histograms()
    drawn = [distribution(totals, model, chosen, colours, *one) for one in CHARTS]
    digests = {one["digest"] for one in pair}
    refs = {f"{model}@{label}" for label in chosen}
    return {
        "pair": pair,
        "colours": colours,
        "differences": found,
        "same": same,
        "states": {one["label"]: one for one in status["versions"]},
        "arms": [live.get(label) for label in chosen],
        "oldest": min((one.started_at for one in traffic.records), default=None),
        "charts": [one for one in drawn if one is not None],
        "gates": [
            one | {"suites_shown": suites_of(one["evidence"])}
            for one in await source.gates(model)
            if {one["baseline_digest"], one["candidate_digest"]} == digests
        ],
        "drift": [one for one in status_drift(await source.drift(model)) if one["version"] in chosen],
        "runs": [one for one in await source.evaluations(model) if one.digest in digests or one.subject in refs][
            :RUNS_SHOWN
        ],
    }


def suites_of(evidence: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The suites of a verdict that can be shown: evidence is kept as its author sent it."""
    found = evidence.get("suites")
    numbers = ("candidate", "baseline", "n", "margin")

    def is_usable(one: Any) -> bool:
        if not isinstance(one, Mapping) or not isinstance(one.get("suite"), str):
            return False
        ends = one.get("interval")
        values = [*map(one.get, numbers), *(ends if isinstance(ends, list) and len(ends) == 2 else [None])]
        return all(isinstance(value, int | float) for value in values)

    return [one for one in found if is_usable(one)] if isinstance(found, list) else []


def status_drift(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The latest check of every version."""
    found: list[dict[str, Any]] = board["drifts"]
    return found


def distribution(
    totals: Mapping[HistogramKey, HistogramDelta],
    model: str,
    labels: Sequence[str],
    colours: Mapping[str, int],
    metric: str,
    name: str,
    title: str,
) -> Chart | None:
    """The chart of a latency, from the ledger's totals: endpoints added up. None where nothing was counted."""
    counts: dict[str, list[int]] = {}
    bounds = BOUNDS[HISTOGRAM_BOUNDS[metric]]
    for key, total in totals.items():
        if (key.name, key.labels[0], key.bounds) != (metric, model, HISTOGRAM_BOUNDS[metric]):
            continue
        if key.labels[1] not in labels:
            continue
        there = counts.setdefault(key.labels[1], [0] * len(total.counts))
        counts[key.labels[1]] = [one + other for one, other in zip(there, total.counts, strict=True)]
    ordered = [(label, bounds, counts[label]) for label in labels if label in counts]
    return shares_within(f"{name}-{model}", title, ordered, dict(colours))
