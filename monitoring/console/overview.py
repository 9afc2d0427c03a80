"""What serves now, put into the order and the words of somebody who looks for the first time.

Owns: the alerts, the figures of models and versions, the charts of the overview. Never: I/O, markup. Pure: the status,
the series and the cost come in as the admin API gives them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Literal

from monitoring.console.charts import Chart, Series
from monitoring.console.words import points, share

Json = Mapping[str, Any]
COLOURS: Final = 6
ERROR_WINDOW_S: Final = 300
ERRORS_BAD: Final = 0.01
"""From this share of failed requests on somebody should look."""
CHARTED_MAX: Final = 6
DOWN: Final = ("backoff", "failed")
BUSY: Final = ("starting", "draining")


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that somebody should look at."""

    kind: Literal["bad", "wait"]
    text: str
    detail: str = ""
    page: str = ""
    """Where to look, below `/console`."""


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of a model now."""

    label: str
    colour: int
    state: str
    weight: int
    aliases: tuple[str, ...]
    shadow: int
    """Basis points of the requests that it gets copies of."""
    requests_per_second: float
    error_share: float | None
    """Of the last five minutes; None without requests."""
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    tokens_per_second: float
    inflight: int
    cost_per_1k: float | None
    currency: str
    requests: int


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model with its versions, those with traffic first."""

    name: str
    revision: int
    shares: tuple[tuple[str, int, int], ...]
    """(label, basis points, colour) of the arms."""
    rows: tuple[VersionRow, ...]
    fallback: tuple[str, ...]
    segments: tuple[str, ...]
    pause: Json | None
    """Who holds the route where it is, since when and why."""

    @property
    def is_divisible(self) -> bool:
        """Whether there is a second version that could have traffic."""
        return len(self.shares) > 1 or sum(row.state != "registered" for row in self.rows) > 1


def alerts(status: Json, series: Json) -> list[Alert]:
    """What is wrong, the worst first: engines, versions without one, failed requests, other problems, drift."""
    found: list[Alert] = []
    told: list[str] = []
    for engine in status["engines"]:
        if engine["state"] not in DOWN:
            continue
        told.append(f"{engine['id']} failed")
        what = "has failed and is not started again" if engine["state"] == "failed" else "is down and is tried again"
        last = str(engine["last_error"])
        found.append(Alert("bad", f"The engine {engine['id']} {what}.", last, "/engines"))
    for model in status["models"]:
        found += _unserved(model)
    failed = error_share(series)
    if failed is not None and failed >= ERRORS_BAD:
        text = f"{share(failed)} of the requests of the last five minutes failed."
        found.append(Alert("bad", text, page="/requests?outcome=not+completed"))
    problems = [one for one in status["problems"] if not one.startswith(tuple(told))] if told else status["problems"]
    found += [Alert("bad", _sentence(problem)) for problem in problems]
    for drift in status["drift"]:
        if drift["verdict"] == "act":
            changed = ", ".join(drift["features"]) or "several features"
            text = f"The traffic of {drift['model']}@{drift['version']} has drifted from its reference: {changed}."
            found.append(Alert("wait", text, page="/drift"))
    return found


def _unserved(model: Json) -> Iterable[Alert]:
    for version in model["versions"]:
        if version["weight"] and version["state"] not in ("ready", "draining"):
            instead = f" The fallback is {', '.join(model['fallback'])}." if model["fallback"] else ""
            text = f"{version['ref']} has {points(version['weight'])} of the traffic, and no engine that is ready."
            yield Alert("wait" if version["state"] in BUSY else "bad", text + instead, page="/engines")


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def colours(model: Json) -> dict[str, int]:
    """Label -> number of its colour: a version keeps its own wherever it is shown."""
    return dict(zip((version["label"] for version in model["versions"]), _colours(), strict=False))


def _colours() -> Iterable[int]:
    return ((number % COLOURS) + 1 for number in count())


def cards(status: Json, series: Json) -> list[ModelCard]:
    """Every model that is served."""
    return [_card(model, series) for model in status["models"]]


def _card(model: Json, series: Json) -> ModelCard:
    colour = colours(model)
    rows = [_row(model, version, colour[version["label"]], series) for version in model["versions"]]
    rows.sort(key=lambda row: (-row.weight, row.state == "registered"))
    return ModelCard(
        model["model"],
        model["revision"],
        tuple((label, weight, colour.get(label, 0)) for label, weight in model["route"].items()),
        tuple(rows),
        tuple(model["fallback"]),
        tuple(model["segments"]),
        model["pause"],
    )


