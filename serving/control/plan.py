"""What a configuration would change, and why: the difference between the file, the registry and what runs.

Owns: the plan as a value (pure). Never: fetching, registering, starting; no I/O, clocks or randomness.

Rules:
1. A label is taken once. Another definition under it is refused with both digests; the remedy is a new label.
2. Traffic state belongs to the registry: a route or an alias that is there already is kept, whatever the file says.
   Its rules belong to the file: how keys are found (`sticky`), who takes over (`fallback`), which requests go by arms
   of their own (`segments`) and who gets copies (`shadow`).
3. A version that left the file stops if it has no traffic, and is refused to go otherwise. A model that left the file
   is served no longer; the registry keeps all of it.
4. An engine that runs what is wanted is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from registry.config import ModelConfig
from registry.manifest import Manifest, definition, digest
from registry.models import Route, Version, VersionRef
from serving.control.snapshot import ModelSnapshot, RegistrySnapshot

StepKind = Literal[
    "fetch",
    "register",
    "keep-version",
    "set-route",
    "set-rules",
    "keep-route",
    "set-alias",
    "keep-alias",
    "start",
    "restart",
    "keep",
    "stop",
    "drop-model",
]
_KEEPS: frozenset[StepKind] = frozenset({"keep-version", "keep-route", "keep-alias", "keep"})


@dataclass(frozen=True, slots=True)
class Draft:
    """A version as the file declares it."""

    ref: VersionRef
    manifest: Manifest
    """Without artifacts where they were not fetched yet."""
    sources: tuple[str, ...]
    """Where its artifacts come from, as written."""
    resolved: bool
    """Whether the artifacts in the manifest are the real ones."""
    replicas: int


class RunningEngine(Protocol):
    """What a plan needs to know of an engine that runs."""

    @property
    def id(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, or to leave as it is, and why."""

    kind: StepKind
    subject: str
    """`assistant@v1`, `assistant@v1/0`, `assistant`, `assistant alias champion`."""
    reason: str

    @property
    def changes(self) -> bool:
        return self.kind not in _KEEPS


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something in the file that cannot be done. `message` is one sentence with the remedy."""

    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Every step in the order in which it is done. Nothing is done while there are refusals."""

    steps: tuple[Step, ...]
    refusals: tuple[Refusal, ...] = ()

    @property
    def changes(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.changes)


def plan(
    models: Mapping[str, ModelConfig],
    drafts: Sequence[Draft],
    snapshot: RegistrySnapshot,
    running: Iterable[RunningEngine],
) -> Plan:
    """What it takes to get from `snapshot` and `running` to the file's `models`, whose versions are `drafts`."""
    steps: list[Step] = []
    refusals: list[Refusal] = []
    for draft in drafts:
        _plan_version(draft, snapshot, steps, refusals)
    for name, model in models.items():
        known = snapshot.get(name, ModelSnapshot(name))
        _plan_route(known, model, steps)
        _plan_aliases(known, model, steps)
    _plan_engines(models, drafts, snapshot, list(running), steps)
    _plan_removals(models, snapshot, steps, refusals)
    return Plan(tuple(steps), tuple(refusals))


def same_definition(draft: Draft, registered: Version) -> bool:
    """Whether the label's registered definition is the draft's; artifacts not fetched yet are compared by source."""
    ours, theirs = definition(draft.manifest), definition(registered.manifest)
    if draft.resolved:
        return ours == theirs
    sources = {artifact.source for artifact in theirs.artifacts}
    return sources == set(draft.sources) and ours == msgspec.structs.replace(theirs, artifacts=())


def conflict_message(draft: Draft, registered: Version) -> str:
    """Why a label cannot be registered again with other content: both digests, and what to do."""
    ours = digest(draft.manifest) if draft.resolved else "another digest (its artifacts are not fetched yet)"
    return (
        f"{draft.ref} is registered as {registered.digest}, but the configuration makes it {ours}: a label never "
        "changes its content, so give the changed version a new label"
    )


def _plan_version(draft: Draft, snapshot: RegistrySnapshot, steps: list[Step], refusals: list[Refusal]) -> None:
    subject = str(draft.ref)
    model = snapshot.get(draft.ref.model)
    registered = model.versions.get(draft.ref.label) if model else None
    if registered is None:
        if not draft.resolved:
            steps.append(Step("fetch", subject, f"{', '.join(draft.sources)} is not in the artifact store yet"))
        steps.append(Step("register", subject, "the registry does not know it yet"))
    elif registered.retired_at is not None:
        refusals.append(
            Refusal(subject, f"{subject} is retired: take it out of the configuration, or give it a new label")
        )
    elif same_definition(draft, registered):
        reason = f"registered as {registered.digest}"
        if draft.manifest.environment and draft.manifest.environment != registered.manifest.environment:
            there = _packages(registered.manifest.environment)
            reason += f" with {there or 'no engine package noted'}; now {_packages(draft.manifest.environment)}"
        steps.append(Step("keep-version", subject, reason))
    else:
        refusals.append(Refusal(subject, conflict_message(draft, registered)))


