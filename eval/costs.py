"""What a run cost: its part of what its version cost meanwhile by the yard's books, or its busy time at a stated price.

Owns: the figures before and after a sitting, the run's part of their difference, and cost per correct answer. Never:
prices (the yard has them, or the user states one), the bill itself (monitoring.cost).

With an admin API, per basis: the difference of the version's lines on the yard's cost statement, after less before,
times the run's part of the version's requests in that time. On the basis `allocated` the idle time of the sitting goes
to the versions in proportion to their use of the device in it. Without one: `engine-seconds`, the time with at least
one of the run's requests in flight, as the client saw it, times the price per hour that the user states.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from eval import endpoint, performance
from eval.endpoint import Endpoint
from eval.results import Sample, Spent

SETTLING_S: Final = 4.0
"""The longest wait for the books to have the run's last requests."""
METHODS: Final[Mapping[str, str]] = {
    "inflight": "in-flight share of the device, from the yard's books before and after",
    "cpu_time": "CPU time of the version's engines, from the yard's books before and after",
}
"""The methods whose lines only grow. Those that divide an hour anew as it goes on (by tokens, by multiprocessors) give
no difference between two readings."""

Key = tuple[str, str, str, str]
"""Device, basis, method, currency."""


@dataclass(frozen=True, slots=True)
class Books:
    """What the yard's cost statement says at one moment, in currency units."""

    requests: Mapping[str, int] = field(default_factory=dict)
    """`model@version` -> requests of any outcome."""
    versions: Mapping[Key, Mapping[str, float]] = field(default_factory=dict)
    idle: Mapping[Key, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, statement: Any) -> Books | None:
        """The admin API's `/cost`; None where it is not there."""
        if not isinstance(statement, dict):
            return None
        requests = {one["version"]: sum(one["requests"].values()) for one in statement.get("usage") or ()}
        versions: dict[Key, dict[str, float]] = {}
        idle: dict[Key, float] = {}
        for bill in statement.get("bills") or ():
            if bill["method"] not in METHODS:
                continue
            key = (bill["device"], bill["basis"], bill["method"], bill["currency"])
            amounts: defaultdict[str, float] = defaultdict(float)
            for line in bill["lines"]:
                if line["kind"] == "version":
                    amounts[line["version"]] += line["nano"] / 1e9
                elif line["kind"] == "idle":
                    idle[key] = idle.get(key, 0.0) + line["nano"] / 1e9
            versions[key] = dict(amounts)
        return cls(requests, versions, idle)


def read(where: Endpoint) -> Books | None:
    """The books now; None without an admin API."""
    return Books.parse(endpoint.admin_get(where, "cost"))


def read_after(
    look: Callable[[], Books | None],
    version: str,
    before: Books,
    requests: int,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Books | None:
    """What `look` gives once the books have so many more `requests` of the version, or SETTLING_S have passed."""
    until = clock() + SETTLING_S
    while True:
        found = look()
        seen = 0 if found is None else found.requests.get(version, 0) - before.requests.get(version, 0)
        if found is None or seen >= requests or clock() > until:
            return found
        sleep(0.25)


def of_sitting(before: Books, after: Books, version: str, *, requests: int, answered: int) -> list[Spent]:
    """What so many requests of the version, which gave `answered` samples, cost between the two readings; empty where
    the books have none of them."""
    booked = after.requests.get(version, 0) - before.requests.get(version, 0)
    if not requests or booked <= 0:
        return []
    part = min(1.0, requests / booked)
    amounts: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for key, now in after.versions.items():
        earlier = before.versions.get(key, {})
        grown = {name: amount - earlier.get(name, 0.0) for name, amount in now.items()}
        used, own = sum(grown.values()), grown.get(version, 0.0)
        idle = after.idle.get(key, 0.0) - before.idle.get(key, 0.0)
        amounts[key[1:]] += part * (own + (max(0.0, idle) * own / used if used > 0 else 0.0))
    return [
        Spent(
            basis=basis,
            method=METHODS[method] + ("" if part == 1 else f"; the run had {part:.0%} of the requests"),
            currency=currency,
            amount=amount,
            answered=answered,
        )
        for (basis, method, currency), amount in amounts.items()
    ]


def at_price(samples: Iterable[Sample], per_hour: float, currency: str) -> list[Spent]:
    """The run's busy time, as the client saw it, at a price per hour."""
    speed = performance.measure(samples)
    amount = speed.busy_s / 3600 * per_hour
    method = f"busy time as the client saw it, at {per_hour:g} {currency} per hour"
    return [Spent(basis="engine-seconds", method=method, currency=currency, amount=amount, answered=speed.n)]


def added(earlier: Sequence[Spent], later: Sequence[Spent]) -> list[Spent]:
    """The costs of several sittings of one run."""
    total: dict[tuple[str, str, str], Spent] = {}
    for one in (*earlier, *later):
        key = (one.basis, one.method.partition(";")[0], one.currency)
        known = total.get(key)
        total[key] = (
            one
            if known is None
            else Spent(
                basis=one.basis,
                method=one.method,
                currency=one.currency,
                amount=known.amount + one.amount,
                answered=known.answered + one.answered,
            )
        )
    return list(total.values())


def asked(samples: Iterable[Sample], since: float) -> tuple[int, int]:
    """(requests, answers) of the samples that the engine answered since then (Unix seconds): a turn is a request."""
    found = [one for one in samples if not one.error and not one.cached and one.started_at >= since]
    return sum(one.attempts + (len(msgspec.json.decode(one.turns)) if one.turns else 0) for one in found), len(found)


def right_answers(samples: Iterable[Sample]) -> float:
    """The sum of the scores of the samples that the engine answered: a half-right answer counts half."""
    return sum(sample.score or 0.0 for sample in samples if not sample.error and not sample.cached)
