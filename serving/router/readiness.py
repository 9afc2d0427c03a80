"""Whether a worker can serve, model by model, and what is missing where it cannot.

Owns: that judgement and its words. Never: I/O, clocks. It knows replicas only: what the control plane needs (its
database, device readings) has no say in whether requests are answered.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from serving.router.snapshot import ModelState, Snapshot

State = Literal["ready", "degraded", "failed"]
ENOUGH: Final = frozenset({"ready", "degraded"})
"""States in which requests are answered, all of them or some."""


def of_model(model: ModelState) -> tuple[State, list[str]]:
    """The state of a model's route and what is missing, one sentence each.

    ready: every request finds a replica. degraded: as ready, but for replicas that are away, or some requests find
    none. failed: none does.
    """
    labels = dict.fromkeys([arm.label for arm in model.config.arms] + [one.label for one in model.fallback])
    missing: list[str] = []
    able = False
    for label in labels:
        version = model.versions.get(label)
        name = f"{model.config.name}@{label}"
        if version is None:
            missing.append(f"{name} is in the route and has no engine")
            continue
        able = able or bool(version.backends)
        wanted = len(version.config.replicas)
        if not wanted:
            missing.append(f"{name} has no engine")
        elif len(version.backends) < wanted:
            missing.append(f"{len(version.backends)} of {wanted} engines of {name} are ready")
    if not labels:
        missing.append(f"{model.config.name} has no route: only its versions can be named")
    if not able:
        return "failed", missing
    return ("ready" if model.answers and not missing else "degraded"), missing


def of_worker(snapshot: Snapshot, *, leaving: bool) -> tuple[int, bytes]:
    """Status and body of `/health/ready`: 503 only where nothing can be served."""
    models = {name: of_model(model) for name, model in snapshot.models.items()}
    states = {state for state, _ in models.values()}
    status: str
    if leaving:
        status = "draining"
    elif not snapshot.generation or (states and not states & ENOUGH):
        status = "failed"
    else:
        status = "ready" if states <= {"ready"} else "degraded"
    body = {
        "status": status,
        "generation": snapshot.generation,
        "not_ready": snapshot.not_answering(),
        "models": {name: _view(*found) for name, found in models.items()},
    }
    return (200 if status in ENOUGH else 503), msgspec.json.encode(body)


def of_name(snapshot: Snapshot, name: str, *, leaving: bool) -> tuple[int, bytes] | None:
    """The same for one name that clients may use (`assistant`, `assistant@v2`); None where there is no such name."""
    target = snapshot.targets.get(name)
    if target is None:
        return None
    state: State
    if target.pinned is None:
        state, missing = of_model(target.model)
    else:
        ready, wanted = len(target.pinned.backends), len(target.pinned.config.replicas)
        state = "failed" if not ready else "ready" if ready == wanted else "degraded"
        missing = [] if ready and ready == wanted else [f"{ready} of {wanted} engines of {name} are ready"]
    body = {**_view(state, missing), "model": name, "generation": snapshot.generation}
    if leaving:
        body["status"] = "draining"
    return (200 if body["status"] in ENOUGH else 503), msgspec.json.encode(body)


def _view(state: State, missing: list[str]) -> dict[str, Any]:
    return {"status": state, "missing": missing}
