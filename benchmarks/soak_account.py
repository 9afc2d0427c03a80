"""The soak's books: what the clients saw against what the router wrote down.

Owns: the tally of a run, and what counts as a missing, doubled or wrong record. Never: load, faults.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soak_client import Ask

from serving.control import segments

RECORD_LATE_S = 0.15
"""A worker that is killed may lose what it wrote down in the last moment (100 ms, and a little for the clocks)."""
RESPAWN_S = 5.0


@dataclass
class Tally:
    """What the run saw."""

    asks: list[Ask] = field(default_factory=list)
    verdicts: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    kills: list[float] = field(default_factory=list)
    """When the worker was killed, Unix seconds."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """(Unix seconds, megabytes of the workers)"""
    examples: list[str] = field(default_factory=list)
    skipped: int = 0


def excused(ask: Ask, kills: Sequence[float]) -> bool:
    """Whether a worker was killed while it was asked, or had not been replaced yet."""
    return any(ask.began - RESPAWN_S <= kill <= ask.ended + 0.5 for kill in kills)


def metric(text: str, name: str) -> float:
    """The sum over the series of a metric."""
    lines = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@dataclass(slots=True)
class Account:
    """What the segments say."""

    records: int = 0
    retried: int = 0
    continued: int = 0
    by_id: dict[str, tuple[int, str, int, str]] = field(default_factory=dict)
    """Request id -> how many records it has, and the last one's outcome, completion tokens and their source."""


def account_of(folder: Path) -> Account:
    """Every record in every segment."""
    found = Account()
    for name in segments.names(folder):
        offset, more = 0, True
        while more:
            reading = segments.read(folder / str(name), offset)
            offset, more = reading.offset, reading.more
            for one in reading.records:
                found.records += 1
                found.retried += one.attempts > 1
                found.continued += one.continuations > 0
                times = found.by_id.get(one.request_id, (0,))[0] + 1
                found.by_id[one.request_id] = (times, one.outcome, one.completion_tokens, one.usage_source)
    return found


def check_records(tally: Tally, account: Account) -> list[str]:
    """What is wrong with the account of what the clients saw."""
    asked = {ask.id: ask for ask in tally.asks}
    known = [name for name in account.by_id if name.startswith("soak-")]
    problems = [f"{name} was never asked" for name in known if name not in asked]
    for name, ask in asked.items():
        times, outcome, tokens, source = account.by_id.get(name, (0, "", 0, ""))
        if times == 0:
            lost = ask.failure.startswith("no connection") or excused_record(ask, tally.kills)
            problems += [] if lost else [f"{name} has no record (status {ask.status}, complete {ask.complete})"]
        elif times > 1:
            problems.append(f"{name} has {times} records")
        elif ask.complete and outcome == "completed" and (tokens, source) != (ask.words, "engine"):
            problems.append(f"{name}: {tokens} tokens ({source}) counted, {ask.words} were given")
    return problems


def excused_record(ask: Ask, kills: Sequence[float]) -> bool:
    """Whether a worker was killed while it was asked, or in the moment after."""
    return any(ask.began - 0.5 <= kill <= ask.ended + RECORD_LATE_S for kill in kills)


def growth_mb(memory: Sequence[tuple[float, float]]) -> float:
    """The mean of the last fifth less the mean of the fifth in the middle: no worker is killed in between."""
    values = [mb for _, mb in memory]
    if len(values) < 5:
        return 0.0
    fifth = len(values) // 5
    middle, last = values[2 * fifth : 3 * fifth], values[-fifth:]
    return sum(last) / len(last) - sum(middle) / len(middle)
