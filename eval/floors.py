"""Noise floors: what a version does against itself (A/A), kept by suite and version for every later comparison.

Owns: the files in STATE_DIR/floors. Never: measuring one (assessment.py).

A floor is the noise that any difference has to rise above: the default margin where neither command nor suite gives
one, and the threshold for text-level drift. It belongs to (suite digest, version), whatever the run's seed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from eval.errors import StateDirError
from eval.results import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """What a version does against itself."""

    run: str
    """The second run."""
    discordance: float
    """Share of cases with different scores."""
    exact_match: float
    """Share of answers that are the same, character for character."""
    distance: float
    """Mean embedding distance of the answers."""
    difference: float = 0.0
    """Mean difference of the scores, second run - first."""
    bound: float = 0.0
    """The end of its interval that is farther from 0; 0 where not one score differed."""
    n: int = 0
    measured_at: float = 0.0
    """Unix seconds."""


class Floors:
    """The floors of one state directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, suite_digest: str, identity: str) -> Floor | None:
        """The floor of a version on a suite, where it was ever measured."""
        try:
            return msgspec.json.decode(self._path(suite_digest, identity).read_bytes(), type=Floor)
        except (OSError, msgspec.DecodeError):
            return None

    def put(self, suite_digest: str, identity: str, floor: Floor) -> None:
        """Keep a floor in place of what was there. Raises StateDirError."""
        path = self._path(suite_digest, identity)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, msgspec.json.encode(floor))
        except OSError as error:
            raise StateDirError(path, "written", error) from error

    def _path(self, suite_digest: str, identity: str) -> Path:
        name = hashlib.sha256(f"{suite_digest}\n{identity}".encode()).hexdigest()[:24]
        return self._root / f"{name}.json"
