"""The content-addressed store: files named by their SHA-256, complete or not there at all.

Owns: `artifacts/` in the state directory. Never: where files come from.
"""

from __future__ import annotations

from pathlib import Path

from registry.manifest import Artifact


class ArtifactStore:
    """Files below `root`: `sha256/ab/abcdef…`, read-only; partial ones only ever under `tmp/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where the file with this hash is, or would be."""
        raise NotImplementedError

    def verify(self, artifact: Artifact) -> Path:
        """Hash the file and return its path. Raises DigestMismatchError naming both hashes, or ArtifactError where it
        is missing."""
        raise NotImplementedError

    def add(self, temporary: Path, sha256: str) -> Path:
        """Take a complete file in under its hash, by one atomic rename. `temporary` is gone afterwards."""
        raise NotImplementedError

    def link(self, artifact: Artifact, directory: Path) -> Path:
        """Give the file its own name below `directory` (a hard link where possible), as engines want to see it."""
        raise NotImplementedError
