"""The yard: everything of the control plane put together, from start to stop.

Owns: the order in which parts start and stop, signals, the state directory's lock and `yard.json`. Never: what any part
does. Killed at any moment it costs no request; started again it adopts the engines and workers that still run.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import importlib.metadata
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from monitoring.console import mount
from monitoring.cost import TokenPrice
from monitoring.drift_watch import DriftWatch
from monitoring.engine_scrape import EngineScraper
from monitoring.gpu import open_reader
from monitoring.host_metrics import read_disks
from monitoring.live_drift_languages import languages
from monitoring.metrics import EngineState as EngineGauge
from monitoring.sample_ratio import Routing, Splits
from monitoring.sampler import Sampler
from monitoring.settle import HELD
from registry.artifacts import ArtifactStore, NoProgress
from registry.errors import NotFoundError, RegistryError
from registry.ledger import Ledger
from registry.sample_store import SampleStore
from registry.state import StateDir, YardInfo
from registry.store import Registry
from registry.terminal import NotThereError, UserError
from registry.usage import RequestRecord
from serving.config import YardConfig, load
from serving.control import snapshot
from serving.control.access import Access, admin_token, check_public, tls_files
from serving.control.accounts import Accounts, Live
from serving.control.admin_api import create_app
from serving.control.admin_server import AdminServer, bind
from serving.control.apply import Applier, engine_environment, limits_of, prices_of, slos_of, tracing_of, traits_of
from serving.control.changes import Changes
from serving.control.console import YardConsole
from serving.control.console_access import ConsoleAccess
from serving.control.costs import Costs, Settings
from serving.control.desk import Desk, Parts
from serving.control.ingest import Ingest
from serving.control.lock import YardLock
from serving.control.outlets import Outlets
from serving.control.publish import Generations, routing_of
from serving.control.publisher import Publisher
from serving.control.samples import Samples
from serving.control.status import inflight_of, metrics_targets, tls_problems
from serving.control.storage import ArtifactBytes
from serving.control.ui import EngineState, Haltable, Options, Ready, Ui
from serving.control.worker_process import check_port_free
from serving.control.workers import Workers
from serving.engines.base import Capabilities
from serving.engines.replica import ReplicaStatus
from serving.engines.supervisor import Supervisor
from serving.router.protocol import Failure
from serving.router.table import Key

log = logging.getLogger("modelyard.yard")

LOG_BYTES_MAX = 4 * 1024 * 1024
PULSE_S = 1.0
WAIT_STEP_S = 0.1
EXTERNAL_WAIT_S = 5.0
ADOPTION_S = 11.0
"""Longer than an engine that was found running may take to answer."""
ENGINE_STOP_S = 10.0
FORCED_STOP_S = 1.0
INTERRUPTED_EXIT = 130
SETTLED_STATES = ("ready", "failed")


class EngineStartError(NotThereError):
    """No engine came up; says why, with its last log lines."""


class Yard:
    """One control plane on one state directory. `start`, then `stop`; both leave nothing half done."""

    def __init__(
        self, config: YardConfig, path: Path, state: StateDir, options: Options, ui: Ui, *, rng: random.Random
    ) -> None:
        self._config = with_options(config, options)
        self.state = state
        self._path = path
        self._options = options
        self._ui = ui
        self._rng = rng
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._external: frozenset[str] = frozenset()
        self._token_prices: dict[str, TokenPrice] = {}
        self._pids: Mapping[int, str] = {}
        self._device = "cpu"
        self._devices: dict[str, str] = {}
        self._adopted = 0
        self._splits = Splits(self._routing)
        self._forced = False
        self._tls_problem = ""
        self._halt = threading.Event()
        self._is_up = asyncio.Event()
        self._info = YardInfo(os.getpid(), "", "", str(path.absolute()), time.time())

    # Start

    async def start(self) -> None:
        """Bring everything up and wait for the engines. Raises UserError or RegistryError; nothing is left then."""
        try:
            await self._open()
            await self._bring_up()
            await self._wait_for_engines()
            self._is_up.set()
        except BaseException:
            await self._stop_everything(0.0)
            raise

    async def _open(self) -> None:
        """Lock, database, books: nothing runs yet."""
        self.state.create()
        self._stack.callback(YardLock.take(self.state.lock).release)
        self._log_to_file()
        registry = await asyncio.to_thread(Registry.open, self.state.database)
        self._stack.callback(registry.close)
        self._registered = snapshot.Follower(registry)
        workers = Workers(
            self.state.workers,
            self.state.requests,
            on_failure=self._engine_failed,
            rng=self._rng,
            samples=self.state.spool,
        )
        supervisor = Supervisor(self.state.engines, on_change=self._engines_changed)
        self._scraper = EngineScraper(lambda: metrics_targets(supervisor.replicas()))
        store = ArtifactStore(self.state.artifacts)
        publisher = Publisher(
            registry,
            workers,
            Generations(self.state.workers / "generation"),
            replicas=supervisor.replicas,
            capabilities=self._capabilities,
        )
        changes = Changes(
            registry,
            store,
            publisher,
            replicas=supervisor.replicas,
            environment=engine_environment(self._path.parent),
            declared=self._declares,
            declared_url=self._declares_url,
            required_gate=self._required_gate,
            progress=lambda: Haltable(NoProgress(), self._halt),
        )
        sampler, accounts = await self._open_books(Ledger(registry.engine), workers)
        applier = Applier(registry, store, progress=lambda: Haltable(self._ui.progress(), self._halt))
        self.parts = Parts(
            config=self._config,
            options=self._options,
            registry=registry,
            applier=applier,
            workers=workers,
            supervisor=supervisor,
            publisher=publisher,
            changes=changes,
            sampler=sampler,
            accounts=accounts,
            costs=self._costs(accounts, Ledger(registry.engine)),
            outlets=self._outlets,
            samples=self._samples,
            drift=self._drift_watch(),
            splits=self._splits,
        )
        self.desk = Desk(
            self.parts, lambda: self._info, requests=self.state.requests, certificate_changed=self._shows_certificate
        )

    def _drift_watch(self) -> DriftWatch:
        return DriftWatch(
            self.state.drift,
            self.state.samples_database,
            self.state.runs,
            config=lambda: self.parts.config.drift,
            versions=self._served_labels,
            link=lambda model: f"{self._info.admin_url}/admin/v1/drift?model={model}",
            rng=self._rng,
        )

    def _served_labels(self) -> dict[str, list[str]]:
        """Labels of every served model's versions that are not retired."""
        known = self._registered.current
        return {
            name: [label for label, version in known[name].versions.items() if version.retired_at is None]
            for name in self.parts.config.models
            if name in known
        }

    async def _open_books(self, ledger: Ledger, workers: Workers) -> tuple[Sampler, Accounts]:
        reader, why = await asyncio.to_thread(open_reader)
        log.info("devices: %s%s", reader.kind, f" ({why})" if why else "")
        self._device = (await asyncio.to_thread(reader.read, time.time()))[0].device
        sampler = Sampler(reader, lambda: self._pids, resume_at=await asyncio.to_thread(ledger.cursor, HELD))
        sampler.watch(self._config.monitoring.sample_hz)

        self._outlets = Outlets(self.state.root, version=_own_version())
        self._stack.push_async_callback(asyncio.to_thread, self._outlets.close)

        store = await asyncio.to_thread(SampleStore.open, self.state.samples_database)
        self._stack.callback(store.close)
        self._samples = Samples(
            self.state.spool,
            store,
            models=lambda: {name: model.samples for name, model in self.parts.config.models.items()},
            digest_of=self._digest_of,
            requests=self.state.requests,
            language=await asyncio.to_thread(languages) if self._config.drift.languages else None,
        )

        def collect(records: Sequence[RequestRecord]) -> None:
            accounts.collect(records)
            self._outlets.take(records)
            self._samples.collect(records)
            self._splits.count(records)

        stored = ArtifactBytes(
            ArtifactStore(self.state.artifacts),
            lambda: (one for model in self._registered.current.values() for one in model.versions.values()),
        )
        ingest = await asyncio.to_thread(
            lambda: Ingest(
                self.state.requests,
                ledger,
                device_of=self._device_of,
                on_records=collect,
                meter=sampler,
                slos=lambda: slos_of(self.parts.config),
                stored=stored,
            )
        )
        accounts = Accounts(
            ledger,
            ingest,
            sampler,
            workers,
            prices=lambda: prices_of(self.parts.config),
            live=self._live,
            token_prices=lambda: self._token_prices,
            slos=lambda: slos_of(self.parts.config),
            stored=stored,
            sample_counts=self._samples.counts,
            disks=lambda: read_disks({"state": self.state.root}),
            version=_own_version(),
        )
        return sampler, accounts

    def _costs(self, accounts: Accounts, ledger: Ledger) -> Costs:
        base = self._path.absolute().parent
        return Costs(
            accounts,
            ledger,
            prices=lambda: prices_of(self.parts.config),
            settings=lambda: Settings.of(self.parts.config, base),
            key_names=lambda: {key.id: key.terms.name for key in self.parts.registry.api_keys()},
        )

    async def _bring_up(self) -> None:
        """Ports, then definitions, then processes: what is most likely to be refused comes first."""
        server = self.parts.config.server
        tls_files(server, self._path.absolute().parent)
        check_public(server, has_keys=await asyncio.to_thread(self.parts.registry.has_keys))
        listener = bind(server.admin_host, server.admin_port)
        access = Access(admin_token(self.state.admin_token), self._keys, host=server.admin_host)
        door = ConsoleAccess(access)
        app = create_app(self.desk, host=server.admin_host, access=access, door=door)
        mount(app, YardConsole(self.desk, self.parts, self.state.runs, door))
        self._admin = AdminServer(app, listener)
        self._stack.push_async_callback(self._admin.stop)
        if not self.parts.workers.left_running():
            check_port_free(server.host, server.port, "--port")
        base = self._path.absolute().parent
        (await asyncio.to_thread(self._outlets.configure, server, base))()
        plan, drafts = await asyncio.to_thread(self.parts.applier.prepare, self.parts.config, base, [], fetching=True)
        await asyncio.to_thread(
            self.parts.applier.register, plan, drafts, self.parts.config, base, actor=_user(), at=time.time()
        )
        wanted = await asyncio.to_thread(self.parts.applier.wanted, self.parts.config, base, running={})
        traits = traits_of(self.parts.config)
        self.parts.publisher.configure(traits, limits_of(server), require_keys=server.require_keys)
        self.parts.publisher.trace(tracing_of(server))
        self.parts.workers.tls = tls_files(server, base)
        self._adopted = await self.parts.workers.start(server.host, server.port, server.workers)
        await self.parts.supervisor.apply(wanted)
        if self._adopted:
            await self._wait_for_adoption()
        await self._look()
        await self.parts.publisher.publish()
        await self.parts.accounts.reprice(prices_of(self.parts.config))
        self.parts.sampler.start()  # before anybody can ask: what a device costs depends on its cores
        await self.parts.accounts.refill()
        await self.parts.accounts.step()  # the first scrape finds every count: a counter never seems to begin again
        await self._admin.start()
        self.spawn(self._pulse())
        self.spawn(self._take_samples())
        self.spawn(self._scraper.run())
        self.spawn(self.parts.drift.run())
        self.spawn(self.parts.publisher.run())
        url = f"{'https' if server.tls else 'http'}://{_shown(server.host)}:{self.parts.workers.port}"
        admin_url = f"http://{_shown(server.admin_host)}:{listener.getsockname()[1]}"
        certificate = next(iter(self.parts.workers.tls), "")
        self._info = replace(self._info, url=url, admin_url=admin_url, certificate=certificate)
        self.state.write_yard(self._info)

    def _shows_certificate(self, path: str) -> None:
        """The router shows another certificate: whoever checks it reads in `yard.json` which."""
        self._info = replace(self._info, certificate=path)
        self.state.write_yard(self._info)

    async def _wait_for_adoption(self) -> None:
        """Adopted workers serve by their last table: it is the better one until it is known which engines run."""
        limit = time.monotonic() + ADOPTION_S
        while time.monotonic() < limit:
            replicas = self.parts.supervisor.replicas()
            if not any(one.state == "starting" and (one.adopted or not one.pid) for one in replicas):
                return
            await asyncio.sleep(WAIT_STEP_S / 5)

    async def _wait_for_engines(self) -> None:
        """Until every engine is ready or failed. Raises EngineStartError where none can answer."""
        began = time.monotonic()
        while True:
            replicas = self.parts.supervisor.replicas()
            self._ui.engines([_engine_state(one) for one in replicas])
            waited_s = time.monotonic() - began
            pending = [one for one in replicas if one.state not in SETTLED_STATES]
            patient = any(one.kind != "external" for one in pending) or waited_s < EXTERNAL_WAIT_S
            if not pending or not patient or waited_s > self._options.ready_timeout_s:
                break
            await asyncio.sleep(WAIT_STEP_S)
        failed = [one for one in replicas if one.state == "failed"]
        if replicas and len(failed) == len(replicas):
            raise EngineStartError("no engine came up: " + "; ".join(f"{one.id}: {one.last_error}" for one in failed))
        await self.parts.publisher.publish()
        self._ui.ready(
            Ready(
                url=self._info.url,
                admin_url=self._info.admin_url,
                models={name: list(model.versions) for name, model in self.parts.config.models.items()},
                adopted_workers=self._adopted,
                adopted_engines=sum(one.adopted for one in replicas),
                failed=[_engine_state(one) for one in failed],
                keys_required=self.parts.publisher.table is not None and self.parts.publisher.table.keys_required,
                certificate=self._info.certificate,
            )
        )

    # Stop

    async def stop(self, force: asyncio.Event | None = None) -> None:
        """Finish what is in flight, within `server.drain_s`, then stop everything. `force` cuts that short."""
        stopping = asyncio.create_task(self._stop_everything(self.parts.config.server.drain_s))
        forced = asyncio.create_task((force or asyncio.Event()).wait())
        await asyncio.wait({stopping, forced}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            self._forced = True
            await self.parts.workers.kill()
            await self.parts.supervisor.stop(FORCED_STOP_S)
        await stopping
        forced.cancel()

    async def _stop_everything(self, drain_s: float) -> None:
        """In the order of the requests: routers first, then engines, then the books are closed."""
        self._halt.set()
        try:
            if hasattr(self, "parts"):
                await self._stop_parts(drain_s)
        finally:
            await self._stack.aclose()

    async def _stop_parts(self, drain_s: float) -> None:
        await self.parts.workers.stop(drain_s)
        await self.parts.supervisor.stop(FORCED_STOP_S if self._forced or drain_s <= 0 else ENGINE_STOP_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.parts.sampler.stop)
        try:
            await self.parts.accounts.step(settle_now=True)
            await asyncio.to_thread(self._samples.step)
        except (RegistryError, OSError):
            log.exception("the last requests are not counted yet; the next start counts them")
        self.state.yard_json.unlink(missing_ok=True)

    # While it runs

    async def _pulse(self) -> None:
        """Once a second: look at everything, count what is new. What fails is told and tried again."""
        while True:
            await asyncio.sleep(PULSE_S)
            try:
                await self._look()
                await self.parts.accounts.step()
            except Exception:
                log.exception("a pulse failed; trying again")

    async def _take_samples(self) -> None:
        """Take in what the workers sampled, beside the pulse: reading texts takes longer than counting."""
        while True:
            more = False
            try:
                more = (await asyncio.to_thread(self._samples.step)).more
            except Exception:
                log.exception("samples were not taken in; trying again")
            await asyncio.sleep(0 if more else PULSE_S)

    async def _look(self) -> None:
        """Note what is registered, for the books: whose engines are not ours."""
        if await self._registered.follow():
            self._external = frozenset(
                str(version.ref)
                for model in self._registered.current.values()
                for version in model.versions.values()
                if version.manifest.engine in ("external", "hosted")
            )
        self._engines_seen(self.parts.supervisor.replicas())
        self._tell_tls(next(iter(tls_problems(self.parts.workers.statuses())), ""))

    def _tell_tls(self, problem: str) -> None:
        """Log, once, that the router's certificate cannot be replaced by what lies there now; or that it was."""
        if problem and problem != self._tls_problem:
            log.warning("the certificate in use stays: %s", problem)
        elif self._tls_problem and not problem:
            log.info("the router's new certificate is in use")
        self._tls_problem = problem

    def _live(self) -> Live:
        """What is true now, for a scrape."""
        known, table = self._registered.current, self.parts.publisher.table
        inflight = inflight_of(self.parts.workers.statuses())
        served = [known[name] for name in self.parts.config.models if name in known]
        return Live(
            engines=[
                EngineGauge(one.model, one.label, one.id, one.state == "ready", one.restarts, inflight[one.id])
                for one in self.parts.supervisor.replicas()
            ],
            engine_metrics=self._scraper.latest(),
            versions=[
                (model.name, label)
                for model in served
                for label, version in model.versions.items()
                if version.retired_at is None
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
            drift=self.parts.drift.state(),
            splits=self._splits.state(),
            outlook=self.parts.costs.latest,
        )

    def _routing(self) -> Routing:
        """The splits in force, as the table published last has them."""
        return routing_of(self.parts.publisher.table, self._registered.current)

    def _engines_seen(self, replicas: Sequence[ReplicaStatus]) -> None:
        self._pids = {one.pid: f"{one.model}@{one.label}" for one in replicas if one.pid}
        for one in replicas:
            if one.pid and (device := self.parts.sampler.device_of(one.pid)):
                self._devices[one.id] = device
        self._token_prices = {
            f"{one.model}@{one.label}": TokenPrice(seen.input_price_per_million, seen.output_price_per_million)
            for one in replicas
            if (seen := one.capabilities) and (seen.input_price_per_million or seen.output_price_per_million)
        }

    def _engines_changed(self) -> None:
        self._engines_seen(self.parts.supervisor.replicas())
        self.parts.publisher.mark()

    def _engine_failed(self, failure: Failure) -> None:
        """A worker saw an engine fail: look at it now, not at the next round."""
        log.info("worker saw %s fail: %s", failure.replica, failure.error)
        self.spawn(self._nudge(failure.replica))

    async def _nudge(self, replica: str) -> None:
        try:
            await self.parts.supervisor.nudge(replica)
        except (NotFoundError, KeyError):
            log.info("%s is gone already", replica)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.append(task)
        task.add_done_callback(lambda done: self._tasks.remove(done) if done in self._tasks else None)

    def _declares(self, model: str, label: str) -> bool:
        """Whether the configuration in force has the version."""
        found = self.parts.config.models.get(model)
        return found is not None and label in found.versions

    def _required_gate(self, model: str) -> str:
        """The gate policy that the configuration in force requires of the model's versions; "" for none."""
        found = self.parts.config.models.get(model)
        return found.require_gate if found is not None else ""

    def _declares_url(self, url: str) -> bool:
        """Whether the configuration in force names an engine at this URL."""
        models = self.parts.config.models.values()
        return any(version.url == url for model in models for version in model.versions.values())

    def _digest_of(self, model: str, label: str) -> str:
        """A version's digest; "" where it is not registered."""
        found = self._registered.current.get(model)
        version = found.versions.get(label) if found is not None else None
        return version.digest if version is not None else ""

    def _device_of(self, replica: str) -> str | None:
        """The device whose time a replica's requests took; None for an engine that somebody else runs."""
        if replica.rpartition("/")[0] in self._external:
            return None
        return self._devices.get(replica, self._device)

    def _keys(self) -> Sequence[Key]:
        """The API keys in force."""
        return self.parts.publisher.table.keys if self.parts.publisher.table else ()

    def _capabilities(self) -> dict[str, Capabilities]:
        """What engines were seen to do, by replica."""
        return {one.id: one.capabilities for one in self.parts.supervisor.replicas() if one.capabilities is not None}

    def _log_to_file(self) -> None:
        """The control plane's own log, in the state directory."""
        handler = RotatingFileHandler(self.state.root / "yard.log", maxBytes=LOG_BYTES_MAX, backupCount=1)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        parent = logging.getLogger("modelyard")
        parent.setLevel(logging.INFO)
        parent.addHandler(handler)
        self._stack.callback(handler.close)
        self._stack.callback(parent.removeHandler, handler)

    async def reload(self) -> None:
        """Apply the file that the yard was started with again (SIGHUP). What is wrong with it is told, not raised."""
        await self._is_up.wait()
        try:
            config = await asyncio.to_thread(load, self._path)
            plan = await self.desk.apply(config, self._path.absolute().parent, actor=_user(), dry_run=False)
        except (UserError, RegistryError) as error:
            log.warning("the configuration was not applied: %s", error)
            self._ui.say(f"the configuration was not applied: {error}")
            return
        changes = "; ".join(f"{step.kind} {step.subject}" for step in plan.changes)
        self._ui.say(f"the configuration is applied: {changes or 'nothing changed'}")


async def run(path: Path, state: StateDir, options: Options, ui: Ui) -> None:
    """Start a yard from the configuration at `path`, serve until SIGINT or SIGTERM, stop it.

    SIGHUP applies the file again; a second SIGINT or SIGTERM cuts the stop short. Raises UserError or RegistryError,
    one sentence each.
    """
    config = load(path)
    yard = Yard(config, path, state, options, ui, rng=random.Random())  # noqa: S311 - jitter, not secrets
    stop, force = asyncio.Event(), asyncio.Event()

    def asked_to_stop() -> None:
        (force if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: yard.spawn(yard.reload()))
    starting = asyncio.create_task(yard.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            ui.stopping("stopping before everything was up")
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        await starting
        await stopping
        ui.stopping("finishing what is in flight; Ctrl-C again to stop at once")
        await yard.stop(force)
    finally:
        stopping.cancel()
        for number in (signal.SIGINT, signal.SIGTERM):  # nothing is left but threads that have not noticed yet
            loop.add_signal_handler(number, os._exit, INTERRUPTED_EXIT)
        await loop.shutdown_default_executor()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)  # it has stopped; how the process ends is settled


def with_options(config: YardConfig, options: Options) -> YardConfig:
    """The configuration with what the command line says over it."""
    said = {"host": options.host, "port": options.port, "admin_port": options.admin_port, "workers": options.workers}
    given = {name: value for name, value in said.items() if value is not None} | options.grants()
    return config.model_copy(update={"server": config.server.model_copy(update=given)})


def _engine_state(replica: ReplicaStatus) -> EngineState:
    return EngineState(replica.id, replica.state, replica.last_error)


def _shown(host: str) -> str:
    """The host as a client on this machine writes it in a URL."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _user() -> str:
    try:
        return os.environ.get("MODELYARD_ACTOR") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _own_version() -> str:
    try:
        return importlib.metadata.version("modelyard")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
