"""What finished requests did, by hour, key and segment, and whether they met their model's service level.

Owns: which row a record is added to, what counts as a good request, how many keys are told apart. Never: I/O, clocks,
SQL, prices.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, Protocol

from monitoring.observe import SHADOW, outcome_class
from registry.entries import HOUR_S, OTHER, CounterKey, UsageHour
from registry.usage import RequestRecord

LABELS_MAX: Final = 200
"""Pairs of key and segment that one hour tells apart; further keys are `other`."""
HOURS_KEPT: Final = 6
SLO_REQUESTS: Final = "modelyard_slo_requests_total"
SLO_GOOD: Final = "modelyard_slo_good_requests_total"
FOLDED: Final = "modelyard_usage_folded_requests_total"
OVERLOAD: Final = frozenset({"queue_full", "queue_timeout"})
"""Refusals that are the service's doing: it had no room."""

Label = tuple[str, str]
"""(key, segment)"""


@dataclass(frozen=True, slots=True)
class Slo:
    """A model's service level; a limit of 0 is none."""

    first_token_s: float = 0.0
    """Of streams: arrival in full to the first content event."""
    total_s: float = 0.0
    """Arrival in full to the last byte."""
    target: float = 0.99
    """The share of requests that shall be good."""

    def good(self, record: RequestRecord) -> bool:
        """Whether a completed request was within the limits."""
        first_s = record.first_token_s or record.duration_s
        in_time = not self.first_token_s or not record.streamed or first_s <= self.first_token_s
        return in_time and (not self.total_s or record.duration_s <= self.total_s)

    def judges(self, record: RequestRecord, outcome: str) -> bool:
        """Whether a request counts. What the client did itself does not: its errors, its limits, going away in time."""
        if outcome == "rejected":
            return record.error in OVERLOAD
        if outcome == "cancelled":
            return not self.good(record)
        return outcome != "client_error"


class KnownLabels(Protocol):
    """Where labels of an hour are written down (`registry.ledger.LedgerTx`)."""

    def labels_of(self, hour: int) -> set[Label]: ...


class Labels:
    """Bounds how many keys an hour tells apart: the first ones that had a request in it, in the order of their records.

    What the ledger has already counts, so a restart goes on as if there had been none.
    """

    def __init__(self, labels_max: int = LABELS_MAX) -> None:
        self._labels_max = labels_max
        self._hours: dict[int, set[Label]] = {}

    def of(self, records: Sequence[RequestRecord], known: KnownLabels) -> list[Label]:
        """The label of each record: its own, or (`other`, segment)."""
        return [self._label(hour_of(one), (one.key_id, one.segment), known) for one in records]

    def _label(self, hour: int, label: Label, known: KnownLabels) -> Label:
        if hour not in self._hours:
            for old in sorted(self._hours)[: 1 - HOURS_KEPT]:
                del self._hours[old]
            self._hours[hour] = {one for one in known.labels_of(hour) if one[0] not in ("", OTHER)}
        told_apart = self._hours[hour]
        if not label[0] or label in told_apart:
            return label
        if len(told_apart) >= self._labels_max:
            return (OTHER, label[1])
        told_apart.add(label)
        return label


def hour_of(record: RequestRecord) -> int:
    """The hour in which a request ended."""
    return int((record.started_at + record.duration_s) // HOUR_S) * HOUR_S


_alike: Final[Callable[[RequestRecord], tuple[object, ...]]] = attrgetter(
    "model", "version", "outcome", "status", "replica", "usage_source", "source", "error"
)
_prompt = attrgetter("prompt_tokens")
_cached = attrgetter("cached_tokens")
_completion = attrgetter("completion_tokens")


def usage(
    records: Sequence[RequestRecord],
    labels: Sequence[Label],
    device_of: Callable[[str], str | None],
    slos: Mapping[str, Slo],
) -> tuple[list[UsageHour], dict[CounterKey, float]]:
    """The rows that `records` add to, and the counters of service levels."""
    groups: defaultdict[tuple[Label, tuple[object, ...]], list[RequestRecord]] = defaultdict(list)
    for record, label in zip(records, labels, strict=True):
        groups[label, (hour_of(record), bool(record.shadow_of), *_alike(record))].append(record)
    rows: list[UsageHour] = []
    counters: defaultdict[CounterKey, float] = defaultdict(float)
    devices = {replica: device_of(replica) or "" for replica in {record.replica for record in records} if replica}
    for (label, _), group in groups.items():
        like = group[0]
        slo = None if like.shadow_of else slos.get(like.model)
        judged = [one for one in group if slo.judges(one, outcome_class(like))] if slo else []
        good = sum(map(slo.good, judged)) if slo and outcome_class(like) == "completed" else 0
        if judged:
            counters[CounterKey(SLO_REQUESTS, (like.model, like.version))] += len(judged)
            counters[CounterKey(SLO_GOOD, (like.model, like.version))] += good
        if like.version:
            device = "" if like.source == "cache" else devices.get(like.replica, "")
            rows.append(_row(group, device, label, len(judged), good))
    folded = sum(label[0] == OTHER and record.key_id != OTHER for record, label in zip(records, labels, strict=True))
    if folded:
        counters[CounterKey(FOLDED)] += folded
    return rows, dict(counters)


def _row(group: Sequence[RequestRecord], device: str, label: Label, judged: int, good: int) -> UsageHour:
    like = group[0]
    outcome = SHADOW if like.shadow_of else outcome_class(like)
    answered = outcome != SHADOW or (like.outcome == "completed" and like.status < 400)
    counted = like.usage_source != "none"
    phased = [one for one in group if one.first_token_s > one.dispatched_s > 0] if like.usage_source == "engine" else []
    return UsageHour(
        hour=hour_of(like),
        device=device,
        version=f"{like.model}@{like.version}",
        outcome=outcome,
        key_id=label[0],
        segment=label[1],
        requests=len(group) if answered else 0,
        judged=judged,
        good=good,
        prompt_tokens=sum(map(_prompt, group)) if counted else 0,
        cached_tokens=sum(map(_cached, group)) if counted else 0,
        completion_tokens=sum(map(_completion, group)) if counted else 0,
        prefill_s=sum([one.first_token_s - one.dispatched_s for one in phased]),
        prefill_tokens=sum([max(0, one.prompt_tokens - one.cached_tokens) for one in phased]),
        decode_s=sum([max(0.0, one.last_token_s - one.first_token_s) for one in phased]),
        decode_tokens=sum([max(0, one.completion_tokens - 1) for one in phased]),
    )
