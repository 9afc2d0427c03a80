"""Applying a configuration: from the file to what is registered and what engines are wanted.

Owns: the order in which a plan is carried out, and what engines are started with. Never: deciding what changes (plan),
processes (the supervisor). Everything here blocks and runs in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypedDict

from monitoring.cost import Prices
from monitoring.usage import Slo
from registry.artifacts import ArtifactStore, Progress
from registry.config import ModelConfig, SamplesConfig, VersionConfig
from registry.manifest import Manifest, digest
from registry.models import BUCKETS, Route, RouteSegment, ShadowArm, VersionRef
from registry.store import Registry
from registry.terminal import NotThereError, UserError
from serving.config import ServerConfig, YardConfig
from serving.control import snapshot
from serving.control.plan import Draft, Plan, RunningEngine, plan, rules_differ
from serving.control.publish import ModelTraits
from serving.control.resolve import Resolver
from serving.engines.base import EngineVersion, kind
from serving.engines.hosted_wire import passage
from serving.router.split import allocate
from serving.router.table import Admission, Cache, Limits, Retry, Samples, Timeouts, Tracing


class RefusedError(UserError):
    """A configuration contradicts what is registered; nothing of it was applied."""


def engine_environment(base: Path) -> Callable[[VersionRef, VersionConfig], Mapping[str, str]]:
    """What an engine would compute with: its packages and their versions."""

    def environment(ref: VersionRef, version: VersionConfig) -> Mapping[str, str]:
        manifest = Manifest(
            engine=version.engine,
            engine_args=dict(version.engine_args),
            url=version.url,
            litellm_model=version.litellm_model,
        )
        python = interpreter(version, base)
        return kind(version.engine).environment(EngineVersion(ref=ref, digest="", manifest=manifest, python=python))

    return environment


def interpreter(version: VersionConfig, base: Path) -> str:
    """The absolute path of the version's `python:`, which may be relative to the configuration's folder."""
    path = Path(version.python).expanduser()
    return str((base / path).absolute()) if "/" in version.python else version.python


class Applier:
    """Plans a configuration and carries the plan out, up to the engines."""

    def __init__(self, registry: Registry, store: ArtifactStore, *, progress: Callable[[], Progress]) -> None:
        self._registry = registry
        self._store = store
        self._progress = progress

    def prepare(
        self, config: YardConfig, base: Path, running: Iterable[RunningEngine], *, fetching: bool
    ) -> tuple[Plan, list[Draft]]:
        """What the configuration would change. With `fetching`, artifacts that are missing are fetched."""
        known = snapshot.take(self._registry)
        resolver = Resolver(
            self._store,
            known,
            base,
            progress=self._progress,
            environment=engine_environment(base),
            fetching=fetching,
        )
        drafts = resolver.drafts(config.models)
        return plan(config.models, drafts, known, running), drafts

    def register(
        self, made: Plan, drafts: Sequence[Draft], config: YardConfig, base: Path, *, actor: str, at: float
    ) -> None:
        """Register what is new, and give new models their first route and aliases. Raises RefusedError or
        RegistryError; what was registered until then stays, and is found there by the next attempt."""
        if made.refusals:
            raise RefusedError("; ".join(refusal.message for refusal in made.refusals))
        self._check_new(made, drafts, config, base)
        for draft in drafts:
            self._registry.register(draft.ref.model, draft.ref.label, draft.manifest, author=actor, at=at)
        for name, model in config.models.items():
            self._set_route(name, model, actor, at)
            aliases = {alias.name for alias in self._registry.aliases(name)}
            for alias, label in model.aliases.items():
                if alias not in aliases:
                    self._registry.set_alias(name, alias, label, actor=actor, at=at)

    def _check_new(self, made: Plan, drafts: Sequence[Draft], config: YardConfig, base: Path) -> None:
        """Have the engines look at versions that nobody has started yet: what they refuse is not registered."""
        new = {step.subject for step in made.steps if step.kind == "register"}
        for draft in drafts:
            if str(draft.ref) in new:
                version = config.models[draft.ref.model].versions[draft.ref.label]
                files = self._files(draft.manifest, digest(draft.manifest), str(draft.ref), verify=False)
                wanted = EngineVersion(
                    ref=draft.ref,
                    digest=digest(draft.manifest),
                    manifest=draft.manifest,
                    files=files,
                    python=interpreter(version, base),
                    authorization=authorization(draft.ref, version),
                    key_variable=version.api_key_env,
                )
                kind(draft.manifest.engine).check(wanted)

    def _set_route(self, name: str, model: ModelConfig, actor: str, at: float) -> None:
        """A first route where there is none; otherwise only its rules: what belongs to the file."""
        route = self._registry.route(name)
        rules = rules_of(model, route)
        if route is None:
            weights = model.first_route()
            self._registry.set_route(name, weights, allocate(weights), **rules, actor=actor, at=at)
        elif rules_differ(model, route):
            self._registry.set_route(
                name, dict(route.weights), route.allocation, **rules, actor=actor, at=at, action="route.rules"
            )

    def wanted(self, config: YardConfig, base: Path, *, running: Mapping[str, str]) -> list[EngineVersion]:
        """Every replica that the configuration wants. The artifacts of those that do not run yet (`running`: replica
        id -> digest) are verified. Raises DigestMismatchError, ArtifactError, NotThereError, or UserError."""
        found: list[EngineVersion] = []
        for name, model in config.models.items():
            for label, version in model.versions.items():
                registered = self._registry.version(name, label)
                ids = [f"{registered.ref}/{index}" for index in range(version.replicas)]
                fresh = any(running.get(one) != registered.digest for one in ids)
                files = self._files(registered.manifest, registered.digest, str(registered.ref), verify=fresh)
                found += [
                    EngineVersion(
                        ref=registered.ref,
                        digest=registered.digest,
                        manifest=registered.manifest,
                        files=files,
                        replica=index,
                        python=interpreter(version, base),
                        authorization=authorization(registered.ref, version),
                        key_variable=version.api_key_env,
                    )
                    for index in range(version.replicas)
                ]
        return found

    def _files(self, manifest: Manifest, name: str, shown: str, *, verify: bool) -> tuple[Path, ...]:
        """The files of the version with the digest `name`, under their own names, in the manifest's order."""
        folder = self._store.root / "versions" / name.removeprefix("sha256:")[:32]
        artifacts = manifest.artifacts
        if verify and artifacts:
            progress = self._progress()
            progress.start(f"Verifying {shown}", sum(artifact.size_bytes for artifact in artifacts))
            try:
                for artifact in artifacts:
                    self._store.verify(artifact)
                    progress.advance(artifact.size_bytes)
            finally:
                progress.done()
        return tuple(self._store.link(artifact, folder) for artifact in artifacts)


