"""A cost statement as a page shows it: lines of three bases beside each other, bars by hour, unit costs.

Owns: adding a statement's lines up for people. Never: I/O, dividing or pricing time (`monitoring.statement`).

Amounts are added in whole billionths (`nano`), so that what is shown sums to the statement's totals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from monitoring.console.charts import Chart, Series

NANO: Final = 1_000_000_000
HOUR_S: Final = 3600
DAY_S: Final = 86_400
BASES: Final = ("allocated", "busy", "energy")
VERSIONS_SHOWN: Final = 4
"""So many versions have a colour of their own in the chart by hour."""
BY_HOUR_MAX_S: Final = 4 * DAY_S
"""Of longer windows the bars are days."""
WORDS: Final = {
    "completed": "answered",
    "client_error": "refused by the engine (4xx)",
    "failed": "failed",
    "truncated": "cut off",
    "cancelled": "client went away",
    "shadow": "copies (shadow)",
    "none": "no request caused it",
}
ORDER: Final = tuple(WORDS)


@dataclass(slots=True)
class Row:
    """One line of the table: what it was for, and what it cost on each basis."""

    kind: str
    """`work`, `waste` (no answer came of it), `shadow`, `idle` or `unsettled`."""
    version: str
    what: str
    nano: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def amount(self, basis: str) -> float | None:
        """None where the basis has no such line."""
        return self.nano[basis] / NANO if basis in self.nano else None


@dataclass(frozen=True, slots=True)
class Table:
    """The bills of one device by one method."""

    device: str
    device_kind: str
    currency: str
    rows: tuple[Row, ...]
    totals: Mapping[str, int]
    """Basis -> billionths; a basis without a reading is absent."""
    residual_s: float
    fallback_s: float

    def total(self, basis: str) -> float | None:
        return self.totals[basis] / NANO if basis in self.totals else None

    def share(self, row: Row) -> float:
        """Of what was allocated."""
        whole = self.totals.get("allocated", 0)
        return row.nano.get("allocated", 0) / whole if whole else 0.0


def kind_of(line: Mapping[str, Any]) -> tuple[str, str]:
    """(kind of row, what it says) of a bill's line."""
    if line["kind"] == "idle":
        return "idle", "idle, kept ready" if line["version"] else "idle"
    if line["kind"] == "unsettled":
        return "unsettled", "not divided yet"
    kind = {"completed": "work", "shadow": "shadow"}.get(line["outcome"], "waste")
    return kind, WORDS.get(line["outcome"], line["outcome"])


def tables(bills: Iterable[Mapping[str, Any]], method: str) -> list[Table]:
    """One table per device and currency of the bills that were divided by `method`."""
    groups: defaultdict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for bill in bills:
        if bill["method"] == method:
            groups[bill["device"], bill["device_kind"], bill["currency"]].append(bill)
    return [_table(*owner, own) for owner, own in sorted(groups.items())]


def _table(device: str, device_kind: str, currency: str, bills: Sequence[Mapping[str, Any]]) -> Table:
    rows: dict[tuple[str, str, str], Row] = {}
    for bill in bills:
        for line in bill["lines"]:
            kind, what = kind_of(line)
            row = rows.setdefault((kind, line["version"], what), Row(kind, line["version"], what))
            row.nano[bill["basis"]] = row.nano.get(bill["basis"], 0) + line["nano"]
            row.seconds += line["seconds"] if bill["basis"] == "allocated" else 0.0
    kinds = ("work", "waste", "shadow", "idle", "unsettled")
    shown = [row for row in rows.values() if row.seconds or any(row.nano.values())]
    shown.sort(key=lambda row: (row.kind == "unsettled", row.version or "~", kinds.index(row.kind), row.what))
    return Table(
        device,
        device_kind,
        currency,
        tuple(shown),
        {bill["basis"]: bill["total_nano"] for bill in bills},
        max(bill["residual_s"] for bill in bills),
        max(bill.get("fallback_s", 0.0) for bill in bills),
    )


