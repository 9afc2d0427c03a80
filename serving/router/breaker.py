"""When a replica is left alone for a while: a circuit breaker.

Owns: the states and their times. Never: I/O, clocks, a random generator of its own, knowing what a failure is (only an
engine's own faults are reported here, never a client's 4xx).

    closed     requests go; FAILURES_TO_OPEN failures in a row open it
    open       requests go elsewhere until a time that grows with every failed probe
    half-open  that time has come: one request is let through as a probe; its outcome closes or opens
"""

from __future__ import annotations

from typing import Final

FAILURES_TO_OPEN: Final = 3
OPEN_FIRST_S: Final = 1.0
OPEN_MAX_S: Final = 8.0
JITTER: Final = 0.2
"""Times are longer by up to this share, so that workers do not probe in step."""


class Breaker:
    """The breaker of one replica in one worker. `now` is a monotonic clock's reading in seconds."""

    __slots__ = ("_failures", "_open_s", "_open_until", "_probing")

    def __init__(self) -> None:
        self._failures = 0
        self._open_s = 0.0
        self._open_until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Open or half-open: the replica has failed and has not yet shown that it is back."""
        return self._open_s > 0

    def allows(self, now: float) -> bool:
        """Whether a request may go to the replica now."""
        return not self._open_s or (now >= self._open_until and not self._probing)

    def begin(self) -> None:
        """A request goes there (as a last resort even where `allows` said no)."""
        self._probing = self.is_open

    def succeeded(self) -> None:
        """The replica answered: closed."""
        self._failures = 0
        self._open_s = 0.0
        self._probing = False

    def failed(self, now: float, jitter: float) -> None:
        """The replica failed for its own reasons. `jitter` is drawn from [0, 1)."""
        self._failures += 1
        if self.is_open and not self._probing:
            return  # a request from before it opened
        self._probing = False
        if self.is_open or self._failures >= FAILURES_TO_OPEN:
            self._open_s = min(OPEN_MAX_S, max(OPEN_FIRST_S, 2 * self._open_s))
            self._open_until = now + self._open_s * (1 + JITTER * jitter)

    def abandoned(self) -> None:
        """The request ended without saying anything about the replica (its client left)."""
        self._probing = False