class Rules(TypedDict):
    """What of a route belongs to the file, in the words of `Registry.set_route`."""

    sticky: tuple[str, ...]
    fallback: tuple[str, ...]
    segments: tuple[RouteSegment, ...]
    shadows: tuple[ShadowArm, ...]


def rules_of(model: ModelConfig, route: Route | None) -> Rules:
    """The file's rules. A segment that the route has already moves as few of its buckets as can be."""
    known = {segment.name: segment.allocation for segment in route.segments} if route else {}
    return Rules(
        sticky=tuple(model.sticky),
        fallback=tuple(model.fallback),
        segments=tuple(
            RouteSegment(name, one.when.conditions(), dict(one.route), allocate(one.route, known.get(name, ())))
            for name, one in model.segments.items()
        ),
        shadows=model.shadow_arms(),
    )


def authorization(ref: VersionRef, version: VersionConfig) -> str:
    """The Authorization header of an engine whose key stands in an environment variable. Raises NotThereError.

    White space around the key is no part of it. Whatever else cannot stand in a header is refused here: whoever would
    have to send it would show the key in an error.
    """
    if not version.api_key_env:
        return ""
    key = os.environ.get(version.api_key_env, "").strip()
    if not key:
        raise NotThereError(
            f"{ref} wants its key in the environment variable {version.api_key_env}, which is not set: export it"
        )
    if not (key.isascii() and key.isprintable()):
        raise NotThereError(
            f"the key of {ref} in the environment variable {version.api_key_env} has characters that cannot be sent: "
            "export it without them"
        )
    return f"Bearer {key}"


def router_authorization(ref: VersionRef, version: VersionConfig) -> str:
    """What the router shows an engine: its key; of a hosted one its bridge has the key, and nobody else. Raises
    NotThereError."""
    header = authorization(ref, version)
    return passage(header.removeprefix("Bearer ")) if version.engine == "hosted" else header


def prices_of(config: YardConfig) -> Prices:
    """What the devices cost."""
    return Prices(**{one.name: getattr(config.prices, one.name) for one in fields(Prices)})


def slos_of(config: YardConfig) -> dict[str, Slo]:
    """The service levels of the models that have one."""
    return {name: Slo(**model.slo.model_dump()) for name, model in config.models.items() if model.slo is not None}


def traits_of(config: YardConfig) -> dict[str, ModelTraits]:
    """What the table takes from the configuration, per model. Raises NotThereError for a missing key."""
    return {
        name: ModelTraits(
            timeouts=Timeouts(**model.timeouts.model_dump()),
            authorizations={
                label: router_authorization(VersionRef(name, label), version)
                for label, version in model.versions.items()
            },
            retry=Retry(**model.retry.model_dump()),
            admission=Admission(**model.admission.model_dump()),
            cache=Cache(**model.cache.model_dump()),
            samples=_samples(model.samples),
            larger_context=model.larger_context,
            equivalent=model.equivalent,
            affinity=model.affinity,
        )
        for name, model in config.models.items()
    }


def _samples(wanted: SamplesConfig) -> Samples:
    """What a worker needs to know of it: a rate above 0 is one basis point at least."""
    if not wanted.rate or wanted.store == "none":
        return Samples()
    return Samples(share=max(1, round(wanted.rate * BUCKETS)), bytes_max=wanted.bytes_max)


def tracing_of(server: ServerConfig) -> Tracing | None:
    """Which requests are traced, from the configuration's `server:`."""
    return Tracing(sample=server.tracing.sample) if server.tracing is not None else None


def limits_of(server: ServerConfig) -> Limits:
    """What a client may send, from the configuration's `server:`."""
    return Limits(
        body_bytes_max=server.body_bytes_max,
        head_timeout_s=server.head_timeout_s,
        body_timeout_s=server.body_timeout_s,
        keepalive_s=server.keepalive_s,
        unread_timeout_s=server.unread_timeout_s,
        connections_max=server.connections_max,
    )
