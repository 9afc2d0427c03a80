"""Scorers of other packages, by the entry point group `modelyard.scorers` (a name -> a subclass of Scorer).

Owns: finding and loading one, and saying in one sentence what is wrong with it. Never: loading one that nobody named.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Final

from eval.scorers.base import Scorer, ScorerError

GROUP: Final = "modelyard.scorers"


@dataclass(frozen=True, slots=True)
class Plugin:
    """A scorer and the distribution that brings it, as `name==version`."""

    kind: type[Scorer]
    origin: str


def names() -> list[str]:
    """The names that installed packages offer, sorted. Loads none of them."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


@cache
def load(name: str) -> Plugin | None:
    """The scorer that an installed package calls `name`, or None. Raises ScorerError where it cannot be used."""
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        return None
    origins = [f"{entry.dist.name}=={entry.dist.version}" if entry.dist else "an unknown package" for entry in found]
    if len(found) > 1:
        raise ScorerError(f"the scorer {name!r} comes from {' and '.join(origins)}: uninstall all but one")
    try:
        kind = found[0].load()
    except Exception as error:  # another's module may raise anything
        raise ScorerError(
            f"the scorer {name!r} of {origins[0]} cannot be loaded ({type(error).__name__}: {error}): "
            "repair or uninstall that package"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Scorer)):
        raise ScorerError(
            f"the scorer {name!r} of {origins[0]} is {kind!r}: its entry point must name a subclass of "
            "eval.scorers.Scorer"
        )
    return Plugin(kind, origins[0])
