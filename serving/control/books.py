"""Opening a yard's books: everything that counts what requests took and what devices were held for.

Owns: which books there are, in which order they open and close, and what each is told of the others. Never: counting
(ingest, accounts, samples), prices, taking a step (yard).
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from monitoring.gpu import open_reader
from monitoring.host_metrics import read_disks
from monitoring.live_drift_languages import languages
from monitoring.sample_ratio import Splits
from monitoring.sampler import Sampler
from monitoring.settle import HELD
from registry.artifacts import ArtifactStore
from registry.ledger import Ledger
from registry.sample_store import SampleStore
from registry.state import StateDir
from registry.store import Registry
from registry.usage import RequestRecord
from serving.config import YardConfig
from serving.control.accounts import Accounts, Live
from serving.control.apply import prices_of, slos_of
from serving.control.costs import Costs, Settings
from serving.control.engines_seen import EnginesSeen
from serving.control.ingest import Ingest
from serving.control.outlets import Outlets
from serving.control.samples import Samples
from serving.control.snapshot import Follower
from serving.control.storage import ArtifactBytes
from serving.control.workers import Workers

log = logging.getLogger("modelyard.books")


@dataclass(frozen=True, slots=True)
class Books:
    """One yard's, open; the stack that they were opened on closes them."""

    engines: EnginesSeen
    sampler: Sampler
    outlets: Outlets
    samples: Samples
    accounts: Accounts
    costs: Costs


async def open_books(
    stack: AsyncExitStack,
    state: StateDir,
    base: Path,
    registry: Registry,
    workers: Workers,
    *,
    config: YardConfig,
    in_force: Callable[[], YardConfig],
    registered: Follower,
    splits: Splits,
    live: Callable[[], Live],
) -> Books:
    """Open them; nothing is counted yet. Raises RegistryError.

    `config` is what the yard starts with, and `in_force`, like `live`, is asked only once it runs. `base` is the
    configuration file's folder. `splits` count each committed step too.
    """
    ledger = Ledger(registry.engine)
    engines, sampler = await _open_sampler(ledger)
    sampler.watch(config.monitoring.sample_hz)
    outlets = Outlets(state.root, version=own_version())
    stack.push_async_callback(asyncio.to_thread, outlets.close)
    samples = await _open_samples(stack, state, config, in_force, registered)
    stored = ArtifactBytes(
        ArtifactStore(state.artifacts),
        lambda: (one for model in registered.current.values() for one in model.versions.values()),
    )

    def collect(records: Sequence[RequestRecord]) -> None:
        accounts.collect(records)
        outlets.take(records)
        samples.collect(records)
        splits.count(records)

    ingest = await asyncio.to_thread(
        lambda: Ingest(
            state.requests,
            ledger,
            device_of=engines.device_of,
            on_records=collect,
            meter=sampler,
            slos=lambda: slos_of(in_force()),
            stored=stored,
        )
    )
    accounts = Accounts(
        ledger,
        ingest,
        sampler,
        workers,
        prices=lambda: prices_of(in_force()),
        live=live,
        token_prices=lambda: engines.token_prices,
        slos=lambda: slos_of(in_force()),
        stored=stored,
        sample_counts=samples.counts,
        disks=lambda: read_disks({"state": state.root}),
        version=own_version(),
    )
    costs = Costs(
        accounts,
        ledger,
        prices=lambda: prices_of(in_force()),
        settings=lambda: Settings.of(in_force(), base),
        key_names=lambda: {key.id: key.terms.name for key in registry.api_keys()},
    )
    return Books(engines, sampler, outlets, samples, accounts, costs)


async def _open_sampler(ledger: Ledger) -> tuple[EnginesSeen, Sampler]:
    reader, why = await asyncio.to_thread(open_reader)
    log.info("devices: %s%s", reader.kind, f" ({why})" if why else "")
    engines = EnginesSeen((await asyncio.to_thread(reader.read, time.time()))[0].device)
    resume_at = await asyncio.to_thread(ledger.cursor, HELD)
    return engines, Sampler(reader, lambda: engines.pids, resume_at=resume_at)


async def _open_samples(
    stack: AsyncExitStack,
    state: StateDir,
    config: YardConfig,
    in_force: Callable[[], YardConfig],
    registered: Follower,
) -> Samples:
    store = await asyncio.to_thread(SampleStore.open, state.samples_database)
    stack.callback(store.close)

    def digest_of(model: str, label: str) -> str:
        """A version's digest; "" where it is not registered."""
        found = registered.current.get(model)
        version = found.versions.get(label) if found is not None else None
        return version.digest if version is not None else ""

    return Samples(
        state.spool,
        store,
        models=lambda: {name: model.samples for name, model in in_force().models.items()},
        digest_of=digest_of,
        requests=state.requests,
        language=await asyncio.to_thread(languages) if config.drift.languages else None,
    )


def own_version() -> str:
    """The version of Modelyard that runs; `unknown` where it is not installed."""
    try:
        return importlib.metadata.version("modelyard")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