def totals(found: Iterable[Table]) -> dict[tuple[str, str], float]:
    """(basis, currency) -> amount, over all devices."""
    nano: defaultdict[tuple[str, str], int] = defaultdict(int)
    for table in found:
        for basis, amount in table.totals.items():
            nano[basis, table.currency] += amount
    return {owner: amount / NANO for owner, amount in nano.items()}


def over_time(bills: Iterable[Mapping[str, Any]], method: str, *, start: float, stop: float) -> Chart | None:
    """What was allocated by the hour, or by the day where the window is long, over all devices of one currency: the
    versions that cost most, waste, copies, and idle time. None where nothing is divided by hours."""
    step = HOUR_S if stop - start <= BY_HOUR_MAX_S else DAY_S
    own = [one for one in bills if (one["basis"], one["method"]) == ("allocated", method)]
    currency = own[0]["currency"] if own else ""
    layers: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
    cost: defaultdict[str, int] = defaultdict(int)
    for bill in own:
        for line in bill["lines"] if bill["currency"] == currency else ():
            kind, _ = kind_of(line)
            if line["hour"] is None or not line["nano"]:
                continue
            name = line["version"] if kind == "work" else kind
            layers[name][line["hour"] // step * step] += line["nano"]
            cost[name] += line["nano"]
    if not layers:
        return None
    return _bars(layers, cost, step, currency)


def _bars(layers: Mapping[str, Mapping[int, int]], cost: Mapping[str, int], step: int, currency: str) -> Chart:
    versions = sorted((name for name in layers if "@" in name), key=lambda name: (-cost[name], name))
    own, others = versions[:VERSIONS_SHOWN], versions[VERSIONS_SHOWN:]
    groups: list[tuple[str, int, Sequence[str]]] = [
        (name, place + 1, (name,)) for place, name in enumerate(sorted(own))
    ]
    groups += [("other versions", 5, others)] if others else []
    for name, words, colour in (
        ("waste", "work without an answer", 6),
        ("shadow", "copies (shadow)", 5),
        ("idle", "idle", 7),
        ("unsettled", "not divided yet", 0),
    ):
        if name in layers:
            groups.append((words, colour, (name,)))
    places = sorted({hour for layer in layers.values() for hour in layer})
    places = list(range(places[0], places[-1] + step, step))
    series = tuple(
        Series(words, tuple(sum(layers[name].get(at, 0) for name in names) / NANO for at in places), colour)
        for words, colour, names in groups
    )
    total = sum(cost.values())
    idle = cost.get("idle", 0)
    unit = "hour" if step == HOUR_S else "day"
    return Chart(
        "cost-over-time",
        f"Allocated cost by the {unit}",
        f"{total / NANO:,.2f} {currency} in all, {idle / total:.0%} of it idle." if total else "Nothing was spent.",
        tuple(float(at) for at in places),
        series,
        shape="bars",
        unit="money",
        currency=currency,
        stacked=True,
    )


@dataclass(frozen=True, slots=True)
class Unit:
    """What a version's work cost by the piece, on one device and basis."""

    version: str
    device: str
    basis: str
    currency: str
    requests: int
    values: Mapping[str, float | None]


UNITS: Final = (
    ("per_1k_requests", "1,000 requests"),
    ("per_1k_good", "1,000 good requests"),
    ("per_1m_input_tokens", "1M input tokens"),
    ("per_1m_cached_tokens", "1M cached tokens"),
    ("per_1m_output_tokens", "1M output tokens"),
)


def units(found: Iterable[Mapping[str, Any]], method: str) -> list[Unit]:
    """Unit costs by this method, where anything was done; versions together, bases in their order."""
    made = [
        Unit(
            one["version"],
            one["device"],
            one["basis"],
            one["currency"],
            one["requests"],
            {name: one[name] for name, _ in UNITS},
        )
        for one in found
        if one["method"] == method and any(one[name] is not None for name, _ in UNITS)
    ]
    return sorted(made, key=lambda one: (one.version, one.device, BASES.index(one.basis)))
