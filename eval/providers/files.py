"""Which files a reference stands for, for whoever loads a model by itself.

Owns: finding them: a path as it is, or a registered version's artifacts on this machine. Never: fetching them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from eval import endpoint
from eval.endpoint import Endpoint
from eval.results import Subject
from registry.artifacts import ArtifactStore
from registry.errors import ArtifactError
from registry.manifest import Manifest
from registry.models import InvalidNameError, VersionRef
from registry.state import StateDir
from registry.terminal import NotThereError, UserError

WEIGHTS: Final = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")
"""Of a folder, what makes a model; the rest does not change what it computes."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on disk."""

    path: Path
    """A GGUF file, or the folder of a checkpoint."""
    chat_template: str = ""
    """What the version says in place of the model's own; "" where it says none."""

    @property
    def provider(self) -> str:
        """Who reads it most exactly as it is served: quantised weights as they are, or safetensors."""
        return "transformers" if self.path.is_dir() else "llama-cpp"


def is_path(ref: str) -> bool:
    """Whether the reference names a file or folder by its looks: no folder here takes the place of a model's name."""
    return ref.startswith(("/", "./", "../", "~")) or ref.endswith(".gguf") or ("/" in ref and Path(ref).exists())


def locate(ref: str, state: StateDir, server: Endpoint) -> tuple[Subject, ModelFiles]:
    """The model that `ref` names and its files. Raises UserError where they are not on this machine."""
    if ref.startswith(("http://", "https://")):
        raise UserError(f"{ref} is a server: in process, name a version (assistant@v1), a GGUF file or a folder")
    if is_path(ref):
        path = Path(ref).expanduser().absolute()
        if not path.exists():
            raise NotThereError(f"there is no {ref}: name a GGUF file, or the folder of a checkpoint")
        return Subject(ref=ref, model=path.name, url=path.as_uri(), digest=digest_of(path)), ModelFiles(path)
    try:
        parsed = VersionRef.parse(ref)
    except InvalidNameError as error:
        raise UserError(f"{ref!r} is neither a path nor a version: {error}") from error
    if not parsed.label:
        raise UserError(f"{ref} goes through the route: in process, pin a version ({ref}@v1)")
    found = endpoint.version(server, parsed) if server.admin_url else None
    if found is None:
        raise NotThereError(
            f"no yard answers that knows {ref}: start it (modelyard up), name it with --admin-url, or give the path of "
            "the model's file"
        )
    manifest = msgspec.convert(found["manifest"], Manifest)
    pinned = f"{parsed.model}@{found['label']}"
    subject = Subject(ref=ref, model=pinned, url=server.url, digest=str(found["digest"]))
    return subject, _files(pinned, manifest, str(found["digest"]), state)


def _files(pinned: str, manifest: Manifest, digest: str, state: StateDir) -> ModelFiles:
    if manifest.adapter:
        raise UserError(f"{pinned} is a model with an adapter, which is not applied in process: compare it as text")
    models = manifest.artifacts
    if not models:
        raise UserError(f"{pinned} has no files of its own ({manifest.engine}): it cannot be loaded in process")
    store = ArtifactStore(state.artifacts)
    folder = state.root / "versions-in-process" / digest.removeprefix("sha256:")[:32]
    missing = [one.filename for one in models if not store.has(one)]
    if missing:
        raise NotThereError(f"{missing[0]} of {pinned} is not in {state.artifacts}: is --state-dir that of its yard?")
    try:
        paths = [store.link(one, folder) for one in models]
    except ArtifactError as error:
        raise NotThereError(f"{error} {error.remedy}") from error
    gguf = [path for path in paths if path.suffix == ".gguf"]
    if gguf:
        return ModelFiles(gguf[0], manifest.chat_template)
    config = next((path for path in paths if path.name == "config.json"), None)
    if config is None:
        raise UserError(f"{pinned} has neither a GGUF file nor a config.json: it cannot be loaded in process")
    return ModelFiles(config.parent, manifest.chat_template)


def digest_of(path: Path) -> str:
    """`sha256:` of the file, or of the names and contents of what makes the model in a folder."""
    if path.is_file():
        return "sha256:" + _hash(path)
    found = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file() and one.suffix in WEIGHTS):
        found.update(f"{file.relative_to(path)}\0{_hash(file)}\n".encode())
    return "sha256:" + found.hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
