"""The yard: everything of the control plane put together, from start to stop.

Owns: the order in which parts start and stop, signals, the state directory's lock and `yard.json`. Never: what any part
does, what it is told of the others (assembly). Killed at any moment it costs no request; started again it adopts the
engines and workers that still run.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from monitoring.console import mount
from registry.errors import NotFoundError, RegistryError
from registry.state import StateDir, YardInfo
from registry.terminal import UserError
from serving.config import YardConfig, load
from serving.control.access import Access, admin_token, check_public, tls_files
from serving.control.admin_api import create_app
from serving.control.admin_server import AdminServer, bind
from serving.control.apply import limits_of, prices_of, tracing_of, traits_of
from serving.control.assembly import assemble
from serving.control.console import YardConsole
from serving.control.console_access import ConsoleAccess
from serving.control.desk import Desk
from serving.control.engine_wait import engine_state, wait_for_adoption, wait_for_engines
from serving.control.lock import YardLock
from serving.control.status import tls_problems
from serving.control.ui import Options, Ready, Ui
from serving.control.worker_process import check_port_free
from serving.control.yard_log import logging_to
from serving.router.protocol import Failure
from serving.router.table import Key

log = logging.getLogger("modelyard.yard")

PULSE_S = 1.0
ENGINE_STOP_S = 10.0
FORCED_STOP_S = 1.0
INTERRUPTED_EXIT = 130


class Yard:
    """One control plane on one state directory. `start`, then `stop`; both leave nothing half done."""

    def __init__(
        self, config: YardConfig, path: Path, state: StateDir, options: Options, ui: Ui, *, rng: random.Random
    ) -> None:
        self._config = with_options(config, options)
        self.state = state
        self._path = path
        self._base = path.absolute().parent
        self._options = options
        self._ui = ui
        self._rng = rng
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._adopted = 0
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
        self._stack.enter_context(logging_to(self.state.root))
        made = await assemble(
            self._stack,
            self._config,
            self._base,
            self.state,
            self._options,
            self._ui,
            rng=self._rng,
            halt=self._halt,
            on_engine_failure=self._engine_failed,
            on_engines_changed=self._engines_changed,
            admin_url=lambda: self._info.admin_url,
        )
        self._registered, self._engines, self._scraper = made.registered, made.engines, made.scraper
        self.parts = made.parts
        self.desk = Desk(
            self.parts, lambda: self._info, requests=self.state.requests, certificate_changed=self._shows_certificate
        )

    async def _bring_up(self) -> None:
        """Ports, then definitions, then processes: what is most likely to be refused comes first."""
        server = self.parts.config.server
        tls_files(server, self._base)
        check_public(server, has_keys=await asyncio.to_thread(self.parts.registry.has_keys))
        listener = bind(server.admin_host, server.admin_port)
        access = Access(admin_token(self.state.admin_token), self._keys_in_force, host=server.admin_host)
        door = ConsoleAccess(access)
        app = create_app(self.desk, host=server.admin_host, access=access, door=door)
        mount(app, YardConsole(self.desk, self.parts, self.state.runs, door))
        self._admin = AdminServer(app, listener)
        self._stack.push_async_callback(self._admin.stop)
        if not self.parts.workers.left_running():
            check_port_free(server.host, server.port, "--port")
        base = self._base
        (await asyncio.to_thread(self.parts.outlets.configure, server, base))()
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
            await wait_for_adoption(self.parts.supervisor)  # until then their last table is the better one
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

    async def _wait_for_engines(self) -> None:
        """Until every engine is ready or failed; then tell. Raises EngineStartError where none can answer."""
        replicas = await wait_for_engines(self.parts.supervisor, self._ui, self._options.ready_timeout_s)
        await self.parts.publisher.publish()
        self._ui.ready(
            Ready(
                url=self._info.url,
                admin_url=self._info.admin_url,
                models={name: list(model.versions) for name, model in self.parts.config.models.items()},
                adopted_workers=self._adopted,
                adopted_engines=sum(one.adopted for one in replicas),
                failed=[engine_state(one) for one in replicas if one.state == "failed"],
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
            await asyncio.to_thread(self.parts.samples.step)
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
                more = (await asyncio.to_thread(self.parts.samples.step)).more
            except Exception:
                log.exception("samples were not taken in; trying again")
            await asyncio.sleep(0 if more else PULSE_S)

    async def _look(self) -> None:
        """Note what is registered, for the books: whose engines are not ours."""
        if await self._registered.follow():
            self._engines.note_registered(self._registered.current)
        self._note_engines()
        self._tell_tls(next(iter(tls_problems(self.parts.workers.statuses())), ""))

    def _tell_tls(self, problem: str) -> None:
        """Log, once, that the router's certificate cannot be replaced by what lies there now; or that it was."""
        if problem and problem != self._tls_problem:
            log.warning("the certificate in use stays: %s", problem)
        elif self._tls_problem and not problem:
            log.info("the router's new certificate is in use")
        self._tls_problem = problem

    def _keys_in_force(self) -> Sequence[Key]:
        """The API keys that the workers know."""
        return self.parts.publisher.table.keys if self.parts.publisher.table else ()

    def _note_engines(self) -> None:
        """Note what runs, for the books: whose processes are whose, and where."""
        self._engines.note_running(self.parts.supervisor.replicas(), self.parts.sampler.device_of)

    def _engines_changed(self) -> None:
        self._note_engines()
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

    async def reload(self) -> None:
        """Apply the file that the yard was started with again (SIGHUP). What is wrong with it is told, not raised."""
        await self._is_up.wait()
        try:
            config = await asyncio.to_thread(load, self._path)
            plan = await self.desk.apply(config, self._base, actor=_user(), dry_run=False)
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