def _packages(environment: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(environment.items()))


def weights_text(weights: Mapping[str, int]) -> str:
    """`v1=9000 v2=1000`"""
    return " ".join(f"{label}={weight}" for label, weight in weights.items())


def _plan_route(known: ModelSnapshot, model: ModelConfig, steps: list[Step]) -> None:
    wanted, route = model.first_route(), known.route
    if route is None:
        steps.append(Step("set-route", known.name, f"{weights_text(wanted)}: the model has no route yet"))
        return
    if changed := rules_differ(model, route):
        verb = "differs" if len(changed) == 1 else "differ"
        steps.append(Step("set-rules", known.name, f"{', '.join(changed)} {verb} from the route in force"))
    reason = f"{weights_text(route.weights)} (revision {route.revision})"
    if {k: v for k, v in wanted.items() if v} != {k: v for k, v in route.weights.items() if v}:
        reason += f"; the file's {weights_text(wanted)} is for a new model only: use `modelyard route set`"
    steps.append(Step("keep-route", known.name, reason))


def rules_differ(model: ModelConfig, route: Route) -> list[str]:
    """The rules of the route in force that are not what the file says."""
    segments = [(name, one.when.conditions(), list(one.route.items())) for name, one in model.segments.items()]
    pairs: tuple[tuple[str, object, object], ...] = (
        ("sticky", tuple(model.sticky), route.sticky),
        ("fallback", tuple(model.fallback), route.fallback),
        ("segments", segments, [(one.name, one.when, list(one.weights.items())) for one in route.segments]),
        ("shadow", model.shadow_arms(), route.shadows),
    )
    return [name for name, wanted, there in pairs if wanted != there]


def _plan_aliases(known: ModelSnapshot, model: ModelConfig, steps: list[Step]) -> None:
    for name, label in model.aliases.items():
        subject = f"{known.name} alias {name}"
        current = known.aliases.get(name)
        if current is None:
            steps.append(Step("set-alias", subject, f"{label}: the alias is new"))
        elif current == label:
            steps.append(Step("keep-alias", subject, current))
        else:
            steps.append(Step("keep-alias", subject, f"{current}; `modelyard alias set` moves it to {label}"))


def _plan_engines(
    models: Mapping[str, ModelConfig],
    drafts: Sequence[Draft],
    snapshot: RegistrySnapshot,
    running: list[RunningEngine],
    steps: list[Step],
) -> None:
    by_id = {engine.id: engine for engine in running}
    wanted: set[str] = set()
    for draft in drafts:
        model = snapshot.get(draft.ref.model)
        registered = model.versions.get(draft.ref.label) if model else None
        for index in range(draft.replicas):
            identity = f"{draft.ref}/{index}"
            wanted.add(identity)
            there = by_id.get(identity)
            if there is None:
                elsewhere = draft.manifest.engine == "external"
                verb = "its engine is elsewhere: connect to it" if elsewhere else "it does not run yet"
                steps.append(Step("start", identity, verb))
            elif registered is not None and there.digest != registered.digest:
                steps.append(Step("restart", identity, f"it runs {there.digest}"))
            else:
                steps.append(Step("keep", identity, "it runs what is wanted"))
    for engine in running:
        if engine.id not in wanted:
            declared = engine.model in models and engine.label in models[engine.model].versions
            reason = "fewer replicas are wanted" if declared else "its version left the configuration"
            steps.append(Step("stop", engine.id, reason))


def _plan_removals(
    models: Mapping[str, ModelConfig], snapshot: RegistrySnapshot, steps: list[Step], refusals: list[Refusal]
) -> None:
    for name, known in snapshot.items():
        if name not in models:
            if known.route is not None:
                steps.append(Step("drop-model", name, "it left the configuration; the registry keeps its versions"))
            continue
        replaced = tuple(models[name].fallback)
        for label in known.versions:
            if label in models[name].versions:
                continue
            reasons = [r for r in known.traffic_of(label) if r != "it is a fallback" or label in replaced]
            if reasons:
                refusals.append(
                    Refusal(
                        f"{name}@{label}",
                        f"{name}@{label} left the configuration, but {' and '.join(reasons)}: put it back, move that "
                        "to another version (`modelyard route set`, `modelyard alias set`), then take it out",
                    )
                )
