"""Asks ready engines for their own metrics, every few seconds, and keeps what they said last.

Owns: when engines are asked, within which limits, and how often it failed. Never: what a name means (engine_metrics),
which engines there are (an argument), the data plane: a scrape of ours reads what is kept here.

An engine that is busy answers late or not at all: its last reading stands for STALE_S, then it has none. One that went,
or began anew under another pid, takes its reading with it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import httpx

from monitoring.engine_metrics import READINGS, EngineReadings, read

log = logging.getLogger("modelyard.engine_scrape")

INTERVAL_S: Final = 5.0
TIMEOUT_S: Final = 4.0
BYTES_MAX: Final = 4 * 1024 * 1024
STALE_S: Final = 20.0

Outcome = Literal["completed", "timeout", "failed", "too_large"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("completed", "timeout", "failed", "too_large")
NOTHING: Final = EngineReadings({}, READINGS)
"""What an engine without metrics says."""


@dataclass(frozen=True, slots=True)
class Target:
    """One engine that takes requests."""

    model: str
    version: str
    replica: str
    """`assistant@v2/0`"""
    url: str
    """Of its metrics; "" for an engine that has none."""
    pid: int
    """Another one is another engine."""


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """What one replica said last."""

    target: Target
    readings: EngineReadings | None
    """None before the first answer, and once the last one is too old."""
    scrapes: dict[Outcome, int]


@dataclass(slots=True)
class _Kept:
    target: Target
    scrapes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    readings: EngineReadings | None = None
    at: float = 0.0
    problem: str = ""


class EngineScraper:
    """`run` asks until it is cancelled; `latest` is what a scrape shows. Both in one event loop."""

    def __init__(
        self,
        targets: Callable[[], Sequence[Target]],
        *,
        interval_s: float = INTERVAL_S,
        timeout_s: float = TIMEOUT_S,
        bytes_max: int = BYTES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._targets = targets
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._bytes_max = bytes_max
        self._clock = clock
        self._kept: dict[str, _Kept] = {}

    async def run(self) -> None:
        """Ask every engine, each on its own clock's round. Raises nothing but its cancellation."""
        async with httpx.AsyncClient(trust_env=False, headers={"accept": "text/plain"}) as client:
            while True:
                try:
                    await self.round(client)
                except Exception:
                    log.exception("a round of engines' metrics failed; trying again")
                await asyncio.sleep(self._interval_s)

    async def round(self, client: httpx.AsyncClient) -> None:
        """Ask every engine once, all at a time; forget those that went."""
        targets = {target.replica: target for target in self._targets()}
        kept = {replica: one for replica, one in self._kept.items() if replica in targets}
        for replica, target in targets.items():
            known = kept.setdefault(replica, _Kept(target))
            if known.target != target:
                known.target, known.readings = target, None
        self._kept = kept
        await asyncio.gather(*[self._ask(client, one) for one in kept.values()])

    def latest(self) -> list[EngineMetrics]:
        """What every engine said last, by replica. Waits for nothing."""
        now = self._clock()
        running = {target.replica: target for target in self._targets()}
        return [
            EngineMetrics(one.target, one.readings if now - one.at <= STALE_S else None, dict(one.scrapes))
            for replica, one in sorted(self._kept.items())
            if running.get(replica) == one.target
        ]

    async def _ask(self, client: httpx.AsyncClient, one: _Kept) -> None:
        target = one.target
        if not target.url:
            one.readings, one.at = NOTHING, self._clock()
            return
        outcome, problem = await self._answer(client, target, one)
        one.scrapes[outcome] += 1
        if problem and not one.problem:
            log.warning("%s gives no metrics: %s", target.replica, problem)
        elif one.problem and not problem:
            log.info("%s gives its metrics again", target.replica)
        one.problem = problem

    async def _answer(self, client: httpx.AsyncClient, target: Target, one: _Kept) -> tuple[Outcome, str]:
        """Ask once. Returns the outcome, and what was wrong."""
        try:
            async with asyncio.timeout(self._timeout_s):
                text = await self._text(client, target.url)
        except TimeoutError:
            return "timeout", f"no answer within {self._timeout_s:g} s"
        except httpx.HTTPError as error:
            return "failed", str(error) or type(error).__name__
        if text is None:
            return "too_large", f"its answer is above {self._bytes_max} bytes"
        readings = await asyncio.to_thread(read, text)
        if readings is None:
            return "failed", "its answer has none that are known"
        if one.target == target:  # it may have begun anew meanwhile
            one.readings, one.at = readings, self._clock()
        return "completed", ""

    async def _text(self, client: httpx.AsyncClient, url: str) -> str | None:
        """The answer's body; None where it is too large."""
        body = bytearray()
        async with client.stream("GET", url, timeout=self._timeout_s) as answer:
            answer.raise_for_status()
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > self._bytes_max:
                    return None
        return body.decode(errors="replace")
