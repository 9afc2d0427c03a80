"""Metrics of cost: seconds and money by whom they went to, unit costs, storage and service levels.

Owns: the families `modelyard_{cost,storage,slo,usage}_*` and `modelyard_{gpu,cpu}_seconds_total`. Never: arithmetic of
money, counting.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from monitoring.statement import Statement
from monitoring.unit_costs import UnitCost
from monitoring.usage import FOLDED, SLO_GOOD, SLO_REQUESTS
from registry.entries import CounterKey

IDLE = "idle"
"""The value of `outcome` on idle lines, and of `version` where nothing tells whose memory was held."""
ALL = "all"
"""The value of `version` on a bill that is shown as one line."""
COST = "modelyard_cost"
STORAGE_COST = "modelyard_storage_cost"
TOKEN_KINDS: Mapping[str, str] = {
    "input": "per_1m_input_tokens",
    "cached": "per_1m_cached_tokens",
    "output": "per_1m_output_tokens",
}

CostSeries = Mapping[tuple[str, tuple[str, ...]], float]
"""(family, label values) -> value of a cost counter."""


def cost_series(statement: Statement) -> CostSeries:
    """Seconds and money of the whole ledger per bill line; the lines of a device, basis and method sum to its bill.

    What is not settled yet is no counter: it moves to a version or to idle (a gauge shows it). The energy bill has one
    line here, as the parts of its lines may shrink as cheaper seconds follow.
    """
    series: dict[tuple[str, tuple[str, ...]], float] = {}
    for bill in statement.bills:
        head = (bill.basis, bill.method, bill.device)
        tail = (bill.device_kind, bill.currency)
        if bill.basis == "energy":
            series[COST, (*head, "", ALL, "", *tail)] = bill.total
            continue
        for line in bill.lines:
            if line.kind != "unsettled":
                model, _, version = line.version.partition("@")
                labels = (*head, model, version or IDLE, IDLE if line.kind == "idle" else line.outcome)
                seconds = (f"modelyard_{bill.device_kind}_seconds", labels)
                series[seconds] = series.get(seconds, 0.0) + line.seconds
                series[COST, (*labels, *tail)] = line.amount
    for stored in statement.storage:
        model, _, version = stored.version.partition("@")
        series[STORAGE_COST, (model, version, stored.currency)] = stored.amount
    return series


def hold(before: CostSeries, now: CostSeries) -> CostSeries:
    """`now`, with values that fell held where they were.

    What was used is never taken back, but whose it was may move a little while an hour is open: idle time is what
    remains, so a settlement that runs ahead of the sampler takes a moment of it back, and the shares by tokens and by
    multiprocessors are of the hour so far. Prometheus would read a fall as a restart from zero and count all of it
    again.
    """
    return {**before, **{key: max(value, before.get(key, value)) for key, value in now.items()}}


def collect_cost(statement: Statement, series: CostSeries) -> Iterator[Metric]:
    """The counters of `series`, and what is a gauge in `statement`."""
    lines = ["basis", "method", "device", "model", "version", "outcome"]
    families = {
        "modelyard_gpu_seconds": CounterMetricFamily(
            "modelyard_gpu_seconds", "GPU-seconds by whom they went to.", labels=lines
        ),
        "modelyard_cpu_seconds": CounterMetricFamily(
            "modelyard_cpu_seconds", "Core-seconds by whom they went to.", labels=lines
        ),
        COST: CounterMetricFamily(COST, "Cost by whom it went to.", labels=[*lines, "device_kind", "currency"]),
        STORAGE_COST: CounterMetricFamily(
            STORAGE_COST, "Cost of artifacts on disk; in no bill of a device.", labels=["model", "version", "currency"]
        ),
    }
    for (name, labels), value in series.items():
        families[name].add_metric(labels, value)
    yield from families.values()
    unsettled = GaugeMetricFamily(
        "modelyard_cost_unsettled",
        "Cost of time that is not divided yet.",
        labels=["basis", "method", "device", "currency"],
    )
    for bill in statement.bills:
        for line in bill.lines:
            if line.kind == "unsettled":
                unsettled.add_metric([bill.basis, bill.method, bill.device, bill.currency], line.amount)
    yield unsettled
    yield _unit_costs(
        "modelyard_cost_per_1k_requests",
        "1000 x cost / completed requests; allocated and energy include the version's part of idle time.",
        statement.unit_costs,
        lambda unit: unit.per_1k_requests,
    )
    yield _unit_costs(
        "modelyard_cost_per_1k_good_requests",
        "1000 x cost / requests within the model's service level.",
        statement.unit_costs,
        lambda unit: unit.per_1k_good,
    )
    yield _per_1m_tokens(statement.unit_costs)
    stored = GaugeMetricFamily(
        "modelyard_storage_bytes",
        "Bytes of artifacts on disk; files that versions share are divided evenly.",
        labels=["model", "version"],
    )
    for version, size in {one.version: one.bytes for one in statement.storage}.items():
        stored.add_metric(version.split("@", 1), size)
    yield stored
    yield GaugeMetricFamily(
        "modelyard_cost_residual_seconds",
        "Seconds of use beyond the seconds held: not 0 where sampling or settlement is wrong.",
        value=statement.residual_s,
    )


def collect_service_levels(
    counters: Mapping[CounterKey, float], versions: Sequence[tuple[str, str]], targets: Mapping[str, float]
) -> Iterator[Metric]:
    """How many requests met their model's service level; models without one have no series."""
    target = GaugeMetricFamily(
        "modelyard_slo_target", "Share of requests that shall be within the service level.", labels=["model"]
    )
    for model, share in targets.items():
        target.add_metric([model], share)
    yield target
    for name, help_text in (
        (SLO_REQUESTS, "Requests that count for the model's service level."),
        (SLO_GOOD, "Of these, those that were completed within its limits."),
    ):
        known = {key.labels: value for key, value in counters.items() if key.name == name}
        family = CounterMetricFamily(name.removesuffix("_total"), help_text, labels=["model", "version"])
        for labels in sorted({one for one in versions if one[0] in targets} | known.keys()):
            family.add_metric(labels, known.get(labels, 0.0))
        yield family
    folded = CounterMetricFamily(
        FOLDED.removesuffix("_total"), "Requests of keys beyond the number that an hour's bill tells apart."
    )
    folded.add_metric([], counters.get(CounterKey(FOLDED), 0.0))
    yield folded


