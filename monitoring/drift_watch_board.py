"""What the drift watch knows: latest results, episodes and a bounded history, in one file that survives restarts.

Owns: `drift/board.json` and its bounds. Never: deciding (drift_watch_episodes, live_drift).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from monitoring.drift_watch_episodes import Episode
from monitoring.windows import Drift, Verdict, replace_file

HISTORY_MAX: Final = 1000
EPISODES_MAX: Final = 100


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """A check in one line."""

    at: float
    model: str
    version: str
    verdict: Verdict
    kinds: dict[str, Verdict]
    current_n: int
    effect: float
    """The largest of its features'."""
    feature: str
    """Whose that is; "" where none was judged."""


class Board(msgspec.Struct, kw_only=True):
    """Everything that is shown and that a restart must not forget."""

    drifts: list[Drift] = []
    """The latest of each version."""
    episodes: list[Episode] = []
    history: list[Glance] = []
    checked_at: float = 0.0
    """When windows were last compared."""
    checks: int = 0
    """Rounds that were computed."""
    failures: int = 0
    """Rounds that failed."""
    delivered: int = 0
    undelivered: int = 0
    """Events that no attempt got through."""

    def keep(self, drifts: Sequence[Drift], models: Collection[str], now: float) -> None:
        """Take in the results of a round over `models`: a version of theirs without one has no traffic any more."""
        others = [one for one in self.drifts if one.model not in models]
        self.drifts = sorted([*others, *drifts], key=lambda one: (one.model, one.version))
        self.history = [*self.history, *map(glance, drifts)][-HISTORY_MAX:]
        self.checked_at = now
        self.checks += 1

    def forget(self, model: str, now: float) -> None:
        """The model has another reference, or none: what was found against the old one says nothing any more."""
        self.drifts = [one for one in self.drifts if one.model != model]
        for one in self.episodes:
            if one.open and one.model == model:
                one.ended_at = now

    def only(self, versions: Collection[tuple[str, str]], now: float) -> None:
        """Drop results of versions that are not served any more, and end their episodes."""
        self.drifts = [one for one in self.drifts if (one.model, one.version) in versions]
        for one in self.episodes:
            if one.open and (one.model, one.version) not in versions:
                one.ended_at = now

    def trim(self) -> None:
        """Old episodes go, but for those that go on or are still to be told."""
        spare = len(self.episodes) - EPISODES_MAX
        kept: list[Episode] = []
        for one in self.episodes:
            if spare > 0 and not one.open and one.delivery != "pending":
                spare -= 1
            else:
                kept.append(one)
        self.episodes = kept


def glance(drift: Drift) -> Glance:
    largest = max(drift.features, key=lambda one: one.effect or 0.0, default=None)
    return Glance(
        at=drift.at,
        model=drift.model,
        version=drift.version,
        verdict=drift.verdict,
        kinds=drift.kinds,
        current_n=drift.current_n,
        effect=(largest.effect or 0.0) if largest else 0.0,
        feature=largest.feature if largest and largest.effect else "",
    )


def read(path: Path) -> Board:
    """The board of an earlier run; an empty one where there is none, or where its file is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Board)
    except (OSError, msgspec.DecodeError):
        return Board()


def write(path: Path, board: Board) -> None:
    """Replace the file in one step. Texts of samples stay in memory: on disk they are the store's alone."""
    drifts = [replace(drift, samples=[replace(sample, text="") for sample in drift.samples]) for drift in board.drifts]
    replace_file(path, msgspec.json.encode(replace(board, drifts=drifts)))
