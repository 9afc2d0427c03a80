"""Making the parts of a yard: what each is, and what it is told of the others.

Owns: that wiring, over an open registry. Never: starting or stopping a part, and in which order (yard).
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from monitoring.drift_watch import DriftWatch
from monitoring.engine_scrape import EngineScraper
from monitoring.sample_ratio import Splits
from registry.artifacts import ArtifactStore, NoProgress
from registry.state import StateDir
from registry.store import Registry
from serving.config import YardConfig
from serving.control.apply import Applier, engine_environment
from serving.control.books import open_books
from serving.control.changes import Changes
from serving.control.declared import Declared
from serving.control.desk import Parts
from serving.control.engines_seen import EnginesSeen
from serving.control.live import live_of, served_labels
from serving.control.publish import Generations, routing_of
from serving.control.publisher import Publisher
from serving.control.snapshot import Follower
from serving.control.status import metrics_targets
from serving.control.ui import Haltable, Options, Ui
from serving.control.workers import Workers
from serving.engines.supervisor import Supervisor
from serving.router.protocol import Failure


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts that everybody asks, and those that only the yard does."""

    parts: Parts
    registered: Follower
    engines: EnginesSeen
    scraper: EngineScraper


async def assemble(
    stack: AsyncExitStack,
    config: YardConfig,
    base: Path,
    state: StateDir,
    options: Options,
    ui: Ui,
    *,
    rng: random.Random,
    halt: threading.Event,
    on_engine_failure: Callable[[Failure], None],
    on_engines_changed: Callable[[], None],
    admin_url: Callable[[], str],
) -> Assembly:
    """Open the registry and the books, which `stack` closes, and make the rest; nothing runs yet. Raises RegistryError.

    `base` is the configuration file's folder. `halt` breaks long steps off. The functions are called only once the yard
    runs.
    """
    registry = await asyncio.to_thread(Registry.open, state.database)
    stack.callback(registry.close)
    registered = Follower(registry)
    workers = Workers(state.workers, state.requests, on_failure=on_engine_failure, rng=rng, samples=state.spool)
    supervisor = Supervisor(state.engines, on_change=on_engines_changed)
    scraper = EngineScraper(lambda: metrics_targets(supervisor.replicas()))
    store = ArtifactStore(state.artifacts)
    publisher = _publisher(registry, workers, supervisor, state)
    declared = Declared(lambda: parts.config)
    splits = Splits(lambda: routing_of(publisher.table, registered.current))
    books = await open_books(
        stack,
        state,
        base,
        registry,
        workers,
        config=config,
        in_force=lambda: parts.config,
        registered=registered,
        splits=splits,
        live=lambda: live_of(parts, registered.current, scraper.latest()),
    )
    parts = Parts(
        config=config,
        options=options,
        registry=registry,
        applier=Applier(registry, store, progress=lambda: Haltable(ui.progress(), halt)),
        workers=workers,
        supervisor=supervisor,
        publisher=publisher,
        changes=Changes(
            registry,
            store,
            publisher,
            replicas=supervisor.replicas,
            environment=engine_environment(base),
            declared=declared.version,
            declared_url=declared.url,
            required_gate=declared.required_gate,
            progress=lambda: Haltable(NoProgress(), halt),
        ),
        sampler=books.sampler,
        accounts=books.accounts,
        costs=books.costs,
        outlets=books.outlets,
        samples=books.samples,
        drift=DriftWatch(
            state.drift,
            state.samples_database,
            state.runs,
            config=lambda: parts.config.drift,
            versions=lambda: served_labels(registered.current, parts.config.models),
            link=lambda model: f"{admin_url()}/admin/v1/drift?model={model}",
            rng=rng,
        ),
        splits=splits,
    )
    return Assembly(parts, registered, books.engines, scraper)


def _publisher(registry: Registry, workers: Workers, supervisor: Supervisor, state: StateDir) -> Publisher:
    return Publisher(
        registry,
        workers,
        Generations(state.workers / "generation"),
        replicas=supervisor.replicas,
        capabilities=lambda: {
            one.id: one.capabilities for one in supervisor.replicas() if one.capabilities is not None
        },
    )
