"""Where the files of a version come from, and where they are kept by their content.

Owns: sources, fetching, the content-addressed store. Never: what a version is, when to fetch.
"""

from __future__ import annotations

from registry.artifacts.sources import (
    ArtifactSource,
    FileSource,
    NoProgress,
    Progress,
    PypiSource,
    RequantizeSource,
    parse,
)
from registry.artifacts.store import ArtifactStore
from registry.manifest import Artifact

__all__ = [
    "ArtifactSource",
    "ArtifactStore",
    "FileSource",
    "NoProgress",
    "Progress",
    "PypiSource",
    "RequantizeSource",
    "fetch",
    "parse",
]


def fetch(source: ArtifactSource, store: ArtifactStore, *, progress: Progress) -> list[Artifact]:
    """Bring a source's files into the store, where they are not there yet, and say what they are."""
    raise NotImplementedError
