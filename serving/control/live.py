"""What is true of a yard now, as a scrape shows it.

Owns: putting it together from the parts. Never: I/O, waiting, counting (accounts).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from monitoring.engine_scrape import EngineMetrics
from monitoring.metrics import EngineState
from serving.control.accounts import Live
from serving.control.desk import Parts
from serving.control.snapshot import RegistrySnapshot
from serving.control.status import inflight_of


def live_of(parts: Parts, known: RegistrySnapshot, engine_metrics: Sequence[EngineMetrics]) -> Live:
    """`known` is what the registry says, `engine_metrics` what the engines said of themselves last."""
    table = parts.publisher.table
    inflight = inflight_of(parts.workers.statuses())
    served = [known[name] for name in parts.config.models if name in known]
    return Live(
        engines=[
            EngineState(one.model, one.label, one.id, one.state == "ready", one.restarts, inflight[one.id])
            for one in parts.supervisor.replicas()
        ],
        engine_metrics=engine_metrics,
        versions=[
            (name, label) for name, labels in served_labels(known, parts.config.models).items() for label in labels
        ],
        weights={
            (model.name, label): weight
            for model in served
            if model.route
            for label, weight in model.route.weights.items()
        },
        revisions={model.name: model.route.revision for model in served if model.route},
        paused={model.name for model in served if model.pause},
        generation=table.generation if table else 0,
        drift=parts.drift.state(),
        splits=parts.splits.state(),
        outlook=parts.costs.latest,
    )


def served_labels(known: RegistrySnapshot, served: Iterable[str]) -> dict[str, list[str]]:
    """Labels of every served model's versions that are not retired."""
    return {
        name: [label for label, version in known[name].versions.items() if version.retired_at is None]
        for name in served
        if name in known
    }
