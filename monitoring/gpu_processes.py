"""What each process had of one GPU, from the driver's own samples.

Owns: which samples are new, and how long each one stands for. Never: NVML's calls, whose process it is.

A sample says "SM% of this process until `time`". NVML answers a question with what came since the time asked after: one
sample per process, its mean since then, or one for each of the driver's own periods in which the process ran. So a
sample stands for the time since its process's sample before, or since the time asked after; where an answer shows the
driver's period and more than that went by, for one period, as the process did not run before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

SAMPLE_PERIOD_MAX_S: Final = 1.0
"""A driver samples at least this often (NVML's manual: between 1/6 s and 1 s). Silence for longer: no process ran."""


SAMPLE_PERIOD_MAX_US: Final = int(SAMPLE_PERIOD_MAX_S * 1e6)
PAUSE_FACTOR: Final = 1.5
"""Samples of a process that lie further apart than this many of the driver's periods have a pause between them."""


class Sample(NamedTuple):
    """One answer of the driver: `sm` per cent of the GPU for `pid`, until `time_us` by the driver's clock."""

    pid: int
    time_us: int
    sm: float


class SmUse(NamedTuple):
    """What a process had since the last reading."""

    share: float
    """Mean share of the GPU over its samples, 0 to 1."""
    sm_s: float | None
    """Seconds of the whole GPU; None on the first reading, as nobody knows what its samples stand for."""


class SmMeter:
    """One GPU's samples, from reading to reading."""

    def __init__(self) -> None:
        self._until_us: int | None = None
        self._until_at = 0.0
        self._asked_at = 0.0
        self._period_us: int | None = None

    def ask_after(self) -> int:
        """The driver's time after which samples are new. After a silence it moves on with our clock, so that the next
        sample does not stand for time in which there was none."""
        if self._until_us is None:
            return 0
        silence_s = self._asked_at - self._until_at
        return self._until_us + (int(silence_s * 1e6) if silence_s > SAMPLE_PERIOD_MAX_S else 0)

    def take(self, samples: Iterable[Sample], at: float, running: Iterable[int] = ()) -> dict[int, SmUse]:
        """pid -> its use, from the driver's answer at `at` (Unix time) to `ask_after`. A process of those `running`
        that has no sample had nothing."""
        after_us, first = self.ask_after(), self._until_us is None
        self._asked_at = at
        nothing = SmUse(0.0, None if first else 0.0)
        by_pid: dict[int, list[Sample]] = {}
        for sample in sorted(samples, key=lambda one: one.time_us):
            if sample.pid and sample.time_us > after_us:
                by_pid.setdefault(sample.pid, []).append(sample)
        for own in by_pid.values():
            for before, sample in pairwise(own):
                self._period_us = min(self._period_us or SAMPLE_PERIOD_MAX_US, sample.time_us - before.time_us)
        if by_pid:
            self._until_us = max(own[-1].time_us for own in by_pid.values())
            self._until_at = at
        return dict.fromkeys(running, nothing) | {
            pid: SmUse(sum(one.sm for one in own) / len(own) / 100, None if first else self._seconds(own, after_us))
            for pid, own in by_pid.items()
        }

    def _seconds(self, samples: list[Sample], after_us: int) -> float:
        """Σ share × own time of one process's samples, oldest first."""
        total, before_us = 0.0, after_us
        for sample in samples:
            own_us = sample.time_us - before_us
            if self._period_us is not None and own_us > PAUSE_FACTOR * self._period_us:
                own_us = self._period_us
            total += sample.sm / 100 * own_us / 1e6
            before_us = sample.time_us
        return total
