"""Episodes of act-level drift and what is told of them: pure decisions.

Owns: when an episode begins and ends, what its event says and how it is signed, when a delivery is tried again. Never:
I/O, clocks, sending (drift_watch_webhook).

An episode of a version begins with the first check whose verdict is act, and ends with the first whose verdict is none,
or with a new reference. Watch and inconclusive leave it as it is: a score that swings around a threshold is one episode
and one event.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from monitoring.windows import Drift

EVENT: Final = "retrain_trigger"
BACKOFF_MAX_S: Final = 600.0
Delivery = Literal["off", "pending", "delivered", "failed"]


class Episode(msgspec.Struct, kw_only=True):
    """One stretch of act-level drift of one version."""

    id: str
    model: str
    version: str
    began_at: float
    ended_at: float = 0.0
    """0 while it goes on."""
    reference: str
    delivery: Delivery = "off"
    attempts: int = 0
    next_at: float = 0.0
    """When the webhook is tried (again)."""
    last_error: str = ""
    event: dict[str, Any] = {}

    @property
    def open(self) -> bool:
        return not self.ended_at


def follow(
    episodes: Sequence[Episode], drift: Drift, *, episode_id: str, link: str, has_webhook: bool
) -> tuple[list[Episode], Episode | None]:
    """The episodes after a check, and the one that began with it. Nothing that came in is changed."""
    found = list(episodes)
    current = next(
        (index for index, one in enumerate(found) if one.open and _same(one, drift)),
        None,
    )
    if current is not None and (drift.verdict == "none" or found[current].reference != drift.reference):
        found[current] = msgspec.structs.replace(found[current], ended_at=drift.at)
        current = None
    if current is not None or drift.verdict != "act":
        return found, None
    begun = Episode(
        id=episode_id,
        model=drift.model,
        version=drift.version,
        began_at=drift.at,
        reference=drift.reference,
        delivery="pending" if has_webhook else "off",
        next_at=drift.at,
        event=event_of(drift, episode_id, link),
    )
    return [*found, begun], begun


def event_of(drift: Drift, episode_id: str, link: str) -> dict[str, Any]:
    """What the webhook is told: figures and ids, never a text."""
    return {
        "event": EVENT,
        "id": episode_id,
        "at": drift.at,
        "model": drift.model,
        "version": drift.version,
        "verdict": drift.verdict,
        "kinds": drift.kinds,
        "features": [
            {
                "feature": one.feature,
                "kind": one.kind,
                "verdict": one.verdict,
                "effect": one.effect,
                "interval": [one.low, one.high],
                "q": one.q,
                "reference_n": one.reference_n,
                "current_n": one.current_n,
            }
            for one in drift.features
            if one.verdict in ("act", "watch")
        ],
        "window": {"since": drift.since, "until": drift.until, "samples": drift.current_n},
        "reference": {"name": drift.reference, "against": drift.against, "samples": drift.reference_n},
        "samples": [one.id for one in drift.samples],
        "link": link,
    }


def after_attempt(
    episode: Episode, error: str, *, now: float, attempts_max: int, backoff_s: float, jitter: float
) -> None:
    """Note an attempt ("": it was taken). `jitter` is between 0 and 1: waits are between half and the whole of
    backoff · 2^(attempts - 1), at most BACKOFF_MAX_S."""
    episode.attempts += 1
    episode.last_error = error
    if not error:
        episode.delivery = "delivered"
    elif episode.attempts >= attempts_max:
        episode.delivery = "failed"
    else:
        wait = min(backoff_s * 2 ** (episode.attempts - 1), BACKOFF_MAX_S)
        episode.next_at = now + wait * (0.5 + jitter / 2)


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """`sha256=` and the HMAC of `timestamp.body`: whoever has the secret can tell it is ours and not an old one."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _same(episode: Episode, drift: Drift) -> bool:
    return (episode.model, episode.version) == (drift.model, drift.version)
