"""When a replica is left alone for a while: a circuit breaker, and the rest that a replica asks for.

Owns: the states and their times. Never: I/O, clocks, a random generator of its own, knowing what a failure is (only an
engine's own faults are reported here, never a client's 4xx).

    closed     requests go; FAILURES_TO_OPEN failures in a row, or half of the last WINDOW requests, open it
    open       requests go elsewhere until a time that grows with every failed probe
    half-open  that time has come: one request is let through as a probe; its outcome closes or opens
    resting    the replica said that it has too much to do (429): nothing goes there until the time that it named
"""

from __future__ import annotations

from typing import Final

FAILURES_TO_OPEN: Final = 3
WINDOW: Final = 16
"""A replica that fails every other time never fails thrice in a row."""
_WINDOW_MASK: Final = (1 << WINDOW) - 1
OPEN_FIRST_S: Final = 1.0
OPEN_MAX_S: Final = 8.0
JITTER: Final = 0.2
"""Times are longer by up to this share, so that workers do not probe in step."""
REST_MAX_S: Final = 60.0
REST_S: Final = 0.5
"""Where the replica named no time."""
OVERLOADS_TO_REST: Final = 3


class Breaker:
    """The breaker of one replica in one worker. `now` is a monotonic clock's reading in seconds."""

    __slots__ = ("_failures", "_history", "_open_s", "_open_until", "_overloads", "_probing", "_rest_until")

    def __init__(self) -> None:
        self._failures = 0
        self._history = 0
        self._overloads = 0
        self._open_s = 0.0
        self._open_until = 0.0
        self._rest_until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Open or half-open: the replica has failed and has not yet shown that it is back."""
        return self._open_s > 0

    def allows(self, now: float) -> bool:
        """Whether a request may go to the replica now."""
        if now < self._rest_until:
            return False
        return not self._open_s or (now >= self._open_until and not self._probing)

    def rests_s(self, now: float) -> float:
        """How long the replica still wants to be left alone."""
        return max(0.0, self._rest_until - now)

    def begin(self) -> None:
        """A request goes there (as a last resort even where `allows` said no)."""
        self._probing = self._open_s > 0

    def succeeded(self) -> None:
        """The replica answered: closed, unless the window still says otherwise of one that was closed."""
        if self._open_s:
            self._history = 0
            self._open_s = 0.0
        elif self._history:
            self._history = (self._history << 1) & _WINDOW_MASK
        self._failures = 0
        self._overloads = 0
        self._probing = False

    def failed(self, now: float, jitter: float) -> None:
        """The replica failed for its own reasons. `jitter` is drawn from [0, 1)."""
        self._failures += 1
        self._history = ((self._history << 1) | 1) & _WINDOW_MASK
        if self.is_open and not self._probing:
            return  # a request from before it opened
        self._probing = False
        flapping = self._history.bit_count() * 2 >= WINDOW
        if self.is_open or self._failures >= FAILURES_TO_OPEN or flapping:
            self._open_s = min(OPEN_MAX_S, max(OPEN_FIRST_S, 2 * self._open_s))
            self._open_until = now + self._open_s * (1 + JITTER * jitter)

    def overloaded(self, now: float, retry_after_s: float | None) -> None:
        """The replica has too much to do: what it asks for is given, and a third time in a row without a word too."""
        self._overloads += 1
        self._probing = False
        if retry_after_s is None and self._overloads < OVERLOADS_TO_REST:
            return
        rest_s = REST_S if retry_after_s is None else min(retry_after_s, REST_MAX_S)
        self._rest_until = max(self._rest_until, now + rest_s)

    def abandoned(self) -> None:
        """The request ended without saying anything about the replica (its client left)."""
        self._probing = False
