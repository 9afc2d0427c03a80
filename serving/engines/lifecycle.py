"""The life of one replica as a value, and what its engine is given of the machine.

Owns: states and the events between them, the backoff schedule, the choice of threads. Never: processes, sockets, clocks
or randomness: the time and a number in [0, 1) come in as arguments.

    starting ──answered──► ready ──missed n times──► backoff ──answered──► ready
       │                     │                           │
       └────────died─────────┴───────────► backoff ──due──► starting
                                        └─ died n times before it was ever ready ─► failed
    any ──drain──► draining ──ended──► stopped
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

State = Literal["starting", "ready", "backoff", "failed", "draining", "stopped"]
CONFIGURATION_EXIT: Final = 2
"""An engine that exits with this status was given arguments that it cannot use; starting it again would not help."""
CONTEXT_TOKENS_PER_SLOT: Final = 2048
PARALLEL_SLOTS: Final = 4


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient to be."""

    first_s: float = 0.2
    """Wait before the first restart; doubles with each failure in a row."""
    max_s: float = 30.0
    jitter: float = 0.25
    """A wait is shortened by up to this share, so that engines do not all start in one moment."""
    stable_s: float = 30.0
    """A replica that was ready for this long is forgiven its failures."""
    start_timeout_s: float = 900.0
    """An engine that is not ready after this is killed, which counts as a death."""
    early_deaths_max: int = 3
    """So many deaths in a row before the engine was ready once make it failed."""
    misses_max: int = 3
    """So many health checks in a row without an answer take a replica out of the route."""
    hung_s: float = 60.0
    """A process that lives but has not answered for this long is killed, which counts as a death."""


@dataclass(frozen=True, slots=True)
class Life:
    """Where a replica stands. Times are monotonic seconds."""

    state: State = "starting"
    since: float = 0.0
    launched_at: float = 0.0
    was_ready: bool = False
    """Since it was launched last."""
    failures: int = 0
    """In a row; sets the backoff."""
    early_deaths: int = 0
    restarts: int = 0
    misses: int = 0
    answered_at: float = 0.0
    retry_at: float = 0.0
    last_error: str = ""


def backoff_s(policy: Policy, failures: int, chance: float) -> float:
    """The wait before the next start after so many failures in a row: `first_s · 2^(failures - 1)`, at most `max_s`,
    shortened by `chance · jitter` of itself. `chance` lies in [0, 1)."""
    if failures <= 0:
        return 0.0
    full_s = min(policy.max_s, policy.first_s * 2.0 ** min(failures - 1, 60))
    return full_s * (1.0 - policy.jitter * chance)


def launched(life: Life, now: float) -> Life:
    """A process was started, or (first) is about to be."""
    restarts = life.restarts + (life.launched_at > 0)
    return replace(
        life,
        state="starting",
        since=now,
        launched_at=now,
        answered_at=now,
        was_ready=False,
        misses=0,
        restarts=restarts,
    )


def answered(life: Life, policy: Policy, now: float) -> Life:
    """It answered its readiness probe."""
    if life.state in ("draining", "stopped", "failed"):
        return life
    settled = life.state == "ready" and now - life.since >= policy.stable_s
    life = replace(life, misses=0, answered_at=now, early_deaths=0, failures=0 if settled else life.failures)
    if life.state == "ready":
        return life
    return replace(life, state="ready", since=now, was_ready=True, last_error="")


def missed(life: Life, policy: Policy, now: float, reason: str) -> Life:
    """It did not answer. One that is starting may take its time; one that was ready loses its place after some."""
    life = replace(life, misses=life.misses + 1)
    if life.state == "ready" and life.misses >= policy.misses_max:
        return replace(life, state="backoff", since=now, last_error=reason)
    if life.state in ("starting", "backoff"):
        return replace(life, last_error=reason)
    return life


def hung(life: Life, policy: Policy, now: float) -> bool:
    """Whether its process must be killed: not ready in time, or silent for too long after it was ready."""
    limit_s = policy.hung_s if life.was_ready else policy.start_timeout_s
    return life.state in ("starting", "ready", "backoff") and now - life.answered_at >= limit_s


def died(life: Life, policy: Policy, now: float, reason: str, *, chance: float, status: int | None = None) -> Life:
    """Its process is gone. `status` is the exit status, where it is known."""
    if life.state in ("draining", "stopped", "failed"):
        return life
    failures = life.failures + 1
    early = 0 if life.was_ready else life.early_deaths + 1
    hopeless = early >= policy.early_deaths_max or (not life.was_ready and status == CONFIGURATION_EXIT)
    return replace(
        life,
        state="failed" if hopeless else "backoff",
        since=now,
        failures=failures,
        early_deaths=early,
        misses=0,
        retry_at=now + backoff_s(policy, failures, chance),
        last_error=reason,
    )


def refused(life: Life, now: float, reason: str) -> Life:
    """It cannot be started at all: something that a person has to mend."""
    return replace(life, state="failed", since=now, last_error=reason)


def draining(life: Life, now: float) -> Life:
    """It takes no new requests and will be stopped."""
    return life if life.state == "stopped" else replace(life, state="draining", since=now)


def stopped(life: Life, now: float) -> Life:
    """Nothing of it runs any more."""
    return replace(life, state="stopped", since=now)


def threads_per_engine(cores: int, engines: int) -> int:
    """Compute threads for each of `engines` that share `cores`: an even share of all but one core, at least one.

    A compute thread that is not scheduled keeps all others of its engine spinning at a barrier, so threads must never
    outnumber free cores. Measured with llama.cpp on 2 cores, tokens/s at 4 requests an engine: two engines 146 with one
    thread each, 59 to 68 with two each. One engine: 74 with one thread, 134 with two where nothing else ran, but 39 and
    11 where the machine was in use. The core left over is for the router, the control plane and everybody else.
    """
    return max(1, (cores - 1) // max(1, engines))


def context_tokens(parallel: int) -> int:
    """The context of a llama.cpp engine that was told none: 2048 tokens for each of its slots, which it divides."""
    return CONTEXT_TOKENS_PER_SLOT * max(1, parallel)
