"""What the artifacts of each version take on disk.

Owns: dividing files that versions share, and how often it is looked again. Never: prices, removing files.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from registry.artifacts.store import ArtifactStore
from registry.manifest import Artifact
from registry.models import Version

LOOK_S = 60.0


class ArtifactBytes:
    """Looks into `store` at most once in LOOK_S. `versions` are all that are registered: a retired one's files stay."""

    def __init__(
        self,
        store: ArtifactStore,
        versions: Callable[[], Iterable[Version]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._versions = versions
        self._clock = clock
        self._looked_at: float | None = None
        self._found: Mapping[str, float] = {}

    def __call__(self) -> Mapping[str, float]:
        """`model@version` -> bytes; versions without files have 0. Blocking for some file status calls."""
        now = self._clock()
        if self._looked_at is None or now - self._looked_at >= LOOK_S:
            self._found = divided({str(one.ref): one.manifest.artifacts for one in self._versions()}, self._store.has)
            self._looked_at = now if self._found else None
        return self._found


def divided(files: Mapping[str, Iterable[Artifact]], is_there: Callable[[Artifact], bool]) -> dict[str, float]:
    """Bytes of each owner's files that are there; one that several own is divided evenly among them."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    sizes: dict[str, int] = {}
    for owner, artifacts in files.items():
        for artifact in artifacts:
            if artifact.sha256 in sizes or is_there(artifact):
                sizes[artifact.sha256] = artifact.size_bytes
                owners[artifact.sha256].add(owner)
    found = dict.fromkeys(files, 0.0)
    for sha256, own in owners.items():
        for owner in own:
            found[owner] += sizes[sha256] / len(own)
    return found
