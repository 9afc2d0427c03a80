"""Sample-ratio mismatch: are a route's arms given conversations in the proportion of their buckets? ★

Owns: which requests speak for the split, counting distinct units per assigned arm within a bound of memory, and the
p-value. Never: I/O, clocks, what to do about a mismatch.

A unit is a sticky key's hash, counted once by the arm that it was assigned (intention to treat): who answered, and
whether anybody did, plays no part, as an outage moves answers and no assignment. Requests without a sticky key, pinned
ones, copies, and those of segments (which have arms of their own) are left out.

The statistic. Under a sound split each new unit falls into arm j with probability p_j, its share of the buckets.
Against that stands a mixture of other proportions: Dirichlet priors around p with concentrations C = 30, 300 and 3000,
so that both gross and slight mismatches are found. The n-th new unit, in arm j, multiplies each likelihood ratio by
(C p_j + n_j) / (C + n - 1) / p_j, where n_j of the units before it fell into arm j; e is the mean of the three ratios.

What it guarantees. Under a sound split each ratio, and so e, is a martingale with mean 1, exactly, from the first unit
on. By Ville's inequality P(e ever reaches 1/α) ≤ α. `p` is 1 over the largest e so far: however often it is looked at,
at most a share α of rounds ever shows p ≤ α. (A chi-square test would hold for one look only, and approximately.) The
price: some more units until a mismatch is found than a test at one fixed size needs. References: Ville (1939); Lindon
and Malek, "Anytime-valid inference for multinomial count data" (2022).

A round is UNITS_MAX distinct units since the route's last change; then the next one begins, and p is the smaller of its
own and the finished round's. Nothing is kept over a restart: a round then begins anew.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from registry.usage import RequestRecord

UNITS_MAX: Final = 50_000
"""Distinct units of a round: about 4 MB a model."""
CONCENTRATIONS: Final = (30.0, 300.0, 3000.0)


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """How one model's requests are divided now."""

    revision: int
    shares: Mapping[str, float]
    """Label -> share of the buckets; sums to 1. Labels that are not named have none."""


@dataclass(frozen=True, slots=True)
class Routing:
    """What the routing table published last says."""

    generation: int = 0
    models: Mapping[str, ModelRoute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Split:
    """One model's split so far."""

    model: str
    p: float
    """In [0, 1]; 1 where nothing speaks against it."""
    units: Mapping[str, int]
    """Label -> distinct units of this round."""


class Round:
    """Distinct units of one split, up to a bound."""

    __slots__ = ("_counts", "_least_p", "_log_ratios", "_seen", "_shares")

    def __init__(self, shares: Mapping[str, float]) -> None:
        self._shares = dict(shares)
        self._counts = dict.fromkeys(shares, 0)
        self._seen: set[int] = set()
        self._log_ratios = [0.0] * len(CONCENTRATIONS)
        self._least_p = 1.0

    def add(self, unit: int, arm: str) -> None:
        """Count `unit`, unless it is known: its first assignment stands."""
        if unit in self._seen:
            return
        total, share, before = len(self._seen), self._shares.get(arm, 0.0), self._counts.get(arm, 0)
        self._seen.add(unit)
        self._counts[arm] = before + 1
        if share <= 0.0:
            self._least_p = 0.0  # an arm without buckets can get nobody
            return
        for index, c in enumerate(CONCENTRATIONS):
            self._log_ratios[index] += math.log((c * share + before) / (c + total) / share)
        self._least_p = min(self._least_p, 1.0 / self.e)

    @property
    def e(self) -> float:
        """The likelihood ratio of the mixture against the sound split, now; at most e^700."""
        return sum(math.exp(min(one, 700.0)) for one in self._log_ratios) / len(CONCENTRATIONS)

    @property
    def p(self) -> float:
        """Valid at every look."""
        return self._least_p

    @property
    def units(self) -> Mapping[str, int]:
        return dict(self._counts)

    def __len__(self) -> int:
        return len(self._seen)


class _Watched:
    """A model's rounds since its route last changed."""

    __slots__ = ("before_p", "current", "route", "since")

    def __init__(self, route: ModelRoute, since: int) -> None:
        self.route = route
        self.since = since
        self.before_p = 1.0
        self.current = Round(route.shares)


class Splits:
    """Follows every model's split. `routing` is asked after the records were read, so it is never older than they are.

    Threads may share it.
    """

    def __init__(self, routing: Callable[[], Routing], *, units_max: int = UNITS_MAX) -> None:
        self._routing = routing
        self._units_max = units_max
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()

    def count(self, records: Iterable[RequestRecord]) -> None:
        """Count finished requests. Those that an earlier routing table assigned than the first one that is known to
        have the present route are left out."""
        with self._lock:
            self._follow(self._routing())
            for record in records:
                if record.sticky and record.assigned and not (record.pinned or record.segment or record.shadow_of):
                    self._count(record)

    def _count(self, record: RequestRecord) -> None:
        watched = self._watched.get(record.model)
        if watched is None or record.generation < watched.since:
            return
        watched.current.add(record.sticky, record.assigned)
        if len(watched.current) >= self._units_max:
            watched.before_p = watched.current.p
            watched.current = Round(watched.route.shares)

    def state(self) -> list[Split]:
        """Every model that has a route."""
        with self._lock:
            self._follow(self._routing())
            return [
                Split(model, min(watched.before_p, watched.current.p), watched.current.units)
                for model, watched in sorted(self._watched.items())
            ]

    def _follow(self, routing: Routing) -> None:
        for model, route in routing.models.items():
            watched = self._watched.get(model)
            if watched is None or watched.route != route:
                self._watched[model] = _Watched(route, routing.generation)
        for model in self._watched.keys() - routing.models.keys():
            self._watched.pop(model, None)
