"""From what a configuration says of versions to their manifests: files fetched and hashed, templates read.

Owns: the manifest of a configured version. Never: registering it, starting its engine. Blocking: runs in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from registry.artifacts import ArtifactSource, ArtifactStore, FileSource, Progress, RequantizeSource, fetch, parse
from registry.config import ModelConfig, Requantize, VersionConfig
from registry.manifest import Artifact, Lineage, Manifest, definition, digest
from registry.models import VersionRef
from registry.terminal import NotThereError, UserError
from serving.control.plan import Draft
from serving.control.snapshot import RegistrySnapshot

Environment = Callable[[VersionRef, VersionConfig], Mapping[str, str]]
"""The engine packages that a version would run with, by their versions."""


class Resolver:
    """Makes drafts of configured versions.

    `base` is the folder that relative paths start from. With `fetching` off, only what costs no download is fetched:
    local files, and sources that a registered version of the same label has; other drafts stay unresolved.
    """

    def __init__(
        self,
        store: ArtifactStore,
        snapshot: RegistrySnapshot,
        base: Path,
        *,
        progress: Callable[[], Progress],
        environment: Environment,
        fetching: bool = True,
    ) -> None:
        self._store = store
        self._snapshot = snapshot
        self._base = base
        self._progress = progress
        self._environment = environment
        self._fetching = fetching

    def drafts(self, models: Mapping[str, ModelConfig]) -> list[Draft]:
        """A draft of every version, parents before what is derived from them. Raises UserError or RegistryError."""
        found: list[Draft] = []
        for name, model in models.items():
            made: dict[str, Draft] = {}
            for label in parents_first(name, model):
                made[label] = self._draft(VersionRef(name, label), model.versions[label], made)
            found += made.values()
        return found

    def draft(self, ref: VersionRef, version: VersionConfig, siblings: Mapping[str, Draft]) -> Draft:
        """A draft of one version; `siblings` are those that it may be derived from."""
        return self._draft(ref, version, siblings)

    def _draft(self, ref: VersionRef, version: VersionConfig, made: Mapping[str, Draft]) -> Draft:
        artifacts, resolved = self._artifacts(ref, version, made)
        manifest = Manifest(
            engine=version.engine,
            engine_args=dict(version.engine_args),
            artifacts=tuple(artifacts),
            url=version.url,
            litellm_model=version.litellm_model,
            chat_template=self._template(ref, version.chat_template),
            sampling=dict(version.sampling),
            lineage=self._lineage(ref, version, made),
            environment=dict(self._environment(ref, version)),
            licence=version.licence,
        )
        sources = (str(version.artifact),) if version.artifact is not None else ()
        return Draft(ref, manifest, sources, resolved, version.replicas)

    def _artifacts(
        self, ref: VersionRef, version: VersionConfig, made: Mapping[str, Draft]
    ) -> tuple[list[Artifact], bool]:
        if version.artifact is None:
            return [], True
        source = self._source(ref, version, made)
        if source is None or not (self._fetching or isinstance(source, FileSource) or self._is_known(ref, str(source))):
            return [], False
        return fetch(source, self._store, progress=self._progress()), True

    def _source(self, ref: VersionRef, version: VersionConfig, made: Mapping[str, Draft]) -> ArtifactSource | None:
        """Where the version's artifact comes from; None where it is derived from one that is not fetched."""
        if not isinstance(version.artifact, Requantize):
            return parse(str(version.artifact), self._base)
        parent = made.get(version.artifact.requantize)
        if parent is None:
            raise UserError(f"{ref} is derived from {version.artifact.requantize!r}, which {ref.model} does not have")
        if not parent.resolved:
            return None
        files = [artifact for artifact in parent.manifest.artifacts if artifact.filename.endswith(".gguf")]
        if len(files) != 1:
            raise UserError(
                f"{ref} is derived from {parent.ref}, which has {len(files)} GGUF files: requantize takes one with one"
            )
        return RequantizeSource(files[0], version.artifact.type, str(version.artifact))

    def _is_known(self, ref: VersionRef, source: str) -> bool:
        model = self._snapshot.get(ref.model)
        registered = model.versions.get(ref.label) if model else None
        return registered is not None and source in {artifact.source for artifact in registered.manifest.artifacts}

    def _template(self, ref: VersionRef, path: str) -> str:
        if not path:
            return ""
        try:
            return (self._base / path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise NotThereError(f"the chat template of {ref} cannot be read: {error}") from None

    def _lineage(self, ref: VersionRef, version: VersionConfig, made: Mapping[str, Draft]) -> Lineage:
        """Where the version comes from: what the file says, and its parent's digest where it is derived here."""
        given = version.lineage
        parent, parent_digest, derivation = given.parent, "", ""
        if isinstance(version.artifact, Requantize):
            origin = made[version.artifact.requantize]
            parent = parent or str(origin.ref)
            parent_digest = self._digest(origin)
            derivation = f"requantize {version.artifact.type}"
        return Lineage(
            parent=parent,
            parent_digest=parent_digest,
            derivation=derivation,
            git_commit=given.git_commit,
            data_digest=given.data_digest,
            training_run=given.training_run,
            hyperparameters=dict(given.hyperparameters),
        )

    def _digest(self, draft: Draft) -> str:
        """The digest under which the draft is registered, or would be: a parent keeps its name for life."""
        model = self._snapshot.get(draft.ref.model)
        registered = model.versions.get(draft.ref.label) if model else None
        if registered is not None and definition(registered.manifest) == definition(draft.manifest):
            return registered.digest
        return digest(draft.manifest) if draft.resolved else ""


def parents_first(name: str, model: ModelConfig) -> list[str]:
    """The labels in an order in which each comes after the one it is derived from. Raises UserError for a circle."""
    ordered: list[str] = []
    waiting = dict(model.versions)
    while waiting:
        free = [
            label
            for label, version in waiting.items()
            if not isinstance(version.artifact, Requantize) or version.artifact.requantize not in waiting
        ]
        if not free:
            raise UserError(f"versions {', '.join(waiting)} of {name} are derived from each other: break the circle")
        for label in free:
            ordered.append(label)
            del waiting[label]
    return ordered
