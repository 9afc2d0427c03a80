"""Where the files of a version come from, and where they are kept by their content.

Owns: sources, fetching, the content-addressed store. Never: what a version is, when to fetch.
"""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Final

import msgspec

from registry.artifacts import file, pypi, requantize
from registry.artifacts.sources import (
    ArtifactSource,
    FileSource,
    NoProgress,
    Progress,
    PypiSource,
    RequantizeSource,
    parse,
)
from registry.artifacts.store import ArtifactStore, Stamp
from registry.errors import ArtifactError
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


_REMEDIES: Final = {
    errno.ENOSPC: "free some space on its file system and try again",
    errno.EDQUOT: "free some of this user's quota and try again",
    errno.EACCES: "give this user the right to read the source and to write there",
    errno.EPERM: "give this user the right to read the source and to write there",
    errno.EFBIG: "allow this user larger files (ulimit -f) and try again",
    errno.EROFS: "use a state directory that can be written to",
}


def fetch(source: ArtifactSource, store: ArtifactStore, *, progress: Progress) -> list[Artifact]:
    """Bring a source's files into the store, where they are not there yet, and say what they are.

    A source that was fetched before and has not changed is not read again: a package's version and a requantisation
    never change, a file has where its size or modification time has. Raises ArtifactError.
    """
    try:
        return _fetch(source, store, progress)
    except OSError as error:
        cause = error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno or 0, "check the state directory and try again")
        raise ArtifactError(f"{source} cannot be brought into {store.root} ({cause})", remedy=remedy) from error


def _fetch(source: ArtifactSource, store: ArtifactStore, progress: Progress) -> list[Artifact]:
    key = _key(source)
    stamp = file.stamp(source) if isinstance(source, FileSource) else {}
    known = store.recall(key, stamp)
    if known is None:
        with store.exclusive(key, str(source), progress) as work:
            known = store.recall(key, stamp)  # the process that had the lock may have fetched it
            if known is None:
                known = _bring(source, store, work, stamp, progress)
                store.remember(key, str(source), stamp, known, work)
    return [msgspec.structs.replace(artifact, source=str(source)) for artifact in known]


def _bring(
    source: ArtifactSource, store: ArtifactStore, work: Path, stamp: Stamp, progress: Progress
) -> list[Artifact]:
    match source:
        case FileSource():
            return file.fetch(source, store, work, stamp, progress)
        case PypiSource():
            return pypi.fetch(source, store, work, progress)
        case RequantizeSource():
            return requantize.fetch(source, store, work, progress)


def _key(source: ArtifactSource) -> str:
    """A file name that stands for the source's content, whatever the configuration calls it."""
    match source:
        case FileSource():
            content = f"file:{source.path}"
        case PypiSource():
            content = str(source)
        case RequantizeSource():
            content = f"requantize:{source.parent.sha256}:{source.parent.filename}:{source.type}"
    return hashlib.sha256(content.encode()).hexdigest()
