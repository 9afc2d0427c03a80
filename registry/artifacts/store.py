"""The content-addressed store: files named by their SHA-256, complete or not there at all.

Owns: `artifacts/` in the state directory. Never: where files come from.

    sha256/ab/abcdef…   complete files, read-only
    sources/<key>.json  which files a source was found to be, so that an unchanged one is not fetched again
    tmp/<key>/          where one source is being fetched; what a killed process left there is removed by the next one
    locks/<key>         held by the process that fetches the source
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from registry.artifacts.sources import Progress, check_relative
from registry.errors import ArtifactError, DigestMismatchError
from registry.manifest import Artifact

CHUNK_BYTES: Final = 1 << 20
_SHA256: Final = re.compile(r"[0-9a-f]{64}")

Stamp = dict[str, tuple[int, int]]
"""Of a source's files: path -> size in bytes and modification time in ns. Empty where the source cannot change."""


class _Memory(msgspec.Struct, frozen=True):
    source: str
    stamp: Stamp
    artifacts: list[Artifact]


class ArtifactStore:
    """Files below `root`. Safe for any number of threads and processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def path(self, sha256: str) -> Path:
        """Where the file with this hash is, or would be. Raises ArtifactError for what is no hash."""
        if not _SHA256.fullmatch(sha256):
            raise ArtifactError(f"{sha256!r} is not a hexadecimal SHA-256")
        return self.root / "sha256" / sha256[:2] / sha256

    def has(self, artifact: Artifact) -> bool:
        """Whether a file of its hash and size is there. The bytes are not read: `verify` does."""
        try:
            return self.path(artifact.sha256).stat().st_size == artifact.size_bytes
        except OSError:
            return False

    def verify(self, artifact: Artifact) -> Path:
        """Hash the file and return its path.

        Raises DigestMismatchError naming both hashes, or ArtifactError where it is missing or cannot be read.
        """
        path = self.path(artifact.sha256)
        try:
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise ArtifactError(
                f"{artifact.filename} ({artifact.source}) is not in {self.root}",
                remedy="apply the configuration again to fetch it",
            ) from None
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read ({error.strerror})") from error
        if actual != artifact.sha256:
            raise DigestMismatchError(artifact.sha256, actual, path)
        return path

    def add(self, temporary: Path, sha256: str) -> Path:
        """Take a complete file in under its hash, by one atomic rename. `temporary` is gone afterwards.

        The file must lie on the store's file system: below `tmp/`. Raises OSError.
        """
        path = self.path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.chmod(0o444)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
        return path

    def absorb(self, chunks: Iterable[bytes], work: Path, progress: Progress | None = None) -> tuple[str, int]:
        """Write chunks to a file below `work`, hashing them, and take it in. Its SHA-256 and size. Raises OSError."""
        temporary = work / secrets.token_hex(8)
        sha256 = hashlib.sha256()
        size = 0
        with temporary.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
                sha256.update(chunk)
                size += len(chunk)
                if progress is not None:
                    progress.advance(len(chunk))
        self.add(temporary, sha256.hexdigest())
        return sha256.hexdigest(), size

    def link(self, artifact: Artifact, directory: Path) -> Path:
        """Give the file its own name below `directory`, as engines want to see it: a hard link, else a symbolic one.

        What is there under that name is replaced. Raises ArtifactError.
        """
        source = self.path(artifact.sha256)
        target = directory / check_relative(artifact.filename, artifact.source)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and target.samefile(source):
                return target
            try:
                temporary.hardlink_to(source)
            except FileNotFoundError:
                raise
            except OSError:  # another file system, or one without hard links
                temporary.symlink_to(source)
            temporary.replace(target)
        except OSError as error:
            raise ArtifactError(f"{target} cannot be linked to {source} ({error.strerror})") from error
        finally:  # renaming onto another link of one file does nothing, says POSIX: both names stay
            with contextlib.suppress(OSError):
                temporary.unlink()
        return target

    def recall(self, key: str, stamp: Stamp) -> list[Artifact] | None:
        """The files that the source was found to be, if it has this stamp still and they are all there."""
        try:
            memory = msgspec.json.decode(self._memory(key).read_bytes(), type=_Memory)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        known = memory.stamp == stamp and all(self.has(artifact) for artifact in memory.artifacts)
        return memory.artifacts if known else None

    def remember(self, key: str, source: str, stamp: Stamp, artifacts: list[Artifact], work: Path) -> None:
        """Note which files the source is, for `recall`. Raises OSError."""
        temporary = work / secrets.token_hex(8)
        temporary.write_bytes(msgspec.json.encode(_Memory(source, stamp, artifacts)))
        path = self._memory(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(path)

    @contextmanager
    def exclusive(self, key: str, title: str, progress: Progress) -> Iterator[Path]:
        """An empty folder to fetch a source in, for one process or thread at a time; gone afterwards. Raises OSError.

        The lock is the kernel's: it ends with its process, however that ends.
        """
        with self._lock(key) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.start(f"Waiting for another process: {title}", None)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                finally:
                    progress.done()
            self._sweep(key)
            work = self.root / "tmp" / key / secrets.token_hex(8)
            work.mkdir(parents=True)
            try:
                yield work
            finally:
                shutil.rmtree(work.parent, ignore_errors=True)

    def _sweep(self, own: str) -> None:
        """Remove what killed processes left."""
        left = self.root / "tmp"
        shutil.rmtree(left / own, ignore_errors=True)
        for folder in list(left.iterdir()) if left.is_dir() else []:
            with self._lock(folder.name) as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _lock(self, key: str) -> Iterator[int]:
        path = self.root / "locks" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield lock
        finally:
            os.close(lock)

    def _memory(self, key: str) -> Path:
        return self.root / "sources" / f"{key}.json"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