def _unit_costs(
    name: str, help_text: str, units: Sequence[UnitCost], value_of: Callable[[UnitCost], float | None]
) -> Metric:
    """Per version the sum over its devices."""
    labels = ["basis", "method", "model", "version", "device_kind", "currency"]
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for key, value in _summed(units, value_of).items():
        family.add_metric(key, value)
    return family


def _per_1m_tokens(units: Sequence[UnitCost]) -> Metric:
    family = GaugeMetricFamily(
        "modelyard_cost_per_1m_tokens",
        "Cost per million tokens of a kind; all tokens times theirs is the version's cost.",
        labels=["basis", "method", "model", "version", "kind", "device_kind", "currency"],
    )
    for kind, attribute in TOKEN_KINDS.items():
        for key, value in _summed(units, lambda unit, name=attribute: getattr(unit, name)).items():  # type: ignore[misc]
            family.add_metric((*key[:4], kind, *key[4:]), value)
    return family


def _summed(units: Sequence[UnitCost], value_of: Callable[[UnitCost], float | None]) -> dict[tuple[str, ...], float]:
    sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for unit in units:
        value = value_of(unit)
        if value is not None:
            version = unit.version.partition("@")[2]
            sums[unit.basis, unit.method, unit.model, version, unit.device_kind, unit.currency] += value
    return sums
