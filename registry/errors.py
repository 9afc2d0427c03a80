"""What can go wrong in the registry, as exceptions whose text is one sentence for the person who has to act.

Owns: the exception tree. Never: exit codes, HTTP statuses (those belong to serving.errors).

    RegistryError
    ├── NotFoundError          no such model, version, alias or revision
    ├── ConflictError          a label, name or segment that is taken or in use
    ├── DatabaseError          the database cannot be opened or written, or is from a newer version
    └── ArtifactError          an artifact cannot be fetched, read or written
        └── DigestMismatchError    its bytes are not those that were registered
"""

from __future__ import annotations

from pathlib import Path


class RegistryError(Exception):
    """Base of the tree. `str(error)` is one sentence naming the cause, with the remedy where there is one."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(f"{message}: {remedy}" if remedy else message)
        self.remedy = remedy


class NotFoundError(RegistryError):
    """Something was asked for by a name that nothing has."""


class ConflictError(RegistryError):
    """The change contradicts what is registered already."""


class DatabaseError(RegistryError):
    """The database cannot be used."""


class ArtifactError(RegistryError):
    """An artifact or its source cannot be used."""


class DigestMismatchError(ArtifactError):
    """A file whose SHA-256 is not the registered one. Both hashes are hexadecimal and named in full."""

    def __init__(self, expected: str, actual: str, path: Path) -> None:
        super().__init__(
            f"{path} has SHA-256 {actual}, but {expected} was registered",
            remedy="the file was changed or damaged; delete it and fetch it again, or register it as a new version",
        )
        self.expected = expected
        self.actual = actual
        self.path = path
