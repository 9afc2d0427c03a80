"""`file:` sources: a file, or a directory of files, copied into the store.

Owns: reading them. Never: following what may leave the directory's own listing (hidden files, linked directories).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from registry.artifacts.sources import FileSource, Progress
from registry.artifacts.store import CHUNK_BYTES, ArtifactStore, Stamp
from registry.errors import ArtifactError
from registry.manifest import Artifact

FILES_MAX: Final = 10_000


def stamp(source: FileSource) -> Stamp:
    """Size and modification time of the source's files, by their path below it (the file's own name for one file).

    Raises ArtifactError where there is none.
    """
    path = source.path
    if path.is_file():
        return {path.name: _stat(path)}
    if not path.exists():
        raise ArtifactError(
            f"{path} does not exist ({source})", remedy="correct the path, which starts at the configuration's folder"
        )
    found = {file.relative_to(path).as_posix(): _stat(file) for file in _files(path)}
    if not found:
        raise ArtifactError(f"{path} holds no files ({source})", remedy="name a file, or a folder with a checkpoint")
    return found


def fetch(source: FileSource, store: ArtifactStore, work: Path, known: Stamp, progress: Progress) -> list[Artifact]:
    """Copy the files of the stamp `known` into the store. Raises ArtifactError where one changes meanwhile; OSError."""
    single = source.path.is_file()
    artifacts = []
    progress.start(f"Copying {source.path.name}", sum(size for size, _ in known.values()))
    try:
        for name, seen in sorted(known.items()):
            path = source.path if single else source.path / name
            sha256, size = store.absorb(_chunks(path, seen[0]), work, progress)
            if _stat(path) != seen or size != seen[0]:
                raise ArtifactError(f"{path} changed while it was read", remedy="try again once it is complete")
            role = "model" if single else name
            artifacts.append(Artifact(role=role, sha256=sha256, size_bytes=size, source=str(source), filename=name))
    finally:
        progress.done()
    return artifacts


def _files(folder: Path) -> Iterator[Path]:
    count = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent) / name
            if name.startswith(".") or not path.is_file():
                continue
            count += 1
            if count > FILES_MAX:
                raise ArtifactError(f"{folder} holds more than {FILES_MAX} files", remedy="name a checkpoint's folder")
            yield path


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _chunks(path: Path, expected: int) -> Iterator[bytes]:
    """The file's bytes; of one that grows meanwhile no more than shows that it does."""
    with path.open("rb") as file:
        while expected >= 0 and (chunk := file.read(CHUNK_BYTES)):
            expected -= len(chunk)
            yield chunk
