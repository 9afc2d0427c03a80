"""What follows a failed attempt: the same replica again after a wait, another one at once, or the end.

Owns: that decision, the waits, and the budget that keeps further attempts a bounded share of the load. Never: I/O,
clocks, a random generator of its own, choosing the replica.

    silent   nothing came within a deadline: it may still be computing, so never the same replica
    unreached, reset   no connection, or it broke before any content: no work was left behind
    500      once more on the same replica, then another one
    502-504  another replica, else the same one after a wait
    429      another replica of the version, else the same one after the wait that it asks for, else another version
    401, 403 the engine refuses us, not the client: another one
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from serving.router.table import Retry

Kind = Literal["silent", "unreached", "reset", "status"]
Elsewhere = Literal["replica", "version", ""]
"""What is left to try: another replica of this version, only another version, nothing."""

OVERLOADED: Final = 429
REFUSING: Final = frozenset({401, 403})
RETRIED_STATUSES: Final = frozenset({401, 403, 429, 500, 502, 503, 504})
ONCE_MORE: Final = 2

RESERVE: Final = 10.0
"""Further attempts that are always there after a quiet time, so that a single request may be tried again."""
RESERVE_PER_S: Final = 1.0
DEPOSITS_MAX: Final = 1000.0


class Failure(msgspec.Struct, frozen=True, gc=False):
    """How one attempt failed before any content of its answer reached the client."""

    kind: Kind
    code: str
    """For the account: `engine_reset`, `first_byte_timeout`, `status_503`, …"""
    status: int = 0
    retry_after_s: float | None = None
    """What the engine's Retry-After says; None where there was none."""

    @property
    def is_engine_fault(self) -> bool:
        """Whether the replica itself is at fault: one that is only asked too much is not."""
        return self.status != OVERLOADED

    @property
    def costs(self) -> bool:
        """Whether another attempt is load on top of this one's: a connection that failed left no work behind."""
        return self.kind in ("silent", "status")


class Again(msgspec.Struct, frozen=True, gc=False):
    """Try once more: on the same replica, or on the next one in order; after `wait_s`."""

    same: bool
    wait_s: float = 0.0


def decide(failure: Failure, *, tries: int, elsewhere: Elsewhere, retry: Retry, jitter: float) -> Again | None:
    """What follows; None where nothing does. `tries`: attempts on this replica so far; `jitter` from [0, 1)."""
    kind, status = failure.kind, failure.status
    if kind == "silent" or status in REFUSING:
        return Again(same=False) if elsewhere else None
    once_more = status == 500 and tries < ONCE_MORE
    overloaded = status == OVERLOADED and elsewhere != "replica"
    if elsewhere and not (once_more or overloaded):
        return Again(same=False)
    wait_s = backoff(retry, tries, jitter)
    if failure.retry_after_s is not None:
        wait_s = max(wait_s, failure.retry_after_s)
    patient = failure.retry_after_s is None or failure.retry_after_s <= retry.retry_after_max_s
    if tries < retry.attempts_max and patient and (status != 500 or once_more):
        return Again(same=True, wait_s=wait_s)
    return Again(same=False) if elsewhere else None


def backoff(retry: Retry, tries: int, jitter: float) -> float:
    """The wait before the next attempt on a replica that was tried `tries` times: exponential, from its upper half."""
    whole = min(retry.backoff_max_s, retry.backoff_s * 2.0 ** max(0, tries - 1))
    return whole * (0.5 + 0.5 * jitter)


def retry_after_s(value: bytes) -> float | None:
    """Seconds of a Retry-After header; None where it is none of whole seconds (dates are not used by engines)."""
    text = value.strip()
    return float(text) if text.isdigit() and len(text) < 8 else None


class Budget:
    """Further attempts as a share of requests: each request puts in `share`, each further attempt takes one out.

    A small reserve fills by itself, so that a quiet model may try again too; what many requests have put in is kept up
    to a bound, so that an old calm does not pay for a storm.
    """

    __slots__ = ("_at", "_deposits", "_reserve", "share")

    def __init__(self, share: float, now: float) -> None:
        self.share = share
        self._deposits = 0.0
        self._reserve = RESERVE
        self._at = now

    def deposit(self) -> None:
        """A client's request has come."""
        self._deposits = min(DEPOSITS_MAX * self.share, self._deposits + self.share)

    def withdraw(self, now: float) -> bool:
        """Whether one more attempt may be made; it is counted then."""
        self._reserve = min(RESERVE, self._reserve + (now - self._at) * RESERVE_PER_S)
        self._at = now
        if self._deposits >= 1:
            self._deposits -= 1
            return True
        if self._reserve >= 1 and self.share > 0:
            self._reserve -= 1
            return True
        return False