def _row(model: Json, version: Json, colour: int, series: Json) -> VersionRow:
    return VersionRow(
        label=version["label"],
        colour=colour,
        state=version["state"],
        weight=version["weight"],
        aliases=tuple(name for name, label in model["aliases"].items() if label == version["label"]),
        shadow=model["shadows"].get(version["label"], 0),
        requests_per_second=version["requests_per_second"],
        error_share=error_share(series, [version["ref"]]),
        ttft_p50_s=version["ttft_p50_s"],
        ttft_p95_s=version["ttft_p95_s"],
        tokens_per_second=version["tokens_per_second"],
        inflight=version["inflight"],
        cost_per_1k=version["cost_per_1k_requests_allocated"],
        currency=version["currency"],
        requests=version["requests"],
    )


def error_share(series: Json, refs: Iterable[str] | None = None) -> float | None:
    """Failed and truncated requests of the last five minutes / all of them; None without requests."""
    steps = max(1, ERROR_WINDOW_S // int(series["step_s"]))
    chosen = [one for ref, one in series["versions"].items() if refs is None or ref in refs]
    requests = sum(sum(one["requests"][-steps:]) for one in chosen)
    failures = sum(sum(one["failures"][-steps:]) for one in chosen)
    return failures / requests if requests else None


@dataclass(frozen=True, slots=True)
class Spent:
    """What the last whole hour and the one that runs cost, on the basis `allocated`."""

    since: float
    total: float
    idle: float
    currency: str
    parts: tuple[tuple[str, float], ...]
    """(`model@version`, amount), the most first."""


def spent(cost: Json) -> Spent | None:
    """The bill of all devices; None where nothing was billed."""
    bills = [one for one in cost["bills"] if (one["basis"], one["method"]) == ("allocated", "inflight")]
    if not bills:
        return None
    parts: dict[str, float] = {}
    idle = 0.0
    for bill in bills:
        for line in bill["lines"]:
            if line["kind"] == "version":
                parts[line["version"]] = parts.get(line["version"], 0.0) + line["amount"]
            else:
                idle += line["amount"]
    total = sum(bill["total"] for bill in bills)
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return Spent(cost["start"], total, idle, cost["currency"], tuple(ordered))


def charts(status: Json, series: Json) -> list[Chart]:
    """Requests, first token and tokens over time, for the versions that had the most requests."""
    colour = {
        f"{model['model']}@{label}": number for model in status["models"] for label, number in colours(model).items()
    }
    busiest = sorted(series["versions"], key=lambda ref: -sum(series["versions"][ref]["requests"]))
    shown = sorted(ref for ref in busiest[:CHARTED_MAX] if ref in colour)
    if not shown:
        return []
    step = series["step_s"]
    several = len({ref.partition("@")[0] for ref in shown}) > 1
    numbers = dict(zip(shown, _colours(), strict=False)) if several else colour

    def lines(values: Mapping[str, Sequence[float | None]]) -> tuple[Series, ...]:
        return tuple(Series(ref, tuple(values[ref]), numbers[ref]) for ref in shown)

    def rate(name: str) -> dict[str, list[float]]:
        return {ref: [value / step for value in series["versions"][ref][name]] for ref in shown}

    x = tuple(float(at) for at in series["at"])
    requests = rate("requests")
    first = {ref: series["versions"][ref]["ttft_p95_s"] for ref in shown}
    highest = {ref: max(values) for ref, values in requests.items()}
    said = ", ".join(f"{ref} at most {highest[ref]:.3g}" for ref in shown)
    slowest = [f"{ref} at most {max(seen):.3g} s" for ref in shown if (seen := [one for one in first[ref] if one])]
    return [
        Chart("requests", "Requests per second", f"Per version over the last minutes: {said}.", x, lines(requests)),
        Chart(
            "first-token",
            "First token: 95% of streams had it within",
            f"Per version: {', '.join(slowest) or 'nothing was streamed'}.",
            x,
            lines(first),
            unit="seconds",
        ),
        Chart("tokens", "Tokens per second", "Written by each version's engines.", x, lines(rate("tokens"))),
    ]
