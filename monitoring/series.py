"""How many series a scrape shows, and no more: a family that grows past its cap keeps those that it showed first.

Owns: the cap and the counts of it. Never: which series there are.

Labels are bounded where they are made; this is the second wall, for what was not thought of (and for ledgers that know
thousands of retired versions). It costs nothing below the cap.
"""

from __future__ import annotations

import copy
import threading
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

FAMILY_MAX: Final = 2000
"""Label sets of one family; a histogram's buckets are one set."""

LabelSet = frozenset[tuple[str, str]]


class SeriesCap:
    """`limit` each family of a scrape. Thread-safe."""

    def __init__(self, family_max: int = FAMILY_MAX) -> None:
        self._family_max = family_max
        self._admitted: dict[str, set[LabelSet]] = {}
        self._dropped: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def dropped(self) -> int:
        """Label sets that were left out: per family the most at a time, so that it only rises."""
        return sum(self._dropped.values())

    def limit(self, family: Metric) -> Metric:
        """`family`, or where it has more label sets than the cap, one without those that came last."""
        if len(family.samples) <= self._family_max:
            return family
        sets = dict.fromkeys(map(_labels, family.samples))
        if len(sets) <= self._family_max:
            return family
        with self._lock:
            admitted = self._admitted.get(family.name, set()) & sets.keys()
            for labels in sets:
                if len(admitted) >= self._family_max:
                    break
                admitted.add(labels)
            self._admitted[family.name] = admitted
            left_out = len(sets) - len(admitted)
            self._dropped[family.name] = max(self._dropped.get(family.name, 0), left_out)
        limited = copy.copy(family)
        limited.samples = [sample for sample in family.samples if _labels(sample) in admitted]
        return limited


def _labels(sample: Sample) -> LabelSet:
    return frozenset((name, value) for name, value in sample.labels.items() if name != "le")
